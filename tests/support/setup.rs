//! Which strategy runs, on how many ranks, and how these share the work.

use std::fmt;

use attn::prelude::*;
use attn::{KeyPlacement, Sharding};

use super::Problem;

/// A strategy and its degrees, layout and split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    pub strategy: &'static str,
    /// What the session must say of itself.
    pub sharding: Sharding,
}

impl Setup {
    /// One rank.
    pub const NONE: Self = Self { strategy: "none", sharding: Sharding::ONE };

    /// Each strategy, on few ranks.
    pub const SAMPLE: [Self; 10] = [
        Self::NONE,
        Self::ulysses(4),
        Self::ring(1),
        Self::ring(3),
        Self::ring(4).layout(RingLayout::Zigzag),
        Self::hybrid(2, 2),
        Self::hybrid(2, 3).layout(RingLayout::Striped),
        Self::allgather_kv(3),
        Self::ulysses_allgather(2, 2),
        Self::ulysses_allgather(1, 2),
    ];

    const fn of(strategy: &'static str, ulysses: usize, outer: usize) -> Self {
        Self { strategy, sharding: Sharding { ulysses, outer, ..Sharding::ONE } }
    }

    pub const fn ulysses(ranks: usize) -> Self {
        Self::of("ulysses", ranks, 1)
    }

    pub const fn ring(ranks: usize) -> Self {
        Self::of("ring", 1, ranks)
    }

    pub const fn hybrid(ulysses: usize, ring: usize) -> Self {
        Self::of("hybrid", ulysses, ring)
    }

    pub const fn allgather_kv(ranks: usize) -> Self {
        Self::of("allgather_kv", 1, ranks)
    }

    pub const fn ulysses_allgather(ulysses: usize, allgather: usize) -> Self {
        Self::of("ulysses_allgather", ulysses, allgather)
    }

    pub const fn layout(mut self, layout: RingLayout) -> Self {
        self.sharding.layout = layout;
        self
    }

    pub const fn uneven(mut self) -> Self {
        self.sharding.split = Split::Uneven;
        self
    }

    pub const fn ranks(&self) -> usize {
        self.sharding.ranks()
    }

    /// Every strategy that runs on so many ranks, with every pair of degrees and every layout; strict.
    pub fn of_ranks(ranks: usize) -> Vec<Self> {
        let mut setups = vec![Self::ulysses(ranks), Self::allgather_kv(ranks)];
        if ranks == 1 {
            setups.push(Self::NONE);
        }
        setups.extend(RingLayout::ALL.map(|layout| Self::ring(ranks).layout(layout)));
        for ulysses in (1..=ranks).filter(|degree| ranks.is_multiple_of(*degree)) {
            let outer = ranks / ulysses;
            setups.push(Self::ulysses_allgather(ulysses, outer));
            setups.extend(RingLayout::ALL.map(|layout| Self::hybrid(ulysses, outer).layout(layout)));
        }
        setups
    }

    /// Whether the strategy stands in a ring.
    pub fn has_ring(&self) -> bool {
        matches!(self.strategy, "ring" | "hybrid")
    }

    /// Whether the shapes of a problem divide as the split asks.
    pub fn takes(&self, problem: &Problem) -> bool {
        let Problem { seq_q, seq_k, heads, kv_heads, keys, .. } = *problem;
        let sequence = |seq: usize| self.sharding.sequence(seq).is_ok();
        sequence(seq_q)
            && (keys == KeyPlacement::Replicated || sequence(seq_k))
            && self.sharding.heads(heads, kv_heads).is_ok()
    }

    /// What a program would ask for at start-up.
    pub fn config(&self) -> ParallelConfig {
        let Sharding { ulysses, outer, layout, split } = self.sharding;
        let (ulysses, ring, allgather) = match self.strategy {
            "hybrid" => (Some(ulysses), Some(outer), None),
            "ulysses_allgather" => (Some(ulysses), None, Some(outer)),
            _ => (None, None, None),
        };
        ParallelConfig {
            ulysses_degree: ulysses,
            ring_degree: ring,
            allgather_degree: allgather,
            layout: (layout != RingLayout::Contiguous).then_some(layout),
            split: (split != Split::Strict).then_some(split),
            ..ParallelConfig::strategy(self.strategy)
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sharding { ulysses, outer, layout, split } = self.sharding;
        write!(f, "{} {ulysses} x {outer} {} {}", self.strategy, layout.name(), split.name())
    }
}
