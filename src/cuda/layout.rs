//! What the kernels take, checked on the host before anything is queued: alignment, strides, sizes, bands.

use core::ptr::NonNull;

use attn_runtime::{Band, Element, Error, Result};

use super::abi;

/// Bytes that the copy engine of the GPU steps by, and that the kernels read and write at a time.
pub(crate) const ALIGN: usize = 16;

/// Strides of the copy engine end below this many bytes.
const STRIDE_END: usize = 1 << 40;

/// The longest axis: no sum of two positions and a block overflows an `i32` in a kernel.
const AXIS_MAX: usize = 1 << 28;

const AXES: [&str; 4] = ["batch", "seq", "heads", "head_dim"];

/// A kernel was asked for what it does not compute.
pub(crate) fn unsupported(
    kernel: &'static str,
    what: impl Into<String>,
    supported: impl Into<String>,
) -> Error {
    Error::Unsupported { kernel, what: what.into(), supported: supported.into() }
}

/// How a kernel's tensors must lie, besides rows being dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// What bases and strides are multiples of, in bytes.
    align: usize,
    /// Whether strides may be 0, and as large as they like.
    any_stride: bool,
}

impl Rules {
    /// As the copy engine wants it.
    pub(crate) const COPY_ENGINE: Self = Self { align: ALIGN, any_stride: false };
    /// Element by element.
    pub(crate) const PLAIN: Self = Self { align: 1, any_stride: true };
}

/// Describes `[batch, seq, heads, head_dim]` for the kernels.
///
/// # Errors
/// If the base or a stride is none that the kernel can step by.
pub(crate) fn tensor<T: Element>(
    kernel: &'static str,
    name: &'static str,
    rules: Rules,
    base: NonNull<T>,
    shape: [usize; 4],
    strides: [usize; 4],
) -> Result<abi::Tensor> {
    let address = base.as_ptr().addr();
    if !address.is_multiple_of(rules.align) {
        let what = format!("address {address:#x}");
        return Err(Error::Misaligned { tensor: name, what, needed: rules.align });
    }
    if strides[3] != 1 && shape[3] > 1 {
        return Err(unsupported(
            kernel,
            format!("`{name}` with elements of a row {} apart", strides[3]),
            "head_dim must be dense (stride 1): copy the tensor into a layout whose last axis it is",
        ));
    }
    let mut described = [0_i64; 3];
    for (axis, described) in described.iter_mut().enumerate() {
        // Nothing steps along an axis of length 1, or through an empty tensor, but the copy engine wants to be told a
        // stride that it could step by.
        let stepped = shape[axis] > 1 && !shape.contains(&0);
        let stride = if stepped { strides[axis] } else { shape[3] };
        *described = match rules.any_stride {
            // A view's strides count elements of one allocation.
            true => stride as i64,
            false => step::<T>(kernel, name, axis, stride)?,
        };
    }
    let [batch_stride, seq_stride, head_stride] = described;
    Ok(abi::Tensor { base: base.as_ptr().cast(), batch_stride, seq_stride, head_stride })
}

/// A stride that the copy engine can step by.
fn step<T: Element>(kernel: &'static str, name: &'static str, axis: usize, stride: usize) -> Result<i64> {
    let label = AXES[axis];
    if stride == 0 {
        let cure = match label {
            "heads" => {
                "give fewer `kv_heads`, each of which `heads / kv_heads` query heads attend with, or copy it"
            }
            _ => "copy it into a tensor of its own",
        };
        return Err(unsupported(kernel, format!("`{name}` with {label} repeated by a stride of 0"), cure));
    }
    let bytes = stride.saturating_mul(size_of::<T>());
    if bytes >= STRIDE_END {
        let what = format!("`{name}` with a {label} stride of {bytes} bytes");
        return Err(unsupported(kernel, what, format!("strides end below 2^40 ({STRIDE_END}) bytes")));
    }
    if !bytes.is_multiple_of(ALIGN) {
        let what = format!("{label} stride of {stride} elements ({bytes} bytes)");
        return Err(Error::Misaligned { tensor: name, what, needed: ALIGN });
    }
    // Below 2^40, by the lines above.
    Ok(stride as i64)
}

/// Describes one float for each row, `[batch, seq, heads, 1]`: any strides will do.
pub(crate) fn rows(base: NonNull<f32>, strides: [usize; 4]) -> abi::Rows {
    // Strides of a view that is written count elements of one allocation, and so fit an `i64`; those of axes of
    // length 1 are never multiplied with anything but 0.
    let [batch_stride, seq_stride, head_stride, _] = strides.map(|stride| stride as i64);
    abi::Rows { base: base.as_ptr(), batch_stride, seq_stride, head_stride }
}

/// That a tensor has the shape which the others ask for.
///
/// # Errors
/// If not, or if it is empty.
pub(crate) fn shape(
    name: &'static str,
    found: [usize; 4],
    expected: [usize; 4],
    what: &'static str,
) -> Result<()> {
    agrees(name, found, expected, what)?;
    not_empty(name, found)
}

/// That a tensor, possibly an empty one, has the shape which the others ask for.
///
/// # Errors
/// If not.
pub(crate) fn agrees(
    name: &'static str,
    found: [usize; 4],
    expected: [usize; 4],
    what: &'static str,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let expected = format!("{expected:?} ({what}; axes are batch, seq, heads, head_dim)");
    Err(Error::Shape { tensor: name, found, expected })
}

/// That no axis of a tensor has length 0.
///
/// # Errors
/// If one has.
pub(crate) fn not_empty(name: &'static str, found: [usize; 4]) -> Result<()> {
    if found.contains(&0) { Err(Error::Empty { tensor: name, found }) } else { Ok(()) }
}

/// An axis' length as the kernels count it.
///
/// # Errors
/// If it is too long.
pub(crate) fn length(kernel: &'static str, axis: &'static str, length: usize) -> Result<i32> {
    match i32::try_from(length) {
        Ok(short) if length <= AXIS_MAX => Ok(short),
        _ => Err(unsupported(kernel, format!("{axis} = {length}"), format!("an axis ends at {AXIS_MAX}"))),
    }
}

/// That rows can be counted by an `i32`.
///
/// # Errors
/// If they cannot.
pub(crate) fn count_rows(kernel: &'static str, [batch, seq, heads, _]: [usize; 4]) -> Result<()> {
    let rows = batch.checked_mul(seq).and_then(|rows| rows.checked_mul(heads));
    if rows.is_some_and(|rows| i32::try_from(rows).is_ok()) {
        return Ok(());
    }
    let what = format!("batch * seq * heads = {batch} * {seq} * {heads} rows");
    Err(unsupported(kernel, what, format!("at most {} in one call: split the batch", i32::MAX)))
}

/// The same band over `seq_q` queries and `seq_k` keys in fewer bits.
///
/// Offsets of a key and a query lie strictly between `-seq_q` and `seq_k`, so whatever lies beyond these may as well
/// lie there.
pub(crate) fn band(band: Band, seq_q: i32, seq_k: i32) -> (i32, i32) {
    let near = |offset: i64| offset.clamp(-i64::from(seq_q), i64::from(seq_k)) as i32;
    (near(band.lo), near(band.hi))
}

/// A softmax scale that the kernels can take: they look for the largest product before they scale.
///
/// # Errors
/// If it is not above zero, or so small or large that its exponent is lost on the way.
pub(crate) fn scale(kernel: &'static str, scale: f32) -> Result<f32> {
    if !scale.is_finite() {
        return Err(Error::Scale(scale));
    }
    if scale > 0.0 && scale.is_normal() && (scale * core::f32::consts::LOG2_E).is_finite() {
        return Ok(scale);
    }
    Err(unsupported(
        kernel,
        format!("a softmax scale of {scale:?}"),
        "it looks for a row's largest product before it scales, so the scale must be above 0 (and not denormal); \
         negate the query instead",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn described(address: usize, shape: [usize; 4], strides: [usize; 4]) -> Result<abi::Tensor> {
        let base = NonNull::new(core::ptr::without_provenance_mut::<bf16>(address)).unwrap();
        tensor("flash", "key", Rules::COPY_ENGINE, base, shape, strides)
    }

    fn message<T: core::fmt::Debug>(outcome: Result<T>) -> String {
        outcome.unwrap_err().to_string()
    }

    #[test]
    fn strides_cross_as_they_are() {
        let tensor = described(4096, [2, 100, 8, 64], [51200, 64, 6400, 1]).unwrap();
        assert_eq!((tensor.batch_stride, tensor.seq_stride, tensor.head_stride), (51200, 64, 6400));
        assert_eq!(tensor.base.addr(), 4096);
    }

    #[test]
    fn an_axis_of_one_has_a_stride_that_can_be_stepped_by() {
        for stride in [0, 3, usize::MAX] {
            let tensor = described(4096, [1, 1, 1, 64], [stride, stride, stride, 1]).unwrap();
            assert_eq!((tensor.batch_stride, tensor.seq_stride, tensor.head_stride), (64, 64, 64));
        }
    }

    #[test]
    fn an_address_off_16_bytes_is_refused_with_its_number() {
        let said = message(described(4098, [1, 2, 1, 64], [128, 64, 64, 1]));
        assert!(
            said.contains("`key`") && said.contains("address 0x1002") && said.contains("16 bytes"),
            "{said}"
        );
        assert!(described(4096 + 16, [1, 2, 1, 64], [128, 64, 64, 1]).is_ok());
    }

    #[test]
    fn a_stride_off_16_bytes_is_refused_with_its_numbers() {
        let said = message(described(4096, [1, 2, 1, 64], [0, 65, 64, 1]));
        assert!(said.contains("seq stride of 65 elements (130 bytes)"), "{said}");
        let said = message(described(4096, [2, 2, 2, 64], [1001, 128, 64, 1]));
        assert!(said.contains("batch stride of 1001 elements (2002 bytes)"), "{said}");
        assert!(described(4096, [1, 2, 1, 64], [0, 72, 64, 1]).is_ok());
    }

    #[test]
    fn strides_of_2_to_the_40_bytes_are_refused() {
        let said = message(described(4096, [2, 1, 1, 64], [1 << 39, 64, 64, 1]));
        assert!(said.contains("1099511627776 bytes") && said.contains("2^40"), "{said}");
        assert!(described(4096, [2, 1, 1, 64], [(1 << 39) - 8, 64, 64, 1]).is_ok());
        assert!(described(4096, [2, 1, 1, 64], [usize::MAX - 7, 64, 64, 1]).is_err());
    }

    #[test]
    fn repeated_heads_are_refused_with_the_cure() {
        let said = message(described(4096, [1, 2, 8, 64], [128, 64, 0, 1]));
        assert!(said.contains("heads repeated by a stride of 0") && said.contains("kv_heads"), "{said}");
        let said = message(described(4096, [1, 2, 8, 64], [512, 0, 64, 1]));
        assert!(said.contains("seq repeated") && said.contains("copy it"), "{said}");
    }

    #[test]
    fn rows_must_be_dense() {
        let said = message(described(4096, [1, 2, 8, 64], [1024, 512, 1, 8]));
        assert!(said.contains("elements of a row 8 apart") && said.contains("stride 1"), "{said}");
    }

    #[test]
    fn axes_end_where_sums_of_two_would_overflow() {
        assert_eq!(length("flash", "seq", 1 << 28).unwrap(), 1 << 28);
        let said = message(length("flash", "seq_k", (1 << 28) + 1));
        assert!(said.contains("seq_k = 268435457") && said.contains("268435456"), "{said}");
        assert!(length("flash", "seq", usize::MAX).is_err());
        assert!(count_rows("flash", [1, i32::MAX as usize, 1, 64]).is_ok());
        assert!(count_rows("flash", [2, 1 << 30, 1, 64]).is_err());
        assert!(count_rows("flash", [usize::MAX, 2, 1, 64]).is_err());
    }

    #[test]
    fn a_band_means_the_same_in_32_bits() {
        let cases = [
            Band::FULL,
            Band::causal(5, 5),
            Band::causal(3, 7),
            Band::causal(7, 3),
            Band { lo: i64::MIN, hi: i64::MAX },
            Band { lo: i64::MAX, hi: i64::MIN },
            Band { lo: 1 << 31, hi: 1 << 33 },
            Band { lo: -(1 << 33), hi: -(1 << 31) },
            Band { lo: -6, hi: -5 },
            Band { lo: 2, hi: 1 },
            Band { lo: 6, hi: 7 },
            Band::FULL.from_block(3, 1000),
            Band::causal(8, 8).from_block(0, 1 << 40),
        ];
        for wide in cases {
            for (queries, keys) in [(1, 1), (5, 7), (7, 5), (1, 8), (8, 1)] {
                let (lo, hi) = band(wide, queries, keys);
                assert!(lo >= -queries && hi <= keys && hi >= -queries && lo <= keys);
                for i in 0..queries {
                    for j in 0..keys {
                        let offset = i64::from(j - i);
                        assert_eq!(
                            wide.lo <= offset && offset <= wide.hi,
                            lo <= j - i && j - i <= hi,
                            "{wide:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn scales_that_are_not_above_zero_are_refused() {
        for fine in [1.0, 0.125, 1e-30, 1e30] {
            assert_eq!(scale("flash", fine).unwrap(), fine);
        }
        for bad in [0.0, -0.0, -1.0, 1e-40, f32::MAX] {
            let said = message(scale("flash", bad));
            assert!(said.contains("softmax scale") && said.contains("negate the query"), "{said}");
        }
        assert!(matches!(scale("flash", f32::NAN), Err(Error::Scale(_))));
        assert!(matches!(scale("flash", f32::INFINITY), Err(Error::Scale(_))));
    }

    #[test]
    fn empty_and_unlike_shapes_are_refused() {
        let said = message(shape("value", [1, 2, 3, 64], [1, 2, 4, 64], "the key's shape"));
        assert!(said.contains("[1, 2, 4, 64] (the key's shape"), "{said}");
        assert!(matches!(
            shape("value", [1, 0, 3, 64], [1, 0, 3, 64], "the key's shape"),
            Err(Error::Empty { tensor: "value", .. })
        ));
    }
}
