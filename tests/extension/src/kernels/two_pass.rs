//! A kernel that sees all keys at once.

use attn::{AttentionCall, AttentionKernel, Cpu, Element, MaskKinds, Scope};

use super::row::{Row, larger, rows, write};

/// Softmax attention by its definition: all products of a row, then their exponentials, then the output. Every mask.
///
/// It carries no state, so the strategies that call a kernel once take it, and those with a ring in them do not: the
/// attribute `strategy = "ring", backend = TwoPass` does not compile.
#[derive(Clone, Copy, Debug, Default)]
pub struct TwoPass;

impl<T: Element> AttentionKernel<Cpu, T> for TwoPass {
    const MASKS: MaskKinds = MaskKinds::ALL;

    fn forward(&self, _: Scope<'_, Cpu>, call: &mut AttentionCall<'_, T, Cpu>) -> attn::Result<()> {
        let &mut AttentionCall { query, kv, mask, scale, .. } = call;
        for at in rows(query.shape()) {
            let row = Row { query, kv, mask: &mask, scale, at };
            let products: Vec<(usize, f64)> = row.attended().collect();
            let max = products.iter().fold(f64::NEG_INFINITY, |max, (_, product)| larger(max, *product));
            let channels = 0..query.shape()[3];
            if max == f64::NEG_INFINITY {
                write(&mut call.out, &mut call.lse, at, channels.map(|_| 0.0), f64::NEG_INFINITY);
                continue;
            }
            let weights: Vec<(usize, f64)> =
                products.into_iter().map(|(key, product)| (key, (product - max).exp())).collect();
            let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
            let output = channels
                .map(|c| weights.iter().map(|(key, weight)| weight * row.value(*key, c)).sum::<f64>() / sum);
            write(&mut call.out, &mut call.lse, at, output, max + sum.ln());
        }
        Ok(())
    }
}
