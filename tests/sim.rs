//! The GPU's kernels in the host simulator. ATTN_SIM_SEED (1 unless set) shuffles the order of threads and the delays
//! of the copy engine in every test.

#[macro_use]
mod kernels;
mod support;

use attn::cuda::SimQueue;
use kernels::rig::Rig;

/// The simulated GPU.
struct Simulator;

impl Rig for Simulator {
    type Queue = SimQueue;

    fn queue(seed: u64) -> Option<SimQueue> {
        let base = std::env::var("ATTN_SIM_SEED").ok().map_or(1, |seed| seed.parse().expect("a number"));
        Some(SimQueue::seeded(seed.wrapping_add(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(base))).unwrap())
    }
}

kernel_tests!(Simulator);

#[global_allocator]
static ALLOCATOR: support::counting::Counting = support::counting::Counting;

/// What must find a fault planted in one of the kernels; `scripts/mutate-kernels` runs these.
mod mutants {
    use super::*;
    use crate::kernels::flash::{Kernel, Which, a_bit_of_everything};
    use attn::cuda::FlashForm::{Overlapped, Simple};

    #[test]
    fn d64_simple() {
        a_bit_of_everything::<Simulator>(Kernel { head_dim: 64, which: Which::Sm90(Simple) });
    }

    #[test]
    fn d64_overlapped() {
        a_bit_of_everything::<Simulator>(Kernel { head_dim: 64, which: Which::Sm90(Overlapped) });
    }

    #[test]
    fn d128_simple() {
        a_bit_of_everything::<Simulator>(Kernel { head_dim: 128, which: Which::Sm90(Simple) });
    }

    #[test]
    fn d128_overlapped() {
        a_bit_of_everything::<Simulator>(Kernel { head_dim: 128, which: Which::Sm90(Overlapped) });
    }

    #[test]
    fn d256_simple() {
        a_bit_of_everything::<Simulator>(Kernel { head_dim: 256, which: Which::Sm90(Simple) });
    }

    #[test]
    fn d256_overlapped() {
        a_bit_of_everything::<Simulator>(Kernel { head_dim: 256, which: Which::Sm90(Overlapped) });
    }
}
