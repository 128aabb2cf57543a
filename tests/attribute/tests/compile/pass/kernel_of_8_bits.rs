//! A kernel of the user's own that computes in 8 bits can be given tensors in them, and by other strategies as they are.

use attn::prelude::*;
use attn::{
    AttentionCall, AttentionKernel, Device, Error, QuantisedAttention, QuantisedShard, QuantisedTensors, Scope,
};

/// Computes nothing.
#[derive(Default)]
struct Eight;

impl<D: Device, T: Element> AttentionKernel<D, T> for Eight {
    fn forward(&self, _: Scope<'_, D>, _: &mut AttentionCall<'_, T, D>) -> attn::Result<()> {
        Ok(())
    }
}

impl<D: Device, T: Element> QuantisedAttention<D, T> for Eight {
    const BLOCK_KEYS: usize = 4;
    const KEY_SCALES: usize = 1;

    fn survey<'a>(
        &self,
        _: Scope<'a, D>,
        _: &mut QuantisedShard<'a, T, D>,
        _: ViewMut<'_, f32, D>,
    ) -> attn::Result<()> {
        Ok(())
    }

    fn settle(
        &self,
        _: Scope<'_, D>,
        _: &mut QuantisedShard<'_, T, D>,
        _: View<'_, f32, D>,
    ) -> attn::Result<()> {
        Ok(())
    }

    fn edge_maxima(
        &self,
        _: Scope<'_, D>,
        _: &QuantisedShard<'_, T, D>,
        _: ViewMut<'_, f32, D>,
    ) -> attn::Result<()> {
        Ok(())
    }

    fn quantise(
        &self,
        _: Scope<'_, D>,
        _: &QuantisedShard<'_, T, D>,
        _: Option<View<'_, f32, D>>,
        _: &mut QuantisedTensors<'_, D>,
    ) -> attn::Result<()> {
        Ok(())
    }

    fn attend(
        &self,
        _: Scope<'_, D>,
        _: &QuantisedTensors<'_, D>,
        _: View<'_, f32, D>,
        _: Option<View<'_, i32, D>>,
        _: &mut AttentionCall<'_, T, D>,
    ) -> attn::Result<()> {
        Ok(())
    }
}

#[parallel_attention(strategy = ["none", "ulysses", "ulysses_quantised"], heads = 4, fuse_qkv = true, backend = Eight)]
struct Chosen;

#[parallel_attention(strategy = "ulysses_quantised", scatter = 1, gather = 2, ulysses = 2, backend = Eight)]
struct Fixed;

/// One call on two ranks, with keys that are sharded or replicated.
fn attend(config: &ParallelConfig, keys: usize) -> attn::Result<Vec<u64>> {
    World::threads(2).run(|comm| {
        let mut session = Session::<Chosen, _, f32>::open_with(comm, config)?;
        let tensor = |seq| Tensor::from_fn([1, seq, 4, 8], |_| 1.0_f32);
        let (query, key) = (tensor(2)?, tensor(keys)?);
        let mut metadata = AttentionMetadata::default();
        if keys != 2 {
            metadata = metadata.with_replicated_keys();
        }
        session.attend(&query, &key, &key, &metadata)?;
        Ok::<_, Error>(session.traffic().collectives)
    })
}

fn main() -> attn::Result<()> {
    World::threads(2).run(|comm| Session::<Fixed, _, f32>::open(comm).map(drop))?;
    let by_degree = ParallelConfig { ulysses_degree: Some(2), ..ParallelConfig::default() };
    assert_eq!(attend(&by_degree, 2)?, [2, 2]);
    assert_eq!(attend(&by_degree, 3)?, [2, 2]);
    let by_name = ParallelConfig::strategy("ulysses_quantised");
    assert_eq!(attend(&by_name, 2)?, [4, 4], "sums, the block of keys that lies on both, tensors; and back");
    // What one of the listed strategies takes another may not.
    let error = attend(&by_name, 3).unwrap_err();
    assert!(matches!(&error, Error::NotTaken { .. }), "{error:?}");
    assert!(error.to_string().contains("such as `ulysses`"), "{error}");
    Ok(())
}
