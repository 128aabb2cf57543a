//! What is done to queries and keys on their way: as if it had been done beforehand, whoever holds what, and in the pass that
//! lays them out.

use attn::prelude::*;
use attn::{DType, Error, RopePairs};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::cases::{Case, Limits, cases};
use crate::communicator::{Event, Log, Witness};
use crate::support::{
    Inputs, Problem, Random, Setup, WholeEdge, WholeEdges, WithFlash, WithSdpa, angles, attend, attend_with,
    call_with, lse_error, open, relative_error,
};

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
    gather = 0,
    fuse_qkv = false
)]
struct SequenceFirst;

fn wide<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// The call with edges, and the one on tensors to which float64 has done them.
fn check<A, T>(case: &Case) -> Result<(), TestCaseError>
where
    A: ParallelAttention<attn::ThreadComm, T>,
    T: Element,
{
    let Case { setup, problem, seed } = case;
    let inputs = problem.inputs::<T>(*seed);
    let edges = WholeEdges::random(problem, *seed);
    let fails = |error: Error| TestCaseError::fail(format!("{setup}: {error}"));
    let here = attend_with::<A, T>(*setup, &inputs, &edges).map_err(fails)?;
    let before = attend::<A, T>(*setup, &edges.done(&inputs)).map_err(fails)?;
    // Both round once; where fp32 and float64 stand on two sides of a border, a number is off by its last bit.
    let (of_out, of_lse) = match T::DTYPE {
        DType::F32 => (2e-5, 2e-5),
        DType::F16 => (1e-3, 2e-3),
        _ => (8e-3, 2e-2),
    };
    let error = relative_error(&here.rows(), &wide(&before.rows()));
    prop_assert!(error <= of_out, "{}, {}: relative error {:e}", setup, T::DTYPE, error);
    let error = lse_error(&here.all_lse(), &before.all_lse());
    prop_assert!(error <= of_lse, "{}, {}: LSE is off by {:e}", setup, T::DTYPE, error);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn edges_are_what_could_be_done_beforehand(case in cases(Limits::KERNELS), how in 0_usize..7) {
        match how {
            0 => check::<WithFlash, f32>(&case),
            1 => check::<WithFlash, f16>(&case),
            2 => check::<WithFlash, bf16>(&case),
            3 => check::<WithSdpa, f32>(&case),
            4 => check::<HeadsFirst, f32>(&case),
            5 => check::<SequenceFirst, f32>(&case),
            _ => check::<HeadsFirst, bf16>(&case),
        }?;
    }

    /// Each row is done by the same sums, whoever does it.
    #[test]
    fn exchanges_and_gathers_with_edges_equal_one_rank_to_the_bit(
        case in cases(Limits::KERNELS).prop_filter("rings sum in parts", |case| !case.setup.has_ring()),
    ) {
        let Case { setup, problem, seed } = case;
        let inputs = problem.inputs::<f16>(seed);
        let edges = WholeEdges::random(&problem, seed);
        let run = |setup: Setup| {
            attend_with::<WithSdpa, f16>(setup, &inputs, &edges)
                .map_err(|error| TestCaseError::fail(format!("{setup}: {error}")))
        };
        prop_assert_eq!(run(Setup::NONE)?.bits(), run(setup)?.bits(), "{}", setup);
    }
}

/// Some of each strategy, layout and split.
fn setups() -> Vec<Setup> {
    let mut setups = Setup::SAMPLE.to_vec();
    setups.extend([Setup::ulysses(3).uneven(), Setup::hybrid(3, 2).uneven(), Setup::ring(2)]);
    setups.push(Setup::ring(3).layout(RingLayout::Zigzag).uneven());
    setups.push(Setup::ring(2).layout(RingLayout::Striped));
    setups
}

const PROBLEM: Problem = Problem::new(1, 48, 4, 16).kv_heads(4);

/// The same edge for queries and keys.
fn both(query: WholeEdge<f32>) -> WholeEdges<f32> {
    WholeEdges { key: query.clone(), query, joint_query: WholeEdge::NONE, joint_key: WholeEdge::NONE }
}

fn rotated(pairs: usize, order: RopePairs, first: f64) -> WholeEdge<f32> {
    let tables = angles([1, 48, 1, pairs], |[_, s, _, i]| (first + s as f64) / 30_f64.powf(i as f64 / 8.0));
    WholeEdge { norm: None, rope: Some((tables, order)) }
}

#[track_caller]
fn near(setup: Setup, [one, other]: [(&Inputs<f32>, &WholeEdges<f32>); 2]) {
    let [one, other] = [one, other].map(|(inputs, edges)| {
        attend_with::<WithFlash, f32>(setup, inputs, edges).unwrap_or_else(|error| panic!("{setup}: {error}"))
    });
    let error = relative_error(&one.rows(), &wide(&other.rows()));
    assert!(error <= 2e-5, "{setup}: relative error {error:e}");
}

#[test]
fn rotations_are_relative() {
    let inputs = PROBLEM.causal().inputs::<f32>(1);
    for setup in setups().into_iter().filter(|setup| setup.takes(&PROBLEM)) {
        for order in [RopePairs::Interleaved, RopePairs::Halves] {
            let [here, later] = [0.0, 100.0].map(|first| both(rotated(7, order, first)));
            near(setup, [(&inputs, &here), (&inputs, &later)]);
        }
    }
    // A positive control: other distances are another result.
    let still =
        WholeEdges { key: rotated(7, RopePairs::Halves, 3.0), ..both(rotated(7, RopePairs::Halves, 0.0)) };
    let one = attend_with::<WithFlash, f32>(Setup::NONE, &inputs, &still).unwrap();
    let other = attend::<WithFlash, f32>(Setup::NONE, &inputs).unwrap();
    assert!(relative_error(&one.rows(), &wide(&other.rows())) > 1e-2);
}

/// Half of the channels, and then the other half, is every second one, and then the others.
#[test]
fn both_orders_of_pairs_are_one_but_for_the_order_of_channels() {
    let inputs = PROBLEM.inputs::<f32>(2);
    for pairs in [8, 5] {
        let place = |i: usize| match i {
            _ if i >= 2 * pairs => i,
            _ if i.is_multiple_of(2) => i / 2,
            _ => pairs + i / 2,
        };
        let turned = |tensor: &Tensor<f32>| {
            let mut turned = tensor.clone();
            for index in (0..tensor.as_slice().len()).map(|at| [at / 64, at / 16 % 4, at % 16]) {
                let [s, h, i] = index;
                turned.view_mut().set([0, s, h, place(i)], tensor.view().at([0, s, h, i]));
            }
            turned
        };
        let other = Inputs { query: turned(&inputs.query), key: turned(&inputs.key), ..inputs.clone() };
        let neighbours = both(rotated(pairs, RopePairs::Interleaved, 0.0));
        let halves = both(rotated(pairs, RopePairs::Halves, 0.0));
        for setup in setups().into_iter().filter(|setup| setup.takes(&PROBLEM)) {
            near(setup, [(&inputs, &neighbours), (&other, &halves)]);
        }
    }
}

/// By a power of two to the bit.
#[test]
fn the_norm_of_a_row_does_not_know_how_long_it_was() {
    let inputs = PROBLEM.inputs::<f32>(3);
    let mut random = Random(3);
    let weight = Tensor::from_fn([1, 1, 4, 16], |_| random.normal()).unwrap();
    let edges = both(WholeEdge { norm: Some((Some(weight), 0.0)), rope: None });
    let scaled = |tensor: &Tensor<f32>, by: f32| {
        let view = tensor.view();
        Tensor::from_fn(tensor.shape(), |index| view.at(index) * by).unwrap()
    };
    let longer =
        Inputs { query: scaled(&inputs.query, 8.0), key: scaled(&inputs.key, 0.25), ..inputs.clone() };
    for setup in setups().into_iter().filter(|setup| setup.takes(&PROBLEM)) {
        let [one, other] =
            [&inputs, &longer].map(|inputs| attend_with::<WithFlash, f32>(setup, inputs, &edges).unwrap());
        assert_eq!(one.bits(), other.bits(), "{setup}");
    }
}

/// What is asked of the communicator, by every rank.
fn events<A: ParallelAttention<Witness, f32>>(
    setup: Setup,
    problem: Problem,
    edges: bool,
) -> Vec<Vec<Event>> {
    let log = Log::default();
    let inputs = problem.inputs::<f32>(0);
    let edges = edges.then(|| {
        let mut edges = WholeEdges::random(&problem, 0);
        // Both are normalised, and so both are laid out anew.
        edges.query.norm = Some((None, 0.5));
        edges.key.norm = Some((None, 0.5));
        edges
    });
    World::threads(setup.ranks())
        .run(|comm| {
            let mut session = open::<A, _, f32>(Witness::new(comm, &log), setup)?;
            call_with(&mut session, &inputs, edges.as_ref())
        })
        .unwrap_or_else(|error| panic!("{setup}: {error}"));
    let exchanges = |events: Vec<Event>| {
        events.into_iter().filter(|event| matches!(event, Event::Exchange { .. })).collect()
    };
    log.by_rank().into_iter().map(exchanges).collect()
}

#[test]
fn edges_pack_what_is_exchanged() {
    let problem = Problem::new(2, 40, 8, 4).kv_heads(4).joint(3, JointStrategy::Rear);
    for setup in [
        Setup::ulysses(4),
        Setup::hybrid(2, 2),
        Setup::ulysses_allgather(4, 2),
        Setup::ulysses(3).uneven(),
        Setup::hybrid(5, 2).uneven(),
    ] {
        for (with, plain) in events::<WithFlash>(setup, problem, true)
            .into_iter()
            .zip(events::<WithFlash>(setup, problem, false))
            .map(|(with, plain)| (with[0].clone(), plain[0].clone()))
        {
            let Event::Exchange { stage, tensors, runs, .. } = with else { unreachable!() };
            assert_eq!((stage, tensors, runs), ("pre_attention", 3, vec![true, true, false]), "{setup}");
            let Event::Exchange { runs, .. } = plain else { unreachable!() };
            assert_eq!(runs, [false; 3], "{setup}");
        }
    }
}

/// As many bytes in as many collectives; what a rank keeps goes straight to where it is attended.
#[test]
fn edges_move_no_more_and_no_less() {
    let problem = Problem::new(2, 48, 8, 4).kv_heads(2);
    for setup in setups().into_iter().filter(|setup| setup.takes(&problem)) {
        let inputs = problem.inputs::<f16>(5);
        let edges = WholeEdges::random(&problem, 5);
        let moved = |edges: Option<&WholeEdges<f16>>| {
            let world = World::threads(setup.ranks()).threads_per_rank(1);
            let traffic = world.run(|comm| {
                let mut session = open::<WithFlash, _, f16>(comm, setup)?;
                let before = session.traffic();
                call_with(&mut session, &inputs, edges)?;
                Ok::<_, Error>(session.traffic() - before)
            });
            traffic.unwrap_or_else(|error| panic!("{setup}: {error}"))
        };
        assert_eq!(moved(Some(&edges)), moved(None), "{setup}");
    }
}

/// One rank, joint tokens in front: the kernel writes the caller's own output, which nobody has to bring home.
#[test]
fn what_is_computed_where_it_belongs_stays() {
    let problem = Problem::new(2, 10, 4, 4).joint(3, JointStrategy::Front);
    for setup in [Setup::NONE, Setup::ring(1), Setup::allgather_kv(1), Setup::ulysses(1)] {
        for edges in [false, true] {
            let of = |problem| -> Vec<&'static str> {
                let events =
                    events::<WithFlash>(setup, problem, edges).into_iter().next().unwrap_or_default();
                let stage = |event: Event| match event {
                    Event::Exchange { stage, .. } => stage,
                    _ => "",
                };
                events.into_iter().map(stage).filter(|stage| *stage != "gather").collect()
            };
            assert!(of(problem).is_empty(), "{setup}: {:?}", of(problem));
            let rear = Problem { order: JointStrategy::Rear, ..problem };
            assert_eq!(of(rear), ["post_attention"], "{setup}");
        }
    }
}

/// Ranks without positions have tables without rows.
#[test]
fn ranks_without_positions_have_edges_all_the_same() {
    let problem = Problem::new(1, 2, 3, 8);
    for setup in [Setup::ulysses(4).uneven(), Setup::ring(3).uneven(), Setup::hybrid(2, 2).uneven()] {
        check::<WithFlash, f32>(&Case { setup, problem, seed: 7 }).unwrap();
    }
}
