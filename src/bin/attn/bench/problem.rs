//! What is measured.

use attn::tensor::volume;
use attn::{Element, Span};

use crate::cli::{self, Backend, BenchArgs, DeviceName, Form};
use crate::failure::Failure;
use crate::plan::{self, Run};

/// Sizes and settings, the same for all rows. Shapes are of the whole problem, `[batch, seq, heads, head_dim]`.
pub(super) struct Problem {
    pub(super) query: [usize; 4],
    pub(super) key: [usize; 4],
    pub(super) span: Span,
    pub(super) backend: Backend,
    /// Of the GPU's kernel.
    pub(super) form: Option<Form>,
    pub(super) threads: Option<usize>,
    pub(super) runs: usize,
    pub(super) warmup: usize,
    pub(super) gemm_tflops: Option<f64>,
}

impl Problem {
    /// What the command line asks for.
    ///
    /// # Errors
    /// If the numbers do not fit each other.
    pub(super) fn new<T: Element>(args: &BenchArgs, runs: &[Run]) -> Result<Self, Failure> {
        let (shape, warmup) = match args.device {
            DeviceName::Cpu => ([1, 2048, 8, 64], 2),
            // A GPU is done with that before its clock has risen.
            DeviceName::Cuda => ([1, 4096, 16, 128], 10),
        };
        let query @ [batch, seq, heads, head_dim] = args.shape.unwrap_or(shape);
        let key = [batch, args.seq_k.unwrap_or(seq), args.kv_heads.unwrap_or(heads), head_dim];
        if !heads.is_multiple_of(key[2]) {
            return Err(Failure::Input(format!(
                "{} heads of keys and values do not divide the {heads} heads of queries",
                key[2]
            )));
        }
        volume::<T>(query)?;
        volume::<T>(key)?;
        for run in runs {
            plan::check_heads(*run, [heads, key[2]])?;
            plan::check_sequence(*run, "the queries", seq)?;
            plan::check_sequence(*run, "the keys", key[1])?;
        }
        Ok(Self {
            query,
            key,
            span: cli::span(args.mask)?,
            backend: args.backend,
            form: (args.device == DeviceName::Cuda).then(|| args.form.unwrap_or_default()),
            threads: args.threads,
            runs: args.runs,
            warmup: args.warmup.unwrap_or(warmup),
            gemm_tflops: args.gemm_tflops,
        })
    }

    /// Multiplications and additions: of each pair of a query and a key that it attends, `head_dim` of both in either
    /// product.
    pub(super) fn operations(&self) -> f64 {
        let [batch, queries, heads, head_dim] = self.query;
        4.0 * [batch, heads, head_dim].map(|n| n as f64).iter().product::<f64>()
            * self.pairs(queries, self.key[1])
    }

    /// How many keys all queries of a head attend together.
    fn pairs(&self, queries: usize, keys: usize) -> f64 {
        // The last query stands at the last key. Of query i those keys lie before its own position that are fewer than
        // i + shift, and those up to the `right`-th behind it that are fewer than i + shift + right + 1.
        let shift = keys as f64 - queries as f64;
        let (queries, keys) = (queries as f64, keys as f64);
        let up_to_own = keys_before(queries, keys, shift + 1.0);
        match self.span {
            Span::Full => queries * keys,
            Span::Causal => up_to_own,
            Span::Window { left, right } => {
                let end = keys_before(queries, keys, shift + 1.0 + right as f64);
                end - keys_before(queries, keys, shift - left as f64)
            }
        }
    }

    /// What attention takes at least, where the device's rate is known.
    pub(super) fn floor_ms(&self) -> Option<f64> {
        self.gemm_tflops.map(|rate| self.operations() / rate / 1e9)
    }

    /// On how many ranks resharding is measured: of those asked for the most that the tensor divides among, or some
    /// number that it does. None if there is none.
    pub(super) fn reshard_ranks(&self, runs: &[Run]) -> Option<usize> {
        let [_, seq, heads, _] = self.query;
        let divides =
            |ranks: &usize| *ranks > 1 && seq.is_multiple_of(*ranks) && heads.is_multiple_of(*ranks);
        let asked = runs.iter().map(Run::ranks).filter(divides).max();
        asked.or_else(|| [4, 2, heads].into_iter().find(divides))
    }
}

/// The sum over all queries `i` of how many of `keys` are fewer than `i + offset`.
fn keys_before(queries: f64, keys: f64, offset: f64) -> f64 {
    // None for the first queries, all for the last, and one more from query to query between them.
    let first = (1.0 - offset).clamp(0.0, queries);
    let last = (keys - offset).clamp(first, queries);
    let between = last - first;
    between * (first + offset) + between * (between - 1.0) / 2.0 + (queries - last) * keys
}

#[cfg(test)]
mod tests {
    use attn::Band;

    use super::*;

    #[test]
    fn a_mask_by_position_counts_the_pairs_that_it_leaves() {
        let window = |left, right| Span::Window { left, right };
        let spans = [Span::Full, Span::Causal, window(0, 0), window(2, 1), window(0, 4), window(9, 9)];
        for (queries, keys) in [(1, 1), (5, 5), (3, 8), (8, 3), (1, 9), (9, 1), (12, 12)] {
            for span in spans {
                let problem = Problem {
                    query: [1, queries, 1, 1],
                    key: [1, keys, 1, 1],
                    span,
                    backend: Backend::Flash,
                    form: None,
                    threads: None,
                    runs: 1,
                    warmup: 0,
                    gemm_tflops: None,
                };
                let band = Band::of_span(span, queries, keys);
                let attended: usize = (0..queries).map(|query| band.keys_of(query, &(0..keys)).len()).sum();
                assert_eq!(
                    problem.operations(),
                    4.0 * attended as f64,
                    "{queries} queries, {keys} keys, {span}"
                );
            }
        }
    }
}
