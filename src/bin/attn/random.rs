//! Values that look random, the same on every machine and for every number of ranks.

use attn::tensor::volume;
use attn::{Cpu, Device, Element, Error, Tensor};

/// After how many values a stream begins anew: a prime, so that no two rows of a tensor are alike. Large tensors are
/// then made as fast as memory is written.
const PERIOD: usize = 1_048_583;

/// Positions `first..first + length` of the tensor that a stream fills, `[batch, seq, heads, head_dim]`. Values are
/// about normal with mean 0 and variance 1, at most 3.5 in size.
///
/// # Errors
/// If the memory cannot be had.
pub(crate) fn positions<T: Element>(
    stream: u64,
    [batch, seq, heads, head_dim]: [usize; 4],
    first: usize,
    length: usize,
) -> attn::Result<Tensor<T>> {
    let (shape, width) = ([batch, length, heads, head_dim], heads * head_dim);
    let wanted = volume::<T>(shape)?;
    let values: Vec<T> =
        (0..PERIOD.min(batch * seq * width)).map(|index| T::from_f32(normal(stream, index as u64))).collect();
    let mut elements = Vec::new();
    let bytes = wanted * size_of::<T>();
    elements.try_reserve_exact(wanted).map_err(|_| Error::OutOfMemory { device: Cpu::NAME, bytes })?;
    for b in 0..batch {
        let mut at = (b * seq + first) * width % values.len().max(1);
        let end = (b + 1) * length * width;
        while elements.len() < end {
            let part = (values.len() - at).min(end - elements.len());
            elements.extend_from_slice(&values[at..at + part]);
            at = 0;
        }
    }
    Tensor::from_slice(&elements, shape)
}

/// The value at `index` of a stream.
fn normal(stream: u64, index: u64) -> f32 {
    // The generator splitmix64, one step from a state that the index decides. The sum of four uniform numbers is close
    // to normal; theirs has a variance of 4/3.
    let mut bits = (stream << 48).wrapping_add(index).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^= bits >> 31;
    let quarters = [0, 16, 32, 48].map(|shift| i32::from(((bits >> shift) as u16).cast_signed()));
    quarters.iter().sum::<i32>() as f32 * (0.75_f32.sqrt() / 32768.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_about_normal() {
        let values: Vec<f64> = (0..100_000).map(|index| f64::from(normal(1, index))).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let moment = |power| values.iter().map(|x| x.powi(power)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.01 && (moment(2) - 1.0).abs() < 0.01, "{mean} {}", moment(2));
        // Of a normal distribution it is 3, of this one 2.7.
        assert!((moment(4) - 2.7).abs() < 0.1, "{}", moment(4));
        assert!(values.iter().all(|x| x.abs() <= 3.5));
    }

    #[test]
    fn a_part_is_a_part_of_the_whole() {
        let positions =
            |stream, first, length| positions::<f32>(stream, [2, 6, 3, 4], first, length).unwrap();
        let (whole, part) = (positions(2, 0, 6), positions(2, 2, 3));
        for [b, s, h, d] in [[0, 0, 0, 0], [1, 0, 2, 3], [1, 2, 0, 1]] {
            assert_eq!(part.view().at([b, s, h, d]), whole.view().at([b, s + 2, h, d]));
        }
        assert_ne!(positions(3, 2, 3), part);
    }

    #[test]
    fn long_streams_begin_anew() {
        let tensor = positions::<f32>(1, [1, 3, 1, PERIOD / 2], 0, 3).unwrap();
        assert_eq!(tensor.as_slice()[PERIOD..], tensor.as_slice()[..tensor.as_slice().len() - PERIOD]);
        let part = positions::<f32>(1, [1, 3, 1, PERIOD / 2], 2, 1).unwrap();
        assert_eq!(part.as_slice(), &tensor.as_slice()[2 * (PERIOD / 2)..]);
    }
}
