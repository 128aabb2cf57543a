//! All-gather, one partner at a time.

use attn::{
    AttentionCall, AttentionKernel, AttentionRequest, AttentionSpec, BlockMask, Communicator, Element, Error,
    ExchangePlan, KeyPlacement, KeyValue, MaskKinds, ParallelAttentionContext, ParallelAttentionStrategy,
    Run, Scope, Sharding, Signature, TensorLayout, Transfer,
};

const NAME: &str = "pairwise";

/// Every rank keeps its queries and gets all keys and values, in as many rounds as there are ranks: in each, a rank
/// trades with one partner (or with none: then it copies its own). So no rank is sent two shards at a time.
#[derive(Debug)]
pub struct PairwiseAllGather<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    group: C,
    sharding: Sharding,
}

/// Nothing has to be brought back.
#[derive(Debug)]
pub struct Stays;

impl ParallelAttentionContext for Stays {
    fn name(&self) -> &'static str {
        NAME
    }
}

impl<K, C, T, const SCATTER: usize, const GATHER: usize> ParallelAttentionStrategy<K, C, T>
    for PairwiseAllGather<C, SCATTER, GATHER>
where
    K: AttentionKernel<C::Device, T>,
    C: Communicator,
    T: Element,
{
    const NAME: &'static str = NAME;
    const ENABLED: bool = true;
    const LAYOUT: TensorLayout = TensorLayout::of::<SCATTER, GATHER>();
    const MASKS: MaskKinds = K::MASKS;
    const REPLICATED_KEYS: bool = true;
    type Context<'a> = Stays;
    type Driven<'a>
        = &'a K
    where
        K: 'a;

    fn open(group: C, spec: &AttentionSpec) -> attn::Result<Self> {
        let sharding = Sharding { outer: group.size(), ..Sharding::ONE };
        let asked = Sharding {
            layout: spec.layout.unwrap_or_default(),
            split: spec.split.unwrap_or_default(),
            ..sharding
        };
        if asked != sharding {
            let message = format!(
                "strategy `{NAME}` shares in equal, consecutive stretches: leave layout and split out"
            );
            return Err(Error::Configuration(message));
        }
        Ok(Self { group, sharding })
    }

    fn communicator(&self) -> &C {
        &self.group
    }

    fn sharding(&self) -> Sharding {
        self.sharding
    }

    fn pre_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> attn::Result<(AttentionCall<'a, T, C::Device>, Stays)> {
        let signature = request.signature(NAME, self.sharding);
        let mask = self.mask(&request)?;
        let kv = match request.keys {
            KeyPlacement::Sharded => self.gather(scope, &signature, &request)?,
            KeyPlacement::Replicated => {
                // Nothing to move, but ranks that call differently must learn of it.
                self.group.exchange(scope, &signature, &mut [])?;
                request.kv
            }
        };
        let AttentionRequest { query, scale, out, lse, .. } = request;
        Ok((AttentionCall { query, kv, mask, scale, out, lse }, Stays))
    }

    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, _: &'a Stays) -> &'a K {
        kernel
    }

    fn post_attention<'a>(
        &mut self,
        _: Scope<'a, C::Device>,
        _: AttentionCall<'a, T, C::Device>,
        _: Stays,
    ) -> attn::Result<()> {
        Ok(())
    }
}

impl<C: Communicator, const SCATTER: usize, const GATHER: usize> PairwiseAllGather<C, SCATTER, GATHER> {
    /// The positions of a rank's shard.
    fn shard(&self, seq: usize, rank: usize) -> attn::Result<Run> {
        let layout = self.sharding.sequence(seq)?;
        Ok(layout.positions(rank).runs().next().map_or(Run::EMPTY, |(_, run)| run))
    }

    /// The mask of this rank's queries and all keys.
    fn mask<'a, T: Element>(
        &self,
        request: &AttentionRequest<'a, T, C::Device>,
    ) -> attn::Result<BlockMask<'a, C::Device>> {
        let rows = self.shard(request.sequence.query, self.group.rank())?;
        request.block_mask_of(rows, Run::of(0..request.sequence.key))
    }

    /// All ranks' keys and values, in natural order.
    fn gather<'a, T: Element>(
        &self,
        scope: Scope<'a, C::Device>,
        signature: &Signature,
        request: &AttentionRequest<'a, T, C::Device>,
    ) -> attn::Result<KeyValue<'a, T, C::Device>> {
        let (me, ranks, seq) = (self.group.rank(), self.group.size(), request.sequence.key);
        let [batch, _, heads, head_dim] = request.kv.key.shape();
        let whole = [batch, seq, heads, head_dim];
        let (mut key, mut value) = (scope.take(whole)?, scope.take(whole)?);
        let extent = |rank: usize| Ok::<_, Error>([batch, self.shard(seq, rank)?.len, heads, head_dim]);
        for round in 0..ranks {
            // Whose partner's partner I am: numbers that add up to the round.
            let partner = (round + ranks - me) % ranks;
            let mut plan = ExchangePlan::default();
            plan.send(partner, [0; 4], extent(me)?);
            plan.receive(partner, [0, self.shard(seq, partner)?.start, 0, 0], extent(partner)?);
            let mut transfers = [
                Transfer::new(&plan, request.kv.key, key.reborrow())?,
                Transfer::new(&plan, request.kv.value, value.reborrow())?,
            ];
            self.group.exchange(scope, signature, &mut transfers)?;
        }
        Ok(KeyValue { key: key.into_view(), value: value.into_view() })
    }
}
