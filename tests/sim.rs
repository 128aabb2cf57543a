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

/// docs/gpu.md says of each kernel what the code does.
#[test]
fn the_table_in_the_documents_is_what_the_code_says() {
    use attn::cuda::{Architecture, kernels};
    let page = include_str!("../docs/gpu.md");
    let said: Vec<&str> = page
        .lines()
        .skip_while(|line| !line.starts_with("| kernel | compute capability |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let of_code = kernels().map(|(name, info)| {
        let cards = match info.needs {
            Architecture::Hopper => "9.0",
            Architecture::Ampere => "8.0 and later",
            other => panic!("{other:?} is in no table"),
        };
        let elements: Vec<String> = info.elements.iter().map(ToString::to_string).collect();
        let scale = if info.positive_scale { "above 0" } else { "any" };
        let alignment = match info.alignment {
            1 => String::from("any"),
            bytes => format!("multiples of {bytes} bytes"),
        };
        let head_dims = info.head_dims_text();
        format!("| `{name}` | {cards} | {} | {head_dims} | {scale} | {alignment} |", elements.join(", "))
    });
    assert_eq!(said, of_code);
}

/// What must find a fault planted in one of the kernels; `scripts/mutate-kernels` runs these.
mod mutants {
    use super::*;
    use crate::kernels::attend::{Kernel, Which};
    use crate::kernels::flash::{a_bit_of_everything, a_bit_of_irregular_masks, a_bit_of_shared_tiles};
    use attn::cuda::FlashForm::{Overlapped, Simple};

    #[test]
    fn sdpa() {
        crate::kernels::sdpa::a_bit_of_everything::<Simulator>();
    }

    #[test]
    fn sage_sm90_d64() {
        sage(64, crate::kernels::sage::Which::Sm90);
    }

    #[test]
    fn sage_sm90_d128() {
        sage(128, crate::kernels::sage::Which::Sm90);
    }

    #[test]
    fn sage_sm80_d64() {
        sage(64, crate::kernels::sage::Which::Sm80);
    }

    #[test]
    fn sage_sm80_d128() {
        sage(128, crate::kernels::sage::Which::Sm80);
    }

    fn sage(head_dim: usize, which: crate::kernels::sage::Which) {
        crate::kernels::sage::a_bit_of_everything::<Simulator>(crate::kernels::sage::Kernel {
            head_dim,
            which,
        });
    }

    macro_rules! bits {
        ($($name:ident: $bit:ident, $head_dim:literal, $which:expr;)*) => {$(
            #[test]
            fn $name() {
                $bit::<Simulator>(Kernel { head_dim: $head_dim, which: $which });
            }
        )*};
    }

    bits! {
        d32_overlapped: a_bit_of_everything, 32, Which::Sm90(Overlapped);
        d64_simple: a_bit_of_everything, 64, Which::Sm90(Simple);
        d64_overlapped: a_bit_of_everything, 64, Which::Sm90(Overlapped);
        d96_overlapped: a_bit_of_everything, 96, Which::Sm90(Overlapped);
        d128_simple: a_bit_of_everything, 128, Which::Sm90(Simple);
        d128_overlapped: a_bit_of_everything, 128, Which::Sm90(Overlapped);
        d192_overlapped: a_bit_of_everything, 192, Which::Sm90(Overlapped);
        d256_simple: a_bit_of_everything, 256, Which::Sm90(Simple);
        d256_overlapped: a_bit_of_everything, 256, Which::Sm90(Overlapped);
        d64_irregular: a_bit_of_irregular_masks, 64, Which::Sm90(Overlapped);
        d128_irregular: a_bit_of_irregular_masks, 128, Which::Sm90(Overlapped);
        d256_irregular: a_bit_of_irregular_masks, 256, Which::Sm90(Overlapped);
        d96_packed: a_bit_of_shared_tiles, 96, Which::Sm90(Overlapped);
        d128_packed: a_bit_of_shared_tiles, 128, Which::Sm90(Overlapped);
        d256_packed: a_bit_of_shared_tiles, 256, Which::Sm90(Overlapped);
        sm80_d32: a_bit_of_everything, 32, Which::Sm80;
        sm80_d96: a_bit_of_everything, 96, Which::Sm80;
        sm80_d128: a_bit_of_everything, 128, Which::Sm80;
        sm80_d192: a_bit_of_everything, 192, Which::Sm80;
        sm80_d64_irregular: a_bit_of_irregular_masks, 64, Which::Sm80;
        sm80_d128_irregular: a_bit_of_irregular_masks, 128, Which::Sm80;
        sm80_d64_packed: a_bit_of_shared_tiles, 64, Which::Sm80;
    }
}
