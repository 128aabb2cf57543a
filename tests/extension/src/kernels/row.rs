//! One query among its keys.

use attn::{BlockMask, Element, KeyValue, View, ViewMut};

/// A query, the block of keys that it meets, and the mask between them.
pub(super) struct Row<'r, 'a, T> {
    pub(super) query: View<'a, T>,
    pub(super) kv: KeyValue<'a, T, attn::Cpu>,
    pub(super) mask: &'r BlockMask<'a>,
    pub(super) scale: f32,
    /// Batch, position, head.
    pub(super) at: [usize; 3],
}

impl<T: Element> Row<'_, '_, T> {
    fn kv_head(&self) -> usize {
        self.at[2] / (self.query.shape()[2] / self.kv.key.shape()[2])
    }

    /// The keys that the query attends, each with its scaled product.
    pub(super) fn attended(&self) -> impl Iterator<Item = (usize, f64)> {
        let [batch, position, head] = self.at;
        // Keys behind a row's length are not to be read, so they are not among the candidates.
        let keys = self.mask.keys(batch, self.kv.key.shape()[1]);
        let candidates = self.mask.band.keys_of(position, &(0..keys));
        let allowed = move |key: &usize| {
            let segments = self.mask.segments.is_none_or(|ids| ids.allow(batch, position, *key));
            let dense = self.mask.dense.is_none_or(|dense| {
                let head = if dense.shape()[1] == 1 { 0 } else { head };
                dense.at([batch, head, position, *key]) != 0
            });
            segments && dense
        };
        candidates.filter(allowed).map(move |key| (key, self.product(key)))
    }

    fn product(&self, key: usize) -> f64 {
        let [batch, position, head] = self.at;
        let channels = 0..self.query.shape()[3];
        let sum: f64 = channels
            .map(|c| {
                wide(&self.query, [batch, position, head, c])
                    * wide(&self.kv.key, [batch, key, self.kv_head(), c])
            })
            .sum();
        sum * f64::from(self.scale)
    }

    /// One channel of a key's value.
    pub(super) fn value(&self, key: usize, channel: usize) -> f64 {
        wide(&self.kv.value, [self.at[0], key, self.kv_head(), channel])
    }
}

fn wide<T: Element>(tensor: &View<'_, T>, index: [usize; 4]) -> f64 {
    f64::from(tensor.at(index).to_f32())
}

/// The larger of two products; NaN if one of them is.
pub(super) const fn larger(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

/// All rows of a query: batch, position, head.
pub(super) fn rows([batch, seq, heads, _]: [usize; 4]) -> impl Iterator<Item = [usize; 3]> {
    (0..batch).flat_map(move |b| (0..seq).flat_map(move |i| (0..heads).map(move |h| [b, i, h])))
}

/// Writes a row's output and log-sum-exp.
pub(super) fn write<T: Element>(
    out: &mut ViewMut<'_, T>,
    lse: &mut Option<ViewMut<'_, f32>>,
    [batch, position, head]: [usize; 3],
    output: impl Iterator<Item = f64>,
    logarithm: f64,
) {
    for (channel, value) in output.enumerate() {
        out.set([batch, position, head, channel], T::from_f32(value as f32));
    }
    if let Some(lse) = lse {
        lse.set([batch, position, head, 0], logarithm as f32);
    }
}
