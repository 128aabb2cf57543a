//! Which keys of a block the queries of a tile attend: a bit for each.

use core::ops::Range;

use crate::device::Cpu;
use crate::kernel::cpu::rows::read;
use crate::kernel::{BlockMask, Cover};

/// Keys of a block: as many as a row has bits.
pub(super) const BLOCK: usize = u64::BITS as usize;

/// The first `count` bits.
#[inline(always)]
const fn first(count: usize) -> u64 {
    if count == 0 { 0 } else { u64::MAX >> (BLOCK - count) }
}

/// The bits of one row in runs of neighbours, in order.
#[inline(always)]
pub(super) fn runs(mut bits: u64) -> impl Iterator<Item = Range<usize>> {
    core::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let start = bits.trailing_zeros() as usize;
        let end = start + (bits >> start).trailing_ones() as usize;
        bits &= !first(end);
        Some(start..end)
    })
}

/// Looks how the queries of one head cover a block of keys, none of which is padding. If they attend some of it and not
/// all, `rows` is filled with what each of them attends, and only then.
#[inline(always)]
pub(super) fn look(
    mask: &BlockMask<'_, Cpu>,
    [batch, head]: [usize; 2],
    queries: &Range<usize>,
    keys: &Range<usize>,
    rows: &mut [u64],
) -> Cover {
    let cover = mask.cover(batch, queries, keys);
    if cover != Cover::Partial {
        return cover;
    }
    let mut ids = [0; BLOCK];
    if let Some(segments) = &mask.segments {
        for (id, key) in ids.iter_mut().zip(keys.clone()) {
            *id = segments.key.at(batch, key);
        }
    }
    let every = first(keys.len());
    let (mut any, mut all) = (0, every);
    for (bits, query) in rows.iter_mut().zip(queries.clone()) {
        let inside = mask.band.keys_of(query, keys);
        *bits = first(inside.end - keys.start) & !first(inside.start - keys.start);
        if let Some(segments) = &mask.segments {
            let own = segments.query.at(batch, query);
            *bits &= pack(&ids, |id| *id == own);
        }
        if let Some(dense) = &mask.dense {
            let mut bytes = [0; BLOCK];
            let row = [batch, if dense.shape()[1] == 1 { 0 } else { head }, query];
            read(dense, row, keys.start, &mut bytes[..keys.len()], |byte| byte);
            *bits &= pack(&bytes, |byte| *byte != 0);
        }
        any |= *bits;
        all &= *bits;
    }
    if any == 0 {
        Cover::Skip
    } else if all == every {
        Cover::Full
    } else {
        Cover::Partial
    }
}

/// A bit for each of a block's values.
#[inline(always)]
fn pack<V>(values: &[V; BLOCK], test: impl Fn(&V) -> bool) -> u64 {
    values.iter().enumerate().fold(0, |bits, (index, value)| bits | (u64::from(test(value)) << index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Band, BlockSegments, SegmentIds};
    use crate::tensor::View;
    use attn_plan::Run;
    use proptest::prelude::*;

    #[test]
    fn runs_are_the_bits_in_order() {
        let collected = |bits| runs(bits).collect::<Vec<_>>();
        assert_eq!(collected(0), []);
        assert_eq!(runs(u64::MAX).next(), Some(0..64));
        assert_eq!(collected(0b1011_0011), [0..2, 4..6, 7..8]);
        assert_eq!(collected(1 << 63 | 1), [0..1, 63..64]);
    }

    proptest! {
        #[test]
        fn every_bit_is_what_the_mask_says(
            ids in proptest::collection::vec(0_i32..3, 2 * 100),
            bytes in proptest::collection::vec(0_u8..3, 9 * 100),
            (uniform_ids, uniform_bytes) in any::<(bool, bool)>(),
            (lo, hi) in (-100_i64..10, -10_i64..100),
            (has_segments, has_dense) in any::<(bool, bool)>(),
            (q, nq, k, nk) in (0_usize..8, 1_usize..9, 0_usize..36, 1_usize..65),
        ) {
            let (ids, bytes) = (
                if uniform_ids { vec![5; 200] } else { ids },
                if uniform_bytes { vec![7; 900] } else { bytes },
            );
            let run = |len| Run { start: 0, step: 1, len };
            let mask = BlockMask::<Cpu> {
                band: Band { lo, hi },
                key_lengths: None,
                segments: has_segments.then(|| BlockSegments {
                    query: SegmentIds::new(&ids, 100, run(9)),
                    key: SegmentIds::new(&ids[100..], 100, run(100)),
                }),
                dense: if has_dense { Some(View::new(&bytes, [1, 1, 9, 100]).unwrap()) } else { None },
            };
            let (queries, keys) = (q..(q + nq).min(9), k..(k + nk).min(100));
            let right: Vec<Vec<bool>> = queries
                .clone()
                .map(|i| keys.clone().map(|j| mask.attends(0, 3, i, j)).collect())
                .collect();
            let count = right.iter().flatten().filter(|attends| **attends).count();
            let mut rows = [0; 9];
            match look(&mask, [0, 3], &queries, &keys, &mut rows) {
                Cover::Skip => prop_assert_eq!(count, 0),
                Cover::Full => prop_assert_eq!(count, queries.len() * keys.len()),
                Cover::Partial => {
                    prop_assert!(count > 0 && count < queries.len() * keys.len());
                    for (bits, right) in rows.iter().zip(&right) {
                        let found: Vec<bool> = (0..keys.len()).map(|j| bits >> j & 1 == 1).collect();
                        prop_assert_eq!(&found, right);
                        let runs: Vec<usize> = runs(*bits).flatten().collect();
                        let set: Vec<usize> = (0..keys.len()).filter(|j| right[*j]).collect();
                        prop_assert_eq!(runs, set);
                    }
                }
            }
        }
    }
}
