//! Batches of strided copies, byte for byte against the host.

use attn::cuda;
use attn::device::{Device, StridedCopy};
use attn::{Scalar, Tensor, TensorLayout, View};
use half::bf16;

use crate::kernels::rig::{DeviceOf, Rig};
use crate::support::Random;

/// One copy, in bytes from the beginning of two buffers.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    pub from: usize,
    pub to: usize,
    pub item: usize,
    pub extent: [usize; 4],
    pub from_strides: [usize; 4],
    pub to_strides: [usize; 4],
}

impl Move {
    fn on(self, source: *const u8, destination: *mut u8) -> StridedCopy {
        StridedCopy {
            source: source.wrapping_add(self.from),
            destination: destination.wrapping_add(self.to),
            item: self.item,
            extent: self.extent,
            source_strides: self.from_strides,
            destination_strides: self.to_strides,
        }
    }

    pub fn on_host(self, source: &[u8], destination: &mut [u8]) {
        let [n0, n1, n2, n3] = self.extent;
        for i in 0..n0 * n1 * n2 * n3 {
            let index = [i / (n1 * n2 * n3), i / (n2 * n3) % n1, i / n3 % n2, i % n3];
            let at = |strides: [usize; 4]| (0..4).map(|axis| index[axis] * strides[axis]).sum::<usize>();
            let from = self.from + at(self.from_strides) * self.item;
            let to = self.to + at(self.to_strides) * self.item;
            destination[to..to + self.item].copy_from_slice(&source[from..from + self.item]);
        }
    }
}

/// Strides of a tensor whose axes stand in a random order with some room between, and how many elements it reaches.
pub fn strides(random: &mut Random, extent: [usize; 4], room: u64) -> ([usize; 4], usize) {
    let mut order = [0, 1, 2, 3];
    for i in (1..4).rev() {
        order.swap(i, random.next() as usize % (i + 1));
    }
    let (mut strides, mut step) = ([0; 4], 1);
    for axis in order {
        step += (random.next() % (room + 1)) as usize;
        strides[axis] = step;
        step *= extent[axis].max(1);
    }
    (strides, step)
}

/// Makes the copies on the device and on the host, and compares whole buffers: nothing else was written.
#[track_caller]
fn verify<R: Rig>(seed: u64, moves: &[Move], source_bytes: usize, destination_bytes: usize) {
    let Some(queue) = R::queue(seed) else { return };
    let mut random = Random(seed);
    let mut buffer = |bytes: usize| -> Tensor<bf16> {
        let shape = [1, 1, 1, bytes.div_ceil(2)];
        Tensor::from_fn(shape, |_| bf16::from_bits(random.next() as u16)).unwrap()
    };
    let (source, mut destination) = (buffer(source_bytes), buffer(destination_bytes));
    let on_device = cuda::to_device(&queue, &source).unwrap();
    let mut target = cuda::to_device(&queue, &destination).unwrap();
    let base = |view: View<'_, bf16, DeviceOf<R>>| view.base().as_ptr().cast::<u8>();
    let (from, to) = (base(on_device.view()), base(target.view_mut().into_view()));
    let copies: Vec<StridedCopy> = moves.iter().map(|part| part.on(from, to)).collect();
    // SAFETY: every copy stays inside the two buffers, as the host's slices check below; nobody else has them.
    unsafe { DeviceOf::<R>::copy(&queue, &copies) }.unwrap();
    let result = cuda::to_host::<bf16, DeviceOf<R>>(&queue, &target).unwrap();
    for part in moves {
        let bytes = bytemuck::cast_slice_mut(destination.as_mut_slice());
        part.on_host(bytemuck::cast_slice(source.as_slice()), bytes);
    }
    let bytes = |tensor: &Tensor<bf16>| bytemuck::cast_slice::<_, u8>(tensor.as_slice()).to_vec();
    let (result, expected) = (bytes(&result), bytes(&destination));
    if let Some(at) = (0..expected.len()).find(|&i| result[i] != expected[i]) {
        panic!("byte {at} is {}, expected {}; seed {seed}, {moves:?}", result[at], expected[at]);
    }
}

/// A batch whose destinations lie one behind the other, and the bytes of both buffers.
fn batch(random: &mut Random, copies: usize, longest: u64, odd: bool) -> (Vec<Move>, usize, usize) {
    let (mut moves, mut source_bytes, mut to) = (Vec::new(), 1, 0);
    for _ in 0..copies {
        let item = 1 << (random.next() % 5);
        let mut extent = [0; 4].map(|_: usize| 1 + (random.next() % longest) as usize);
        if random.next().is_multiple_of(4) {
            extent[random.next() as usize % 4] = 1;
        }
        // Dense as often as not: then runs are joined, and accesses are wide.
        let room = (random.next() % 2) * 3;
        let (mut from_strides, reach) = strides(random, extent, room);
        let (to_strides, to_reach) = strides(random, extent, room);
        if random.next().is_multiple_of(8) {
            // The source may repeat itself.
            from_strides[random.next() as usize % 4] = 0;
        }
        let align = if odd { 1 } else { item };
        let from = (random.next() % 64) as usize / align * align;
        to = (to + (random.next() % 32) as usize).next_multiple_of(align);
        source_bytes = source_bytes.max(from + reach * item);
        moves.push(Move { from, to, item, extent, from_strides, to_strides });
        to += to_reach * item;
    }
    (moves, source_bytes, to)
}

pub fn every_element_of_a_random_batch_arrives<R: Rig>() {
    let mut random = Random(1);
    for round in 0..40 {
        let (moves, source, destination) = batch(&mut random, 1 + round % 7, 6, false);
        verify::<R>(round as u64, &moves, source, destination);
    }
}

pub fn addresses_off_the_size_of_an_element_are_fine<R: Rig>() {
    let mut random = Random(2);
    for round in 0..20 {
        let (moves, source, destination) = batch(&mut random, 3, 5, true);
        verify::<R>(round, &moves, source, destination);
    }
}

pub fn more_copies_than_one_launch_takes<R: Rig>() {
    let mut random = Random(3);
    for copies in [16, 17, 199, 200, 201, 450] {
        let (mut moves, source, destination) = batch(&mut random, copies, 3, false);
        // Empty ones do not count.
        for part in moves.iter_mut().step_by(5) {
            part.extent[1] = 0;
        }
        verify::<R>(copies as u64, &moves, source, destination);
    }
}

pub fn long_runs_are_cut_into_many_tiles<R: Rig>() {
    let dense = |item: usize, extent: [usize; 4]| Move {
        from: 16,
        to: 32,
        item,
        extent,
        from_strides: attn::tensor::contiguous_strides(extent),
        to_strides: attn::tensor::contiguous_strides(extent),
    };
    for part in [dense(2, [2, 50, 4, 64]), dense(1, [1, 1, 1, 70001]), dense(16, [3, 5, 7, 11])] {
        let bytes = part.extent.iter().product::<usize>() * part.item;
        verify::<R>(7, &[part], bytes + 16, bytes + 50);
        // Heads and positions change places, as in a Ulysses exchange.
        let [a, b, c, d] = part.extent;
        let swapped = Move { to_strides: [a * b * c * d, d, b * d, 1], ..part };
        if a == 1 || part.extent[3] == 11 {
            continue;
        }
        let one = Move { extent: [1, b, c, d], ..swapped };
        verify::<R>(8, &[one], bytes + 16, bytes + 50);
    }
}

/// What masks are made of goes there and back as elements do, also out of a tensor of other strides.
pub fn integers_and_bytes_travel<R: Rig>() {
    fn travel<R: Rig, T: Scalar>(queue: &R::Queue, value: impl Fn([usize; 4]) -> T) {
        let host = Tensor::<T>::from_fn([2, 3, 5, 7], value).unwrap();
        let there = cuda::to_device(queue, &host).unwrap();
        assert_eq!(cuda::to_host(queue, &there).unwrap(), host);
        let turned = there.view().permuted(TensorLayout::Bhsd);
        let back = cuda::to_host::<T, DeviceOf<R>>(queue, turned).unwrap();
        assert_eq!(back.shape(), [2, 5, 3, 7]);
        for [b, s, h, d] in [[0, 0, 0, 0], [1, 2, 4, 6], [1, 0, 3, 5]] {
            assert_eq!(back.view().at([b, h, s, d]), host.view().at([b, s, h, d]));
        }
    }
    let Some(queue) = R::queue(1) else { return };
    let number = |[b, s, h, d]: [usize; 4]| ((b * 3 + s) * 5 + h) * 7 + d;
    travel::<R, i32>(&queue, |index| -(number(index) as i32) << 20);
    travel::<R, u8>(&queue, |index| number(index) as u8);
}

pub fn an_empty_batch_does_nothing<R: Rig>() {
    let Some(queue) = R::queue(0) else { return };
    // SAFETY: nothing is copied.
    unsafe { DeviceOf::<R>::copy(&queue, &[]) }.unwrap();
}

/// The only way to reach an item size that no element type has.
pub fn elements_of_twelve_bytes_are_refused<R: Rig>() {
    let Some(queue) = R::queue(0) else { return };
    let copy = StridedCopy {
        source: core::ptr::null(),
        destination: core::ptr::null_mut(),
        item: 12,
        extent: [1; 4],
        source_strides: [1; 4],
        destination_strides: [1; 4],
    };
    // SAFETY: it is refused before anything is read.
    let error = unsafe { DeviceOf::<R>::copy(&queue, &[copy]) }.unwrap_err().to_string();
    assert!(
        error.contains("`copy` does not take elements of 12 bytes: it takes 1, 2, 4, 8 and 16"),
        "{error}"
    );
}
