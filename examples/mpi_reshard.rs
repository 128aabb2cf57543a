//! How fast Ulysses' exchanges are over MPI, against `MPI_Alltoall` of the same bytes.
//!
//! `cargo build --release --features mpi --example mpi_reshard`, then
//! `mpirun -n 4 target/release/examples/mpi_reshard [MiB ..]`; or `scripts/mpi-bench`, which does both.
//!
//! The exchanges are those of one call: query, key and value go from shards of the sequence to shards of the heads in one
//! exchange, and the output goes home in another. They gather and scatter heads, which the bare collective does not: that
//! moves as many bytes from one contiguous buffer to another, three quarters in one call and a quarter in a second.
//! Both are timed in turns in one run; a turn counts as long as its slowest rank takes.

use std::time::{Duration, Instant};

use attn::comm::message::Link;
use attn::comm::mpi::{self, MpiComm, MpiLink};
use attn::device::Arena;
use attn::prelude::*;
use attn::{DType, ExchangePlan, KeyPlacement, Mask, Sharding, Signature, Transfer};

const HEADS: usize = 16;
const HEAD_DIM: usize = 64;

/// Turns that are not counted, and those that are.
const TURNS: (usize, usize) = (3, 15);

fn main() -> attn::Result<()> {
    let mut mebibytes = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.parse::<usize>() {
            Ok(size) if size > 0 => mebibytes.push(size),
            _ => return Err(attn::Error::Configuration(format!("`{argument}` is no number of MiB"))),
        }
    }
    if mebibytes.is_empty() {
        mebibytes = vec![1, 4, 16, 64];
    }
    start_mpi();
    let bare = mpi::world()?.link()?;
    mpi::world()?.threads_per_rank(1).run(|comm| {
        if comm.rank() == 0 {
            println!("{}, {} ranks", mpi::library(), comm.size());
            println!(" MiB a rank   exchanges, ms (least .. most)   MPI_Alltoall, ms (least .. most)   GB/s   ratio");
        }
        for &mebibytes in &mebibytes {
            measure(&comm, &bare, mebibytes)?;
        }
        Ok::<_, attn::Error>(())
    })?;
    end_mpi(bare);
    Ok(())
}

/// Times both on one size: that of query, key, value and output of a rank together.
fn measure(comm: &MpiComm, bare: &MpiLink, mebibytes: usize) -> attn::Result<()> {
    let (rank, ranks, queue) = (comm.rank(), comm.size(), comm.queue()?);
    let (heads, rows) = (HEADS / ranks, (mebibytes << 20) / (4 * HEADS * HEAD_DIM * size_of::<f32>()));
    if heads * ranks != HEADS {
        return Err(attn::Error::Configuration(format!("{HEADS} heads do not divide among {ranks} ranks")));
    }
    let (mut there, mut home) = (ExchangePlan::default(), ExchangePlan::default());
    for peer in 0..ranks {
        let part = [1, rows, heads, HEAD_DIM];
        there.send(peer, [0, 0, peer * heads, 0], part);
        there.receive(peer, [0, peer * rows, 0, 0], part);
        home.send(peer, [0, peer * rows, 0, 0], part);
        home.receive(peer, [0, 0, peer * heads, 0], part);
    }
    let (shard, whole) = ([1, rows, HEADS, HEAD_DIM], [1, rows * ranks, heads, HEAD_DIM]);
    let number = |[_, s, h, d]: [usize; 4]| ((rank * 31 + s * 17 + h * 5 + d) % 1000) as f32;
    let given =
        [Tensor::from_fn(shard, number)?, Tensor::from_fn(shard, number)?, Tensor::from_fn(shard, number)?];
    let mut back = Tensor::<f32>::zeros(&queue, shard)?;
    let mut arena = Arena::<Cpu>::default();
    let bytes = 4 * rows * HEADS * HEAD_DIM * size_of::<f32>();
    let (parts, mut received) = (vec![1_u8; bytes], vec![0_u8; bytes]);
    let (three, all) = (bytes / 4 * 3, bytes);

    let mut times = [Vec::new(), Vec::new()];
    for turn in 0..TURNS.0 + TURNS.1 {
        let ours = together(bare, || {
            // What a kernel reads and writes is scratch memory, as in a strategy.
            let scope = arena.open(&queue)?;
            let mut taken = [scope.take(whole)?, scope.take(whole)?, scope.take(whole)?];
            let mut transfers = Vec::with_capacity(3);
            for (from, to) in given.iter().zip(&mut taken) {
                transfers.push(Transfer::new(&there, from.view(), to.reborrow())?);
            }
            comm.exchange(scope, &signature("there", turn), &mut transfers)?;
            let transfer = Transfer::new(&home, taken[0].as_view(), back.view_mut())?;
            comm.exchange(scope, &signature("home", turn), &mut [transfer])
        })?;
        let theirs = together(bare, || {
            bare.alltoall(&parts[..three], &mut received[..three])?;
            bare.alltoall(&parts[three..all], &mut received[three..all])
        })?;
        if turn >= TURNS.0 {
            times[0].push(ours);
            times[1].push(theirs);
        }
    }
    assert!(back.as_slice() == given[0].as_slice(), "the output is not what was sent");
    let [ours, theirs] = times.map(Spread::of);
    if rank == 0 {
        let sent = (bytes / ranks * (ranks - 1)) as f64;
        println!(
            "{mebibytes:>11}   {ours}   {theirs}   {:>6.2}  {:>6.2}",
            sent / ours.median.as_secs_f64() / 1e9,
            theirs.median.as_secs_f64() / ours.median.as_secs_f64(),
        );
    }
    Ok(())
}

/// How long the slowest rank takes, all having begun together.
fn together(bare: &MpiLink, body: impl FnOnce() -> attn::Result<()>) -> attn::Result<Duration> {
    let ranks = bare.size();
    let (mut parts, mut received) = (vec![0; 8 * ranks], vec![0; 8 * ranks]);
    bare.alltoall(&parts, &mut received)?;
    let started = Instant::now();
    body()?;
    let took = started.elapsed().as_nanos() as u64;
    for part in parts.chunks_exact_mut(8) {
        part.copy_from_slice(&took.to_ne_bytes());
    }
    bare.alltoall(&parts, &mut received)?;
    let slowest = received.chunks_exact(8).map(|bytes| bytes.try_into().map_or(0, u64::from_ne_bytes));
    Ok(Duration::from_nanos(slowest.max().unwrap_or(took)))
}

/// Times of equal turns.
struct Spread {
    least: Duration,
    median: Duration,
    most: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self { least: times[0], median: times[times.len() / 2], most: times[times.len() - 1] }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [least, median, most] = [self.least, self.median, self.most].map(|time| 1e3 * time.as_secs_f64());
        write!(f, "{median:>9.2} ({least:>8.2} .. {most:>8.2})")
    }
}

fn signature(stage: &'static str, call: usize) -> Signature {
    Signature {
        strategy: "ulysses",
        stage,
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

unsafe extern "C" {
    fn MPI_Init_thread(count: *mut i32, arguments: *mut *mut *mut i8, level: i32, given: *mut i32) -> i32;
    fn MPI_Finalize() -> i32;
}

/// Starts MPI as a program does that uses it for itself: then a world for each of both is to be had.
fn start_mpi() {
    let (highest_level, mut given) = (3, 0);
    // SAFETY: MPI has not been started; it takes null for the arguments of main.
    let code =
        unsafe { MPI_Init_thread(core::ptr::null_mut(), core::ptr::null_mut(), highest_level, &mut given) };
    assert_eq!((code, given), (0, highest_level));
}

fn end_mpi(mut bare: MpiLink) {
    bare.close(true, Duration::from_secs(1));
    // SAFETY: this process has started it, and has nothing under way.
    assert_eq!(unsafe { MPI_Finalize() }, 0);
}
