//! Random exchanges, on which all ranks agree: who sends which boxes to whom.

use attn::prelude::*;
use attn::{ExchangePlan, TensorLayout};

use crate::support::Random;

/// A box that goes from a rank to a rank: where it stands in the source and in the destination.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parcel {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) source: [usize; 4],
    pub(super) destination: [usize; 4],
    pub(super) extent: [usize; 4],
}

/// One tensor's exchange, for all ranks.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) seed: u64,
    /// Each rank's source and destination.
    pub(super) sources: Vec<[usize; 4]>,
    pub(super) destinations: Vec<[usize; 4]>,
    /// The order of axes in memory.
    pub(super) layouts: [TensorLayout; 2],
    pub(super) parcels: Vec<Parcel>,
}

impl Exchange {
    /// Some boxes between any two ranks, some of them empty. Boxes of a destination do not overlap.
    pub(super) fn random(random: &mut Random, ranks: usize) -> Self {
        let source = |random: &mut Random| {
            [1 + random.below(2), random.below(9), 1 + random.below(5), 1 + random.below(20)]
        };
        let sources: Vec<[usize; 4]> = (0..ranks).map(|_| source(random)).collect();
        let width = sources.iter().fold([0; 4], |most: [usize; 4], shape| {
            [0, 1, 2, 3].map(|axis: usize| most[axis].max(shape[axis]))
        });
        let mut rows = vec![0; ranks];
        let mut parcels = Vec::new();
        for (from, &shape) in sources.iter().enumerate() {
            for (to, rows) in rows.iter_mut().enumerate() {
                for _ in 0..random.below(4) {
                    let start = shape.map(|length| random.below(length + 1));
                    let extent = [0, 1, 2, 3].map(|axis: usize| random.below(shape[axis] - start[axis] + 1));
                    let offset =
                        |random: &mut Random, axis: usize| random.below(width[axis] - extent[axis] + 1);
                    let destination = [offset(random, 0), *rows, offset(random, 2), offset(random, 3)];
                    *rows += extent[1];
                    parcels.push(Parcel { from, to, source: start, destination, extent });
                }
            }
        }
        let destinations = rows.iter().map(|rows| [width[0], rows + 1, width[2], width[3]]).collect();
        let layouts = [(); 2].map(|()| TensorLayout::ALL[random.below(TensorLayout::ALL.len())]);
        Self { seed: random.next(), sources, destinations, layouts, parcels }
    }

    /// A rank's part.
    pub(super) fn plan(&self, rank: usize) -> ExchangePlan {
        let mut plan = ExchangePlan::default();
        for parcel in &self.parcels {
            if parcel.from == rank {
                plan.send(parcel.to, parcel.source, parcel.extent);
            }
        }
        for parcel in &self.parcels {
            if parcel.to == rank {
                plan.receive(parcel.from, parcel.destination, parcel.extent);
            }
        }
        plan
    }

    /// How many elements a rank sends to others.
    pub(super) fn sent(&self, rank: usize) -> usize {
        let others = self.parcels.iter().filter(|parcel| parcel.from == rank && parcel.to != rank);
        others.map(|parcel| parcel.extent.iter().product::<usize>()).sum()
    }

    /// A rank's source.
    pub(super) fn source<T: super::Numbered>(&self, rank: usize) -> attn::Result<Tensor<T>> {
        let layout = self.layouts[0];
        Tensor::from_fn(layout.permute(self.sources[rank]), |index| {
            super::element(self.seed, rank, layout.permute(index))
        })
    }

    /// What stands in a rank's destination before.
    pub(super) fn untouched<T: super::Numbered>(&self, rank: usize) -> attn::Result<Tensor<T>> {
        Tensor::from_fn(self.layouts[1].permute(self.destinations[rank]), |_| T::number(77))
    }

    /// That what stands there afterwards is what was sent, and nothing else was touched.
    pub(super) fn check<T: super::Numbered>(&self, rank: usize, found: &Tensor<T>) -> attn::Result<()> {
        let layout = self.layouts[1];
        let mut expected = self.untouched::<T>(rank)?;
        let mut view = expected.view_mut().permuted(layout);
        for parcel in self.parcels.iter().filter(|parcel| parcel.to == rank) {
            for_each(parcel.extent, |index| {
                let shifted = |start: [usize; 4]| [0, 1, 2, 3].map(|axis: usize| start[axis] + index[axis]);
                view.set(
                    shifted(parcel.destination),
                    super::element(self.seed, parcel.from, shifted(parcel.source)),
                );
            });
        }
        assert!(found.as_slice() == expected.as_slice(), "rank {rank} of {self:?}");
        Ok(())
    }
}

/// Every index of an extent.
pub(super) fn for_each(extent: [usize; 4], mut body: impl FnMut([usize; 4])) {
    let [a, b, c, d] = extent;
    for index in 0..a * b * c * d {
        body([index / (b * c * d), index / (c * d) % b, index / d % c, index % d]);
    }
}
