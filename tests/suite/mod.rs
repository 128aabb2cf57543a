//! What every communicator must do, as laws that its ranks check together: each rank of a world calls every law in turn.
//! Written once, and run over threads, sockets, MPI and NCCL. A law that is broken panics on the rank that sees it.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test uses its part")]

mod exchanges;
mod faults;
mod groups;
mod large;
mod plans;
mod rings;
mod strategies;

pub use faults::{DEADLINE, Fault, faults};
pub use large::more_than_an_int_can_count;
pub use strategies::strategies_agree_with_threads;

use attn::device::Arena;
use attn::prelude::*;
use attn::{Cpu, DType, Device, KeyPlacement, Mask, Scalar, Scope, Sharding, Signature};

/// How tensors come to a device and back.
pub trait Memory: Device {
    /// Brings a tensor there.
    fn upload<T: Scalar>(queue: &Self::Queue, tensor: Tensor<T>) -> attn::Result<Tensor<T, Self>>;

    /// A dense copy on the host, once the queue has written the tensor.
    fn download<T: Scalar>(queue: &Self::Queue, view: View<'_, T, Self>) -> attn::Result<Tensor<T>>;
}

impl Memory for Cpu {
    fn upload<T: Scalar>(_: &Self::Queue, tensor: Tensor<T>) -> attn::Result<Tensor<T>> {
        Ok(tensor)
    }

    fn download<T: Scalar>(_: &Self::Queue, view: View<'_, T>) -> attn::Result<Tensor<T>> {
        Tensor::from_fn(view.shape(), |index| view.at(index))
    }
}

/// A law, by name.
pub type Law<C> = (&'static str, fn(&C) -> attn::Result<()>);

/// The laws for groups of any size, in the order in which all ranks must call them.
pub fn laws<C: Communicator>() -> Vec<Law<C>>
where
    C::Device: Memory,
{
    vec![
        ("ranks are numbered from 0", groups::ranks_are_numbered),
        ("random exchanges are exact", exchanges::random_exchanges_are_exact),
        ("uneven all-to-all", exchanges::uneven_all_to_all),
        ("all-gather", exchanges::all_gather),
        ("nothing is moved where nothing is asked for", exchanges::nothing),
        ("calls in a row do not mix", exchanges::calls_in_a_row_do_not_mix),
        ("traffic is counted", exchanges::traffic_is_counted),
        ("rings show every block", rings::rings_show_every_block),
        ("rings of nothing", rings::rings_of_nothing),
        ("groups by color, ranks by key", groups::groups_by_color_ranks_by_key),
        ("groups do not mix", groups::groups_do_not_mix),
        ("groups come and go", groups::groups_come_and_go),
        ("megabytes", large::megabytes),
    ]
}

/// Checks every law on one rank, and says which.
pub fn check_laws<C: Communicator>(comm: &C) -> attn::Result<()>
where
    C::Device: Memory,
{
    for (name, law) in laws::<C>() {
        law(comm)
            .inspect_err(|error| eprintln!("rank {} of {}: `{name}`: {error}", comm.rank(), comm.size()))?;
    }
    Ok(())
}

/// Whether so many bytes are to be had on this machine, with room to spare.
pub fn memory_allows(bytes: u64) -> bool {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = available.and_then(|said| said.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.is_some_and(|kib| kib * 1024 > 2 * bytes)
}

/// The signature of the `call`-th exchange of a law.
pub fn signature(law: &'static str, call: usize) -> Signature {
    Signature {
        strategy: "suite",
        stage: law,
        call: call as u64,
        dtype: DType::F32,
        query: [1; 4],
        key: [1; 4],
        keys: KeyPlacement::Sharded,
        joint: (0, JointStrategy::Front),
        sharding: Sharding::ONE,
        mask: Mask::NONE,
        digest: 0,
        scale_bits: 0,
        edges: 0,
        lse: false,
    }
}

/// Calls `body` with a scope on the communicator's queue.
pub fn scoped<C: Communicator, R>(
    comm: &C,
    body: impl FnOnce(Scope<'_, C::Device>) -> attn::Result<R>,
) -> attn::Result<R> {
    let queue = comm.queue()?;
    let mut arena = Arena::<C::Device>::default();
    body(arena.open(&queue)?)
}

/// Elements that tell where they come from.
pub trait Numbered: Scalar + PartialEq + std::fmt::Debug {
    /// One of as many elements as the type has room for, finite.
    fn number(n: u64) -> Self;
}

impl Numbered for u8 {
    fn number(n: u64) -> Self {
        (n ^ (n >> 8) ^ (n >> 17)) as Self
    }
}

impl Numbered for half::bf16 {
    fn number(n: u64) -> Self {
        Self::from_bits(0x4000 | ((n ^ (n >> 14)) & 0x3f7f) as u16)
    }
}

impl Numbered for i32 {
    fn number(n: u64) -> Self {
        (n ^ (n >> 31)) as Self
    }
}

impl Numbered for f32 {
    fn number(n: u64) -> Self {
        ((n ^ (n >> 24)) & 0xff_ffff) as Self
    }
}

/// The element at an index of a tensor of a rank, on which all ranks agree.
pub fn element<T: Numbered>(seed: u64, rank: usize, [a, b, c, d]: [usize; 4]) -> T {
    let index = (((a * 1009 + b) * 1013 + c) * 1019 + d) as u64;
    let mut random = crate::support::Random(seed ^ (rank as u64) << 48 ^ index << 1);
    T::number(random.next())
}
