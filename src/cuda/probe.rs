//! Probes for the kernels' tests: one tile through the tensor cores or the copy engine, to be compared with the host.

use attn_runtime::{Error, Result, Scalar, View, ViewMut};

use super::abi::{self, Launch, Launchers};
use super::architecture::{Architecture, supports};
pub use super::attention::{Quantised, quantise};
use super::element::{Half, number};
use super::launches::{Launches, launch, queue_on};
use super::layout;

/// How the operands of a [`wgmma`] probe lie.
#[derive(Clone, Copy, Debug)]
pub struct WgmmaForm {
    /// Bytes: 32, 64 or 128.
    pub swizzle: usize,
    /// The first operand comes from registers.
    pub a_from_registers: bool,
    /// The second operand is stored with columns contiguous, as the values of attention are.
    pub b_mn_major: bool,
}

/// `d[64][n] = a[64][64] b[64][n]` by one warpgroup. All dense; a as `[1, 1, 64, 64]`, b as `[1, 1, 64, n]`, d
/// likewise.
///
/// # Errors
/// If the shapes do not fit, or the device reports an error.
pub fn wgmma<D: Launches, T: Half>(
    queue: &D::Queue,
    form: WgmmaForm,
    a: View<'_, T, D>,
    b: View<'_, T, D>,
    d: ViewMut<'_, f32, D>,
) -> Result<()> {
    product(queue, "probe_wgmma", |launchers| launchers.probe_wgmma, form, number::<T>(), [a, b], d)
}

/// `d[64][n] = a[64][128] b[128][n]` of 8-bit integers, or of e4m3, by one warpgroup. All dense, as of [`wgmma`].
///
/// # Errors
/// As [`wgmma`].
pub fn wgmma8<D: Launches>(
    queue: &D::Queue,
    form: WgmmaForm,
    integers: bool,
    a: View<'_, u8, D>,
    b: View<'_, u8, D>,
    d: ViewMut<'_, f32, D>,
) -> Result<()> {
    let element = if integers { abi::S8 } else { abi::E4M3 };
    product(queue, "probe_wgmma8", |launchers| launchers.probe_wgmma8, form, element, [a, b], d)
}

/// The product of one warpgroup, of rows of 128 bytes.
fn product<D: Launches, T: Scalar>(
    queue: &D::Queue,
    name: &'static str,
    launcher: fn(&Launchers) -> Launch<abi::ProbeWgmma>,
    form: WgmmaForm,
    element: i32,
    [a, b]: [View<'_, T, D>; 2],
    d: ViewMut<'_, f32, D>,
) -> Result<()> {
    supports::<D>(queue, name, Architecture::Hopper)?;
    let (n, depth) = (b.shape()[3], 128 / size_of::<T>());
    dense("a", a.shape(), a.strides(), [1, 1, 64, depth])?;
    dense("b", b.shape(), b.strides(), [1, 1, depth, n])?;
    dense("d", d.shape(), d.strides(), [1, 1, 64, n])?;
    let call = abi::ProbeWgmma {
        a: a.base().as_ptr().cast_const().cast(),
        b: b.base().as_ptr().cast_const().cast(),
        d: d.base().as_ptr(),
        n: small(n)?,
        swizzle: small(form.swizzle)?,
        element,
        a_from_registers: i32::from(form.a_from_registers),
        b_mn_major: i32::from(form.b_mn_major),
        reserved: 0,
    };
    // SAFETY: the views lend dense tensors of these shapes, the result exclusively.
    unsafe { launch::<D, _>(queue, name, launcher, &call) }
}

/// Loads the box of `rows` x (`box_slabs` * `width`) elements from `row` and `slab` of `source`, a dense
/// `[1, 1, seq, slabs * width]`, under a swizzle of `2 * width` bytes (32, 64 or 128); writes shared memory as it stands
/// to `image` (`[1, box_slabs, rows, width]`), and the tile to the same place of `copy`.
///
/// # Errors
/// If the shapes do not fit, or the device reports an error.
pub fn tma<D: Launches, T: Half>(
    queue: &D::Queue,
    [row, slab]: [usize; 2],
    source: View<'_, T, D>,
    copy: ViewMut<'_, T, D>,
    image: ViewMut<'_, T, D>,
) -> Result<()> {
    supports::<D>(queue, "probe_tma", Architecture::Hopper)?;
    let [_, _, seq, columns] = source.shape();
    let [_, box_slabs, rows, width] = image.shape();
    let slabs = columns / width.max(1);
    dense("source", source.shape(), source.strides(), [1, 1, seq, slabs * width])?;
    dense("copy", copy.shape(), copy.strides(), source.shape())?;
    dense("image", image.shape(), image.strides(), [1, box_slabs, rows, width])?;
    let call = abi::ProbeTma {
        source: source.base().as_ptr().cast_const().cast(),
        copy: copy.base().as_ptr().cast(),
        image: image.base().as_ptr().cast(),
        seq: small(seq)?,
        slabs: small(slabs)?,
        rows: small(rows)?,
        row: small(row)?,
        slab: small(slab)?,
        swizzle: small(2 * width)?,
        box_slabs: small(box_slabs)?,
        reserved: 0,
    };
    // SAFETY: the views lend dense tensors of these shapes, `copy` and `image` exclusively.
    unsafe { launch::<D, _>(queue, "probe_tma", |launchers| launchers.probe_tma, &call) }
}

/// What [`peak`] multiplies in.
pub const PEAK_THREADS: usize = 256;

/// How many multiprocessors the queue's device has.
///
/// # Errors
/// If the device reports one.
pub fn multiprocessors<D: Launches>(queue: &D::Queue) -> Result<usize> {
    let mut count = 0;
    // SAFETY: the launcher writes one number.
    queue_on::<D>(queue, "multiprocessors", |launchers, _| unsafe {
        (launchers.multiprocessors)(&mut count)
    })?;
    Ok(count.unsigned_abs() as usize)
}

/// Keeps the tensor cores of as many blocks as `sums` (`[1, 1, blocks, PEAK_THREADS]`) has busy for `iterations`, on
/// numbers of about 1 in shared memory; returns how many operations that is, and writes a sum of products for each
/// thread.
///
/// # Errors
/// If the shape does not fit, or the device reports an error.
pub fn peak<D: Launches, T: Half>(
    queue: &D::Queue,
    iterations: usize,
    sums: ViewMut<'_, f32, D>,
) -> Result<f64> {
    let blocks = sums.shape()[2];
    dense("sums", sums.shape(), sums.strides(), [1, 1, blocks, PEAK_THREADS])?;
    supports::<D>(queue, "probe_peak", Architecture::Hopper)?;
    let mut operations = 0.0;
    let call = abi::ProbePeak {
        sums: sums.base().as_ptr(),
        operations: &raw mut operations,
        blocks: small(blocks)?,
        iterations: small(iterations)?,
        element: number::<T>(),
        reserved: 0,
    };
    // SAFETY: the view lends a float for each thread, exclusively; `operations` is written before the launcher returns.
    unsafe { launch::<D, _>(queue, "probe_peak", |launchers| launchers.probe_peak, &call) }?;
    Ok(operations)
}

fn dense(tensor: &'static str, found: [usize; 4], strides: [usize; 4], expected: [usize; 4]) -> Result<()> {
    if found == expected && strides == attn_runtime::tensor::contiguous_strides(expected) {
        return Ok(());
    }
    Err(Error::Shape { tensor, found, expected: format!("{expected:?}, dense") })
}

fn small(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(|_| {
        layout::unsupported("probe", format!("the number {number}"), format!("at most {}", i32::MAX))
    })
}
