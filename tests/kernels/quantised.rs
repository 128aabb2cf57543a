//! Ulysses that exchanges in 8 bits: as one rank that has everything, bit by bit.

use attn::comm::threads::Queues;
use attn::cuda::{Half, SageSm90};
use attn::prelude::*;
use attn::{
    AttentionSpec, NoParallelAttention, Pipeline, ThreadComm, UlyssesParallelAttention,
    UlyssesQuantisedParallelAttention,
};

use crate::kernels::rig::{DeviceOf, Rig};
use crate::kernels::strategies::{part_by, poison_padding};
use crate::support::{Inputs, Problem, Setup, Whole, assemble, lse_error, oracle, relative_error};

/// Pipelines round `sage`.
macro_rules! round_sage {
    ($($(#[$doc:meta])* $name:ident: $strategy:ident;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl<C: Communicator, T: Half> ParallelAttention<C, T> for $name
        where
            Pipeline<$strategy<C>, SageSm90, C, T>: attn::AttentionPipeline<C, T>,
        {
            type Pipeline = Pipeline<$strategy<C>, SageSm90, C, T>;
            const SPEC: AttentionSpec = AttentionSpec::new();
        }
    )*};
}

round_sage! {
    /// One rank.
    Alone: NoParallelAttention;
    /// Exchanges in 16 bits.
    Plain: UlyssesParallelAttention;
    /// Exchanges in 8.
    Quantised: UlyssesQuantisedParallelAttention;
}

const QUANTISED: &str = "ulysses_quantised";

/// What all ranks make, and what they send in a call. None if there is no device.
fn attend<A, R: Rig, T: Half>(setup: Setup, inputs: &Inputs<T>) -> Option<(Whole<T>, u64)>
where
    A: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    let queues: Vec<R::Queue> = (0..setup.ranks()).map_while(|rank| R::queue(rank as u64)).collect();
    if queues.is_empty() {
        return None;
    }
    let parts = World::<Queues<DeviceOf<R>>>::on_queues(queues)
        .run(|comm| part_by::<A, R, T, _>(comm, setup, inputs, None))
        .unwrap_or_else(|error| panic!("{setup}, {:?}: {error}", inputs.problem));
    let (shards, sent): (Vec<_>, Vec<u64>) = parts.into_iter().unzip();
    Some((assemble(&inputs.problem, setup.sharding, &shards), sent.iter().sum()))
}

/// Makes keys whose sums are the same in any order, with an offset.
fn round_keys<T: Half>(inputs: &mut Inputs<T>) {
    let joint = inputs.joint.iter_mut().map(|[_, key, _]| key);
    for key in core::iter::once(&mut inputs.key).chain(joint) {
        for (i, key) in key.as_mut_slice().iter_mut().enumerate() {
            let offset = if i % 3 == 0 { 4.0 } else { -3.0 };
            *key = T::from_f32(((key.to_f32() + offset) * 8.0).round().clamp(-127.0, 127.0) / 8.0);
        }
    }
}

#[track_caller]
fn verify<R: Rig, T: Half>(problem: Problem, setups: &[Setup])
where
    Alone: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
    Quantised: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    for seed in 0..2 {
        let mut inputs = problem.inputs::<T>(seed);
        round_keys(&mut inputs);
        poison_padding(&mut inputs);
        let Some((one, _)) = attend::<Alone, R, T>(Setup::NONE, &inputs) else { return };
        for &setup in setups {
            let setup = Setup { strategy: QUANTISED, ..setup };
            let (whole, _) = attend::<Quantised, R, T>(setup, &inputs).unwrap();
            assert_eq!(whole.bits(), one.bits(), "{setup}, {problem:?}");
        }
    }
}

macro_rules! law {
    ($($(#[$doc:meta])* $name:ident: $($problem:expr => $setups:expr),*;)*) => {$(
        $(#[$doc])*
        pub fn $name<R: Rig, T: Half>()
        where
            Alone: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
            Quantised: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
        {
            $(verify::<R, T>($problem, &$setups);)*
        }
    )*};
}

law! {
    /// Blocks of keys lie on one rank, on two, on three; or there is one rank.
    ranks_make_what_one_would:
        Problem::new(1, 256, 4, 64) => [Setup::ulysses(1), Setup::ulysses(2)],
        Problem::new(1, 300, 4, 64).kv_heads(2) => [Setup::ulysses(2), Setup::ulysses(4)],
        Problem::new(2, 132, 3, 128).seq_k(144).causal() => [Setup::ulysses(3)];
    /// Key heads that several ranks attend with.
    key_heads_go_to_several_ranks:
        Problem::new(2, 136, 4, 64).kv_heads(1) => [Setup::ulysses(4)],
        Problem::new(1, 72, 8, 64).kv_heads(2).window(20, 5) => [Setup::ulysses(4)];
    /// Lengths that end in each of the ranks, and before the first.
    padding_is_nobodys:
        Problem::new(4, 180, 2, 64).key_lengths() => [Setup::ulysses(2)],
        Problem::new(3, 268, 4, 128).kv_heads(2).key_lengths().causal() => [Setup::ulysses(4)];
    /// Joint tokens, which the first rank rounds.
    joint_tokens_come_first:
        Problem::new(1, 128, 2, 64).joint(13, JointStrategy::Front) => [Setup::ulysses(2)],
        Problem::new(2, 72, 4, 64).kv_heads(2).joint(130, JointStrategy::Rear).key_lengths() => [Setup::ulysses(2)];
    /// Uneven shares, some of them empty.
    uneven_shares_cover_the_whole:
        Problem::new(2, 167, 4, 64).kv_heads(4).seq_k(131) => [Setup::ulysses(4).uneven()],
        Problem::new(2, 2, 4, 64) => [Setup::ulysses(4).uneven()],
        Problem::new(1, 2, 4, 64).joint(1, JointStrategy::Front) => [Setup::ulysses(4).uneven()];
    /// Segments and dense masks.
    masks_cross_ranks:
        Problem::new(1, 160, 2, 64).segments() => [Setup::ulysses(2)],
        Problem::new(1, 140, 4, 64).kv_heads(2).dense(true).window(90, 30) => [Setup::ulysses(2)];
}

/// Whatever the numbers, ranks are as near to float64 as one.
pub fn ranks_are_as_near_as_one<R: Rig, T: Half>()
where
    Alone: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
    Quantised: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    for offset in [0.0, 20.0] {
        let mut inputs = Problem::new(1, 420, 4, 64).kv_heads(2).inputs::<T>(7);
        for key in inputs.key.as_mut_slice() {
            *key = T::from_f32(key.to_f32() + offset);
        }
        let exact = oracle(&inputs);
        let off = |whole: &Whole<T>| {
            let lse = lse_error(&whole.all_lse(), &exact.all_lse());
            (relative_error(&whole.rows(), &exact.rows()), lse)
        };
        let Some((one, _)) = attend::<Alone, R, T>(Setup::NONE, &inputs) else { return };
        let setup = Setup { strategy: QUANTISED, ..Setup::ulysses(4) };
        let (whole, _) = attend::<Quantised, R, T>(setup, &inputs).unwrap();
        let ((one, one_lse), (many, many_lse)) = (off(&one), off(&whole));
        assert!(many <= 5e-2 && many <= 1.1 * one, "offset {offset}: {many:e}, one rank {one:e}");
        assert!(many_lse <= 1.1 * one_lse + 1e-4, "offset {offset}: LSE {many_lse:e}, one rank {one_lse:e}");
    }
}

/// Of what Ulysses sends of queries, keys and values in 16 bits, at most 0.53, with all that ranks tell each other.
pub fn half_the_bytes_go<R: Rig, T: Half>()
where
    Plain: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
    Quantised: ParallelAttention<ThreadComm<DeviceOf<R>>, T>,
{
    for (seq, kv_heads, head_dim, ranks) in [(4096, 4, 128, 4), (4100, 4, 64, 2)] {
        // Next to nothing is computed.
        let problem = Problem::new(1, seq, 4, head_dim).kv_heads(kv_heads).window(0, 0);
        let inputs = problem.inputs::<T>(3);
        let Some((_, plain)) = attend::<Plain, R, T>(Setup::ulysses(ranks), &inputs) else { return };
        let setup = Setup { strategy: QUANTISED, ..Setup::ulysses(ranks) };
        let (_, quantised) = attend::<Quantised, R, T>(setup, &inputs).unwrap();
        // On their way home outputs take as many bytes in both, and so do log-sum-exps.
        let others = (seq * 4 - seq * 4 / ranks) as u64;
        let home = others * (2 * head_dim as u64 + 4);
        let [plain, quantised] = [plain, quantised].map(|sent| sent - home);
        assert_eq!(plain, others * 3 * 2 * head_dim as u64, "queries, keys and values in 16 bits");
        let part = quantised as f64 / plain as f64;
        println!("{problem:?} on {ranks} ranks: {quantised} of {plain} bytes, {part:.4}");
        assert!((0.5..=0.53).contains(&part), "{problem:?} on {ranks} ranks: {quantised} of {plain} bytes");
    }
}
