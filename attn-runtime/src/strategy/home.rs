//! What strategies that exchange share: plans by shape, and the way home for what the kernel wrote.

use std::sync::Arc;

use attn_plan::Span;

use crate::comm::{Communicator, ExchangePlan, Signature, Transfer};
use crate::device::{Device, Scope};
use crate::error::Result;
use crate::kernel::AttentionCall;
use crate::metadata::{JointStrategy, KeyPlacement};
use crate::tensor::{Element, ViewMut};

/// How many shapes' plans are kept: more at once than a model has.
const PLANS: usize = 32;

/// Plans by shape. The shape that was used longest ago goes first.
#[derive(Debug)]
pub(super) struct PlanCache<P> {
    entries: Vec<(Geometry, Arc<P>)>,
}

/// What a plan depends on: shapes of query and key, where keys are, joint tokens and where they stand, the span.
type Geometry = ([usize; 4], [usize; 4], KeyPlacement, (usize, JointStrategy), Span);

impl<P> PlanCache<P> {
    pub(super) fn new() -> Self {
        Self { entries: Vec::with_capacity(PLANS) }
    }

    /// The plans for a call; made if its shapes are new.
    pub(super) fn get(&mut self, call: &Signature, make: impl FnOnce() -> Result<P>) -> Result<Arc<P>> {
        let geometry = (call.query, call.key, call.keys, call.joint, call.mask.span);
        let entry = match self.entries.iter().position(|(other, _)| *other == geometry) {
            Some(index) => self.entries.remove(index),
            None => {
                let plans = make()?;
                if self.entries.len() == PLANS {
                    self.entries.remove(0);
                }
                (geometry, Arc::new(plans))
            }
        };
        let plans = Arc::clone(&entry.1);
        self.entries.push(entry);
        Ok(plans)
    }
}

/// The plans that lead an output and its log-sum-exp home: the same boxes, `head_dim` and 1 wide.
#[derive(Debug, Default)]
pub(super) struct HomePlans {
    out: ExchangePlan,
    lse: ExchangePlan,
}

impl HomePlans {
    /// Adds a box of rows and heads that goes to `peer`: `[batch, rows, heads, head_dim]` from a row and head on.
    pub(super) fn send(&mut self, peer: usize, [row, head]: [usize; 2], extent: [usize; 4]) {
        let [batch, rows, heads, _] = extent;
        self.out.send(peer, [0, row, head, 0], extent);
        self.lse.send(peer, [0, row, head, 0], [batch, rows, heads, 1]);
    }

    /// Adds a box of rows and heads that comes from `peer`.
    pub(super) fn receive(&mut self, peer: usize, [row, head]: [usize; 2], extent: [usize; 4]) {
        let [batch, rows, heads, _] = extent;
        self.out.receive(peer, [0, row, head, 0], extent);
        self.lse.receive(peer, [0, row, head, 0], [batch, rows, heads, 1]);
    }
}

/// Where what the kernel writes into scratch memory belongs in the end.
pub(super) struct Home<'a, T, D: Device> {
    signature: Signature,
    out: ViewMut<'a, T, D>,
    lse: Option<ViewMut<'a, f32, D>>,
}

/// What the kernel writes: the output, and the log-sum-exp if it is wanted.
pub(super) type Written<'a, T, D> = (ViewMut<'a, T, D>, Option<ViewMut<'a, f32, D>>);

impl<'a, T: Element, D: Device> Home<'a, T, D> {
    /// Keeps the caller's outputs, and takes scratch memory of a shape for the kernel to write instead.
    pub(super) fn keep(
        scope: Scope<'a, D>,
        signature: Signature,
        (out, lse): Written<'a, T, D>,
        shape: [usize; 4],
    ) -> Result<(Self, Written<'a, T, D>)> {
        let [batch, rows, heads, _] = shape;
        let scratch = scope.take(shape)?;
        let scratch_lse = lse.is_some().then(|| scope.take([batch, rows, heads, 1])).transpose()?;
        let signature = Signature { stage: "post_attention", ..signature };
        Ok((Self { signature, out, lse }, (scratch, scratch_lse)))
    }

    /// Sends what a call has written home.
    pub(super) fn send<C: Communicator<Device = D>>(
        self,
        group: &C,
        scope: Scope<'a, D>,
        plans: &HomePlans,
        call: AttentionCall<'a, T, D>,
    ) -> Result<()> {
        let out = Transfer::new(&plans.out, call.out.into_view(), self.out)?;
        match (call.lse, self.lse) {
            (Some(from), Some(to)) => {
                let lse = Transfer::new(&plans.lse, from.into_view(), to)?;
                group.exchange(scope, &self.signature, &mut [out, lse])
            }
            _ => group.exchange(scope, &self.signature, &mut [out]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;
    use attn_plan::{Mask, Sharding};

    fn call(seq: usize, scale: f32) -> Signature {
        Signature {
            strategy: "test",
            stage: "test",
            call: 1,
            dtype: DType::F32,
            query: [1, seq, 2, 8],
            key: [1, seq, 2, 8],
            keys: KeyPlacement::Sharded,
            joint: (0, JointStrategy::Front),
            sharding: Sharding::ONE,
            mask: Mask::NONE,
            digest: 0,
            scale_bits: scale.to_bits(),
            edges: 0,
            lse: false,
        }
    }

    #[test]
    fn plans_are_made_once_for_a_shape_whatever_the_scale() {
        let mut cache = PlanCache::new();
        for round in 0..3 {
            for seq in 1..=PLANS {
                let plan = cache
                    .get(&call(seq, round as f32), || if round == 0 { Ok(seq) } else { panic!("made anew") });
                assert_eq!(*plan.unwrap(), seq);
            }
        }
    }

    #[test]
    fn the_shape_that_was_used_longest_ago_goes_first() {
        let mut cache = PlanCache::new();
        for seq in 1..=PLANS {
            cache.get(&call(seq, 1.0), || Ok(seq)).unwrap();
        }
        cache.get(&call(1, 1.0), || panic!("made anew")).unwrap();
        cache.get(&call(PLANS + 1, 1.0), || Ok(0)).unwrap();
        cache.get(&call(1, 1.0), || panic!("made anew")).unwrap();
        let mut made = false;
        cache
            .get(&call(2, 1.0), || {
                made = true;
                Ok(2)
            })
            .unwrap();
        assert!(made);
    }
}
