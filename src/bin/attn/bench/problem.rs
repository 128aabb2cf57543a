//! What is measured.

use attn::tensor::volume;
use attn::{Element, Mask};

use crate::cli::{Backend, BenchArgs, DeviceName, Form};
use crate::failure::Failure;
use crate::plan::{self, Run};

/// Sizes and settings, the same for all rows. Shapes are of the whole problem, `[batch, seq, heads, head_dim]`.
pub(super) struct Problem {
    pub(super) query: [usize; 4],
    pub(super) key: [usize; 4],
    pub(super) mask: Mask,
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
            plan::check_split(*run, "the queries", seq, [heads, key[2]])?;
            plan::check_split(*run, "the keys", key[1], [heads, key[2]])?;
        }
        Ok(Self {
            query,
            key,
            mask: args.mask.into(),
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
        let (most, keys) = (queries.min(keys) as f64, keys as f64);
        match self.mask {
            // The last query attends all keys, each before it one less, as long as there are any.
            Mask::Causal => most * (most + 1.0) / 2.0 + queries as f64 * (keys - most),
            _ => queries as f64 * keys,
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
        let asked = runs.iter().map(|run| run.ranks).filter(divides).max();
        asked.or_else(|| [4, 2, heads].into_iter().find(divides))
    }
}

#[cfg(test)]
mod tests {
    use attn::Band;

    use super::*;

    #[test]
    fn a_causal_mask_counts_the_pairs_that_it_leaves() {
        for (queries, keys) in [(1, 1), (5, 5), (3, 8), (8, 3), (1, 9), (9, 1)] {
            let problem = Problem {
                query: [1, queries, 1, 1],
                key: [1, keys, 1, 1],
                mask: Mask::Causal,
                backend: Backend::Flash,
                form: None,
                threads: None,
                runs: 1,
                warmup: 0,
                gemm_tflops: None,
            };
            let band = Band::causal(queries, keys);
            let attended: usize = (0..queries).map(|query| band.keys_of(query, &(0..keys)).len()).sum();
            assert_eq!(problem.operations(), 4.0 * attended as f64, "{queries} queries, {keys} keys");
        }
    }
}
