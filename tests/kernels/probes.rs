//! One tile through the tensor cores and the copy engine: whether they lay out memory as the kernels assume.

use attn::Tensor;
use attn::cuda::probe::{self, WgmmaForm};
use attn::cuda::{self, Half};

use crate::kernels::eight_bits::to_e4m3;
use crate::kernels::rig::{DeviceOf, Rig};
use crate::support::Random;

/// Widths of the product that the probe has: those of attention, and some besides.
const WIDTHS: [usize; 9] = [32, 64, 80, 96, 112, 128, 176, 192, 256];

/// `a b` for every swizzle, order of axes and place of the operands; whole numbers, so that sums are exact.
pub fn tensor_cores_multiply<T: Half, R: Rig>() {
    for swizzle in [32, 64, 128] {
        for n in WIDTHS {
            for (a_from_registers, b_mn_major) in [(false, false), (true, false), (false, true), (true, true)]
            {
                // Attention has two of the four: a from memory by keys, a from registers by values.
                let other = a_from_registers != b_mn_major && n != 64 && n != 128;
                if other {
                    continue;
                }
                product::<T, R>(WgmmaForm { swizzle, a_from_registers, b_mn_major }, n);
            }
        }
    }
}

#[track_caller]
fn product<T: Half, R: Rig>(form: WgmmaForm, n: usize) {
    let Some(queue) = R::queue(n as u64) else { return };
    let mut random = Random(n as u64 + form.swizzle as u64);
    let mut whole = |shape: [usize; 4]| {
        Tensor::<T>::from_fn(shape, |_| T::from_f32((random.next() % 17) as f32 - 8.0)).unwrap()
    };
    let (a, b) = (whole([1, 1, 64, 64]), whole([1, 1, 64, n]));
    let (on_a, on_b) = (cuda::to_device(&queue, &a).unwrap(), cuda::to_device(&queue, &b).unwrap());
    let nan = Tensor::<f32>::from_fn([1, 1, 64, n], |_| f32::NAN).unwrap();
    let mut d = cuda::to_device(&queue, &nan).unwrap();
    probe::wgmma(&queue, form, on_a.view(), on_b.view(), d.view_mut())
        .unwrap_or_else(|error| panic!("{form:?}, n = {n}: {error}"));
    let d = cuda::to_host::<f32, DeviceOf<R>>(&queue, &d).unwrap();
    for i in 0..64 {
        for j in 0..n {
            let right: f32 = (0..64)
                .map(|k| a.view().at([0, 0, i, k]).to_f32() * b.view().at([0, 0, k, j]).to_f32())
                .sum();
            let found = d.view().at([0, 0, i, j]);
            assert!(found == right, "{form:?}, n = {n}: d[{i}][{j}] is {found}, expected {right}");
        }
    }
}

/// The same of 8-bit elements, k contiguous in both operands: whole numbers that both types hold.
pub fn tensor_cores_multiply_8_bits<R: Rig>() {
    let forms =
        [(true, false, 128), (false, false, 64), (false, true, 64), (false, false, 128), (false, true, 128)];
    for swizzle in [32, 64, 128] {
        for (integers, a_from_registers, n) in forms {
            let Some(queue) = R::queue(n as u64) else { return };
            let mut random = Random(n as u64 + swizzle as u64);
            let mut whole = |shape: [usize; 4]| {
                Tensor::<f32>::from_fn(shape, |_| (random.next() % 17) as f32 - 8.0).unwrap()
            };
            let (a, b) = (whole([1, 1, 64, 128]), whole([1, 1, 128, n]));
            let bytes = |of: &Tensor<f32>| {
                let byte = |value: f32| if integers { value as i8 as u8 } else { to_e4m3(value) };
                let bytes = Tensor::<u8>::from_fn(of.view().shape(), |index| byte(of.view().at(index)));
                cuda::to_device(&queue, &bytes.unwrap()).unwrap()
            };
            let nan = Tensor::<f32>::from_fn([1, 1, 64, n], |_| f32::NAN).unwrap();
            let mut d = cuda::to_device(&queue, &nan).unwrap();
            let form = WgmmaForm { swizzle, a_from_registers, b_mn_major: false };
            probe::wgmma8(&queue, form, integers, bytes(&a).view(), bytes(&b).view(), d.view_mut())
                .unwrap_or_else(|error| panic!("{form:?}, n = {n}: {error}"));
            let d = cuda::to_host::<f32, DeviceOf<R>>(&queue, &d).unwrap();
            for (i, j) in (0..64).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let right: f32 =
                    (0..128).map(|k| a.view().at([0, 0, i, k]) * b.view().at([0, 0, k, j])).sum();
                let found = d.view().at([0, 0, i, j]);
                assert!(found == right, "{form:?}, n = {n}: d[{i}][{j}] is {found}, expected {right}");
            }
        }
    }
}

/// What the copy engine makes of a box: chunks of 16 bytes change places within a row by the row's number, rows
/// beyond the tensor are zeros, and nothing is stored there.
pub fn the_copy_engine_swizzles<T: Half, R: Rig>() {
    for width in [16, 32, 64] {
        for (seq, slabs, rows, row, slab, box_slabs) in [
            (64, 1, 64, 0, 0, 1),
            (200, 2, 64, 128, 1, 1),
            (200, 4, 80, 160, 3, 1),
            (5, 1, 64, 0, 0, 1),
            // As attention loads its tiles: all slabs of a head_dim of 128 and of 256.
            (300, 2, 176, 100, 0, 2),
            (300, 4, 128, 200, 0, 4),
            (300, 1, 192, 200, 0, 1),
            // Three slabs: a head_dim of 96 or 192.
            (300, 3, 112, 250, 0, 3),
            // Five lines and five more, as the query heads of a group for one query after the other: a swizzle goes on from
            // where they end.
            (300, 4, 5, 100, 0, 4),
            (40, 6, 1, 7, 1, 5),
        ] {
            let Some(queue) = R::queue(seq as u64) else { return };
            let shape = [1, 1, seq, slabs * width];
            // Values that T holds exactly, unlike within a box as far as may be.
            let value = |r: usize, c: usize| T::from_f32(((r * 31 + c * 7) % 251) as f32 + 1.0);
            let source = Tensor::<T>::from_fn(shape, |[_, _, r, c]| value(r, c)).unwrap();
            let before = Tensor::<T>::from_fn(shape, |_| T::from_f32(-1.0)).unwrap();
            let empty = Tensor::<T>::from_fn([1, box_slabs, rows, width], |_| T::from_f32(-2.0)).unwrap();
            let on = cuda::to_device(&queue, &source).unwrap();
            let (mut copy, mut image) =
                (cuda::to_device(&queue, &before).unwrap(), cuda::to_device(&queue, &empty).unwrap());
            probe::tma(&queue, [row, slab], on.view(), copy.view_mut(), image.view_mut()).unwrap();
            let (copy, image) = (
                cuda::to_host::<T, DeviceOf<R>>(&queue, &copy).unwrap(),
                cuda::to_host::<T, DeviceOf<R>>(&queue, &image).unwrap(),
            );
            for (r, c) in (0..rows).flat_map(|r| (0..box_slabs * width).map(move |c| (r, c))) {
                // Slab after slab; in each, pieces of 16 bytes change places with the address' bits from 128 bytes up.
                let (of_box, column) = (c / width, c % width);
                let line = (of_box * rows + r) * width * 2 / 128;
                let piece = (column / 8) ^ (line % (width / 8));
                let right = match row + r < seq {
                    true => value(row + r, slab * width + c),
                    false => T::from_f32(0.0),
                };
                let found = image.view().at([0, of_box, r, piece * 8 + column % 8]);
                assert_eq!(
                    found, right,
                    "width {width}: row {r}, column {c} of {rows} rows from {row} of {seq}"
                );
            }
            for r in 0..seq {
                for c in 0..slabs * width {
                    let inside =
                        (row..row + rows).contains(&r) && (slab..slab + box_slabs).contains(&(c / width));
                    let right = if inside { value(r, c) } else { T::from_f32(-1.0) };
                    assert_eq!(
                        copy.view().at([0, 0, r, c]),
                        right,
                        "width {width}: copy of row {r}, column {c}"
                    );
                }
            }
        }
    }
}

/// A launcher's refusal arrives with its name, its text and the device.
pub fn a_width_without_an_instruction_is_an_error<R: Rig>() {
    let Some(queue) = R::queue(0) else { return };
    let tensor = |n: usize| Tensor::<half::bf16, DeviceOf<R>>::zeros(&queue, [1, 1, 64, n]).unwrap();
    let (a, b) = (tensor(64), tensor(12));
    let mut d = Tensor::<f32, DeviceOf<R>>::zeros(&queue, [1, 1, 64, 12]).unwrap();
    let form = WgmmaForm { swizzle: 128, a_from_registers: false, b_mn_major: false };
    let said = probe::wgmma(&queue, form, a.view(), b.view(), d.view_mut()).unwrap_err().to_string();
    assert!(said.contains("ATTN_UNSUPPORTED (") && said.contains("reported by `probe_wgmma` on "), "{said}");
}

/// The kernel that measures the rate of the tensor cores does the work that it claims, and no more: its sums are those
/// of its products.
pub fn busy_tensor_cores_multiply_right<T: Half, R: Rig>() {
    const ITERATIONS: usize = 2;
    let Some(queue) = R::queue(7) else { return };
    let blocks = probe::multiprocessors::<DeviceOf<R>>(&queue).unwrap();
    let nan = Tensor::<f32>::from_fn([1, 1, blocks, probe::PEAK_THREADS], |_| f32::NAN).unwrap();
    assert!(blocks > 0);
    let run = |iterations: usize| {
        let mut sums = cuda::to_device(&queue, &nan).unwrap();
        let operations = probe::peak::<DeviceOf<R>, T>(&queue, iterations, sums.view_mut()).unwrap();
        (operations, cuda::to_host::<f32, DeviceOf<R>>(&queue, &sums).unwrap())
    };
    let (nothing, zeros) = run(0);
    assert!(nothing == 0.0 && zeros.as_slice().iter().all(|sum| *sum == 0.0));
    let (operations, sums) = run(ITERATIONS);
    // Two warpgroups, 64 x 256 x 64 products four times an iteration.
    assert_eq!(operations, (2 * 2 * 64 * 256 * 64 * 4 * ITERATIONS * blocks) as f64);

    // What the kernel lays into shared memory: lines of 64 numbers, whose pieces of 8 are swizzled.
    let exponent = if T::DTYPE == attn::DType::F16 { 0x3800 } else { 0x3f00 };
    let number = |line: usize, k: usize| -> f64 {
        let piece = (k / 8) ^ (line % 8);
        let seed = ((line * 8 + piece) * 4 + 1 + k % 8 / 2) as u32;
        let mixed = seed.wrapping_mul(2_654_435_761) ^ (seed.wrapping_mul(40503) << 13);
        let bits = ((mixed & 0x803f_803f) >> (16 * (k % 2))) as u16 | exponent;
        f64::from(bytemuck::cast::<u16, T>(bits).to_f32())
    };
    let column_sum =
        |lines: core::ops::Range<usize>, k: usize| lines.map(|line| number(line, k)).sum::<f64>();
    for group in 0..2 {
        let once: f64 =
            (0..64).map(|k| column_sum(group * 64..group * 64 + 64, k) * column_sum(128..128 + 256, k)).sum();
        let expected = once * 4.0 * ITERATIONS as f64;
        // Of how much fp32 may round off.
        let size = (64 * 256 * 64 * 4 * ITERATIONS) as f64;
        for block in 0..blocks {
            let row = &sums.as_slice()[block * probe::PEAK_THREADS..][group * 128..][..128];
            let sum: f64 = row.iter().map(|sum| f64::from(*sum)).sum();
            assert!((sum - expected).abs() <= size * 1e-5, "{sum} instead of {expected}");
        }
    }
}
