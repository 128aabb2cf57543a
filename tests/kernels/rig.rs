//! Where the tests run, and tensors there that know what stands round them.

use attn::cuda::{self, GpuQueue};
use attn::tensor::TensorLayout;
use attn::{Device, Element, Tensor, View, ViewMut};

/// A device under test.
pub trait Rig: 'static {
    type Queue: GpuQueue;

    /// A queue, or none if there is no such device here (and that is no failure). The seed shuffles what the device may
    /// shuffle.
    fn queue(seed: u64) -> Option<Self::Queue>;
}

pub type DeviceOf<R> = <<R as Rig>::Queue as GpuQueue>::Device;

/// Where a tensor lies in a larger one.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The order of the axes.
    pub layout: TensorLayout,
    /// How much of the larger tensor stands before and after, along batch, seq, heads and head_dim.
    pub margins: [[usize; 2]; 4],
}

impl Place {
    pub const BSHD: Self = Self::dense(TensorLayout::Bshd);

    pub const fn dense(layout: TensorLayout) -> Self {
        Self { layout, margins: [[0; 2]; 4] }
    }

    /// Cut out of every axis. Rows begin 16 bytes into their place.
    pub const fn sliced(layout: TensorLayout) -> Self {
        Self { layout, margins: [[0, 1], [1, 2], [1, 1], [8, 16]] }
    }

    /// The same for one float a row.
    pub const fn of_rows(self) -> Self {
        let [batch, seq, heads, _] = self.margins;
        Self { layout: self.layout, margins: [batch, seq, heads, [0; 2]] }
    }

    fn outer(self, shape: [usize; 4]) -> [usize; 4] {
        let mut outer = shape;
        for (length, [before, after]) in outer.iter_mut().zip(self.margins) {
            *length += before + after;
        }
        outer
    }

    /// The index in the tensor of an index of the larger one, if it is inside.
    fn inside(self, index: [usize; 4], shape: [usize; 4]) -> Option<[usize; 4]> {
        let mut inside = index;
        for axis in 0..4 {
            inside[axis] = index[axis].checked_sub(self.margins[axis][0])?;
            if inside[axis] >= shape[axis] {
                return None;
            }
        }
        Some(inside)
    }
}

/// A tensor on the device inside a larger one, which is NaN everywhere else.
pub struct Held<T, D: Device> {
    tensor: Tensor<T, D>,
    place: Place,
    shape: [usize; 4],
}

impl<T: Element, D: Device> Held<T, D> {
    /// Places values for each index `[batch, seq, heads, head_dim]`.
    pub fn new<Q: GpuQueue<Device = D>>(
        queue: &Q,
        place: Place,
        shape: [usize; 4],
        mut value: impl FnMut([usize; 4]) -> T,
    ) -> Self
    where
        D: cuda::Launches,
    {
        let layout = place.layout;
        let host = Tensor::<T>::from_fn(layout.permute(place.outer(shape)), |index| {
            match place.inside(layout.permute(index), shape) {
                Some(inside) => value(inside),
                None => nan(),
            }
        });
        Self { tensor: cuda::to_device(queue, &host.unwrap()).unwrap(), place, shape }
    }

    /// A place to write: NaN in and around it.
    pub fn poisoned<Q: GpuQueue<Device = D>>(queue: &Q, place: Place, shape: [usize; 4]) -> Self
    where
        D: cuda::Launches,
    {
        Self::new(queue, place, shape, |_| nan())
    }

    /// `[batch, seq, heads, head_dim]`.
    pub fn view(&self) -> View<'_, T, D> {
        let mut view = self.tensor.view().permuted(self.place.layout);
        for axis in 0..4 {
            view = view.narrow(axis, self.place.margins[axis][0], self.shape[axis]).unwrap();
        }
        view
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T, D> {
        let mut view = self.tensor.view_mut().permuted(self.place.layout);
        for axis in 0..4 {
            view = view.narrow(axis, self.place.margins[axis][0], self.shape[axis]).unwrap();
        }
        view
    }

    /// What stands there now, row-major `[batch, seq, heads, head_dim]`. Nothing was written round it.
    #[track_caller]
    pub fn read(&self, queue: &D::Queue, what: &str) -> Vec<T>
    where
        D: cuda::Launches,
    {
        let host = cuda::to_host::<T, D>(queue, &self.tensor).unwrap();
        let canonical = host.view().permuted(self.place.layout);
        let mut inside = Vec::with_capacity(self.shape.iter().product());
        let [n0, n1, n2, n3] = canonical.shape();
        for index in
            (0..n0 * n1 * n2 * n3).map(|i| [i / (n1 * n2 * n3), i / (n2 * n3) % n1, i / n3 % n2, i % n3])
        {
            let element = canonical.at(index);
            match self.place.inside(index, self.shape) {
                Some(_) => inside.push(element),
                None => assert!(
                    element.to_f32().is_nan(),
                    "{what}: {element:?} was written outside, at {index:?}"
                ),
            }
        }
        inside
    }
}

fn nan<T: Element>() -> T {
    T::from_f32(f32::NAN)
}
