//! How far results may be off dense attention in float64, and off what one rank computes.

use attn::prelude::*;
use attn::{DType, Mask};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::cases::{Case, Limits, cases};
use crate::support::{Setup, WithFlash, WithSdpa, attend, lse_error, oracle, relative_error};

#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = "flash",
    scatter = 1,
    gather = 2
)]
struct HeadsFirst;

#[parallel_attention(
    strategy = ["none", "ulysses", "ring", "hybrid", "allgather_kv", "ulysses_allgather"],
    backend = "sdpa",
    scatter = 2,
    gather = 0
)]
struct SequenceFirst;

/// What a relative error may be.
struct Bounds {
    absolute: f64,
    /// Of what one rank's is.
    factor: f64,
    /// What it may be beyond that.
    slack: f64,
}

impl Bounds {
    fn of(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self { absolute: 1e-5, factor: 2.5, slack: 1e-6 },
            // Outputs are sums in fp32, rounded once, to the nearest. Of two such sums `a` and `b` of an exact `y`, the
            // rounded `b` is off by no more than the rounded `a` and `|a - y| + |a - b| + |b - y|`, three errors of
            // fp32.
            DType::F16 => Self { absolute: 8e-4, factor: 1.3, slack: 3e-6 },
            _ => Self { absolute: 4e-3, factor: 1.3, slack: 3e-6 },
        }
    }
}

/// Runs a case as it is and on one rank.
fn check<A, T>(case: &Case) -> Result<(), TestCaseError>
where
    A: ParallelAttention<attn::ThreadComm, T>,
    T: Element,
{
    let Case { setup, problem, seed } = case;
    let inputs = problem.inputs::<T>(*seed);
    let exact = oracle(&inputs);
    let error_of = |setup: Setup| {
        let whole = attend::<A, T>(setup, &inputs)
            .map_err(|error| TestCaseError::fail(format!("{setup}: {error}")))?;
        let lse = lse_error(&whole.all_lse(), &exact.all_lse());
        prop_assert!(lse <= 2e-5, "{}: LSE is off by {:e}", setup, lse);
        Ok(relative_error(&whole.rows(), &exact.rows()))
    };
    let (one, many) = (error_of(Setup::NONE)?, error_of(*setup)?);
    let Bounds { absolute, factor, slack } = Bounds::of(T::DTYPE);
    prop_assert!(one <= absolute, "one rank, {}: relative error {:e}", T::DTYPE, one);
    prop_assert!(many <= absolute, "{}, {}: relative error {:e}", setup, T::DTYPE, many);
    prop_assert!(
        many <= factor * one + slack,
        "{}, {}: relative error {:e}, one rank's {:e}",
        setup,
        T::DTYPE,
        many,
        one
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    #[test]
    fn results_are_within_bounds(case in cases(Limits::KERNELS), how in 0_usize..9) {
        match how {
            0 => check::<WithFlash, f32>(&case),
            1 => check::<WithFlash, f16>(&case),
            2 => check::<WithFlash, bf16>(&case),
            3 => check::<WithSdpa, f32>(&case),
            4 => check::<WithSdpa, f16>(&case),
            5 => check::<WithSdpa, bf16>(&case),
            6 => check::<HeadsFirst, f16>(&case),
            7 => check::<HeadsFirst, f32>(&case),
            _ => check::<SequenceFirst, bf16>(&case),
        }?;
    }
}

/// Under which masks a strategy's ranks do the very sums that one rank does.
fn same_sums(setup: Setup, tiled: bool, mask: Mask) -> bool {
    match setup.strategy {
        // Whole heads, with all their queries and keys.
        "none" | "ulysses" => true,
        // Some queries of a head, with all their keys in order. A tiled kernel sums a block of keys in another way if
        // another query of its tile attends but part of it, so there the mask must treat all queries alike.
        "allgather_kv" | "ulysses_allgather" => {
            !tiled || mask == (Mask { key_lengths: mask.key_lengths, ..Mask::NONE })
        }
        _ => false,
    }
}

fn same<A, T>(case: &Case, tiled: bool) -> Result<(), TestCaseError>
where
    A: ParallelAttention<attn::ThreadComm, T>,
    T: Element,
{
    let Case { setup, problem, seed } = case;
    if same_sums(*setup, tiled, problem.mask) {
        let inputs = problem.inputs::<T>(*seed);
        let run = |setup: Setup| {
            attend::<A, T>(setup, &inputs).map_err(|error| TestCaseError::fail(format!("{setup}: {error}")))
        };
        let (one, many) = (run(Setup::NONE)?, run(*setup)?);
        prop_assert_eq!(one.bits(), many.bits(), "{}", setup);
    }
    Ok(())
}

fn without_ring() -> impl Strategy<Value = Case> {
    cases(Limits::KERNELS).prop_map(|mut case| {
        if case.setup.has_ring() {
            // A ring's strict shapes suit the all-gather of its degrees, whose shares are contiguous.
            let sharding = case.setup.sharding;
            case.setup = Setup { sharding, ..Setup::ulysses_allgather(1, 1) }.layout(RingLayout::Contiguous);
        }
        case
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// An exchange moves elements and changes none.
    #[test]
    fn exchanges_and_gathers_equal_one_rank_to_the_bit(case in without_ring(), how in 0_usize..4) {
        match how {
            0 => same::<WithFlash, f32>(&case, true),
            1 => same::<WithFlash, bf16>(&case, true),
            2 => same::<WithSdpa, f32>(&case, false),
            _ => same::<WithSdpa, f16>(&case, false),
        }?;
    }
}
