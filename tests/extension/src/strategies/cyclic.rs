//! Ulysses, with the heads dealt out one by one.

use attn::{
    AttentionCall, AttentionKernel, AttentionRequest, AttentionSpec, Communicator, Device, Element, Error,
    ExchangePlan, KeyValue, MaskKinds, ParallelAttentionContext, ParallelAttentionStrategy, Scope, Signature,
    TensorLayout, Transfer, ViewMut,
};

const NAME: &str = "cyclic";

/// Ranks exchange sequence for heads, as under `ulysses`; but key and value head `k`, with all its query heads, goes to
/// rank `k` modulo their number.
///
/// Of the trait's provided methods it overrides none: its sequence stands in equal, consecutive stretches. A dense mask
/// of one head each it does not take, for the heads of a rank are no stretch of it.
#[derive(Debug)]
pub struct CyclicUlysses<C, const SCATTER: usize = 2, const GATHER: usize = 1> {
    group: C,
}

/// Where the output belongs.
pub struct Home<'a, T, D: Device> {
    signature: Signature,
    hands: Hands,
    out: ViewMut<'a, T, D>,
    lse: Option<ViewMut<'a, f32, D>>,
}

impl<T, D: Device> ParallelAttentionContext for Home<'_, T, D> {
    fn name(&self) -> &'static str {
        NAME
    }
}

/// Who holds how much.
#[derive(Clone, Copy, Debug)]
struct Hands {
    me: usize,
    ranks: usize,
    batch: usize,
    kv_heads: usize,
}

impl Hands {
    /// The key and value heads of a rank.
    fn of(self, rank: usize) -> impl Iterator<Item = usize> {
        (rank..self.kv_heads).step_by(self.ranks)
    }

    /// From stretches of the sequence, `length` long, to heads; `group` heads of the tensor go with each that is dealt.
    fn deal(self, [length, group, width]: [usize; 3]) -> ExchangePlan {
        let mut plan = ExchangePlan::default();
        let extent = [self.batch, length, group, width];
        for peer in 0..self.ranks {
            self.of(peer).for_each(|head| plan.send(peer, [0, 0, head * group, 0], extent));
            let mine = self.of(self.me).count();
            (0..mine).for_each(|head| plan.receive(peer, [0, peer * length, head * group, 0], extent));
        }
        plan
    }

    /// The way back.
    fn collect(self, lengths: [usize; 3]) -> ExchangePlan {
        let ExchangePlan { sends, receives } = self.deal(lengths);
        ExchangePlan { sends: receives, receives: sends }
    }
}

impl<K, C, T, const SCATTER: usize, const GATHER: usize> ParallelAttentionStrategy<K, C, T>
    for CyclicUlysses<C, SCATTER, GATHER>
where
    K: AttentionKernel<C::Device, T>,
    C: Communicator,
    T: Element,
{
    const NAME: &'static str = NAME;
    const ENABLED: bool = true;
    const LAYOUT: TensorLayout = TensorLayout::of::<SCATTER, GATHER>();
    const MASKS: MaskKinds = MaskKinds { dense: false, ..K::MASKS };
    type Context<'a> = Home<'a, T, C::Device>;
    type Driven<'a>
        = &'a K
    where
        K: 'a;

    fn open(group: C, _: &AttentionSpec) -> attn::Result<Self> {
        Ok(Self { group })
    }

    fn communicator(&self) -> &C {
        &self.group
    }

    fn pre_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        request: AttentionRequest<'a, T, C::Device>,
    ) -> attn::Result<(AttentionCall<'a, T, C::Device>, Self::Context<'a>)> {
        let mask = request.block_mask();
        let signature = request.signature(NAME, ParallelAttentionStrategy::<K, C, T>::sharding(self));
        let [batch, rows, heads, head_dim] = request.query.shape();
        let [_, keys, kv_heads, _] = request.kv.key.shape();
        let ranks = self.group.size();
        let hands = Hands { me: self.group.rank(), ranks, batch, kv_heads };
        if !kv_heads.is_multiple_of(ranks) {
            return Err(Error::Configuration(format!(
                "strategy `{NAME}`: {kv_heads} key/value heads do not divide among {ranks} ranks"
            )));
        }
        let (mine, group) = (kv_heads / ranks, heads / kv_heads);
        let mut query = scope.take([batch, request.sequence.query, mine * group, head_dim])?;
        let mut key = scope.take([batch, request.sequence.key, mine, head_dim])?;
        let mut value = scope.take(key.shape())?;
        let (deal_query, deal_keys) = (hands.deal([rows, group, head_dim]), hands.deal([keys, 1, head_dim]));
        let mut transfers = [
            Transfer::new(&deal_query, request.query, query.reborrow())?,
            Transfer::new(&deal_keys, request.kv.key, key.reborrow())?,
            Transfer::new(&deal_keys, request.kv.value, value.reborrow())?,
        ];
        self.group.exchange(scope, &signature, &mut transfers)?;

        let out = scope.take(query.shape())?;
        let [batch, seq, heads, _] = query.shape();
        let lse = request.lse.is_some().then(|| scope.take([batch, seq, heads, 1])).transpose()?;
        let home = Home { signature, hands, out: request.out, lse: request.lse };
        let kv = KeyValue { key: key.into_view(), value: value.into_view() };
        let call = AttentionCall { query: query.into_view(), kv, mask, scale: request.scale, out, lse };
        Ok((call, home))
    }

    fn kernel<'a, 'c: 'a>(&'a self, kernel: &'a K, _: &'a Self::Context<'c>) -> &'a K {
        kernel
    }

    fn post_attention<'a>(
        &mut self,
        scope: Scope<'a, C::Device>,
        call: AttentionCall<'a, T, C::Device>,
        home: Self::Context<'a>,
    ) -> attn::Result<()> {
        let Home { signature, hands, out, lse } = home;
        let signature = Signature { stage: "post_attention", ..signature };
        let [_, rows, heads, head_dim] = out.shape();
        let group = heads / hands.kv_heads;
        let (rows_home, logarithms_home) =
            (hands.collect([rows, group, head_dim]), hands.collect([rows, group, 1]));
        let mut transfers = vec![Transfer::new(&rows_home, call.out.into_view(), out)?];
        if let (Some(from), Some(to)) = (call.lse, lse) {
            transfers.push(Transfer::new(&logarithms_home, from.into_view(), to)?);
        }
        self.group.exchange(scope, &signature, &mut transfers)
    }
}
