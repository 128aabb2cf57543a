//! The GPU's kernels on a GPU, and what only a GPU has: streams, graphs, memory that runs out.
//!
//! Where there is none, the tests say so and pass, unless ATTN_REQUIRE_GPU is 1.

#[macro_use]
mod kernels;
mod support;

use std::io::Write;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use attn::comm::threads::Queues;
use attn::comm::{ExchangePlan, Rendezvous, Transfer};
use attn::cuda::cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut, sys};
use attn::cuda::raw::{self, RawAttention, RawTensor};
use attn::cuda::{self, Cuda, CudaQueue, DeviceMasks, Direct, FlashForm, FlashSm90};
use attn::device::{Arena, Device};
use attn::kernel::Band;
use attn::prelude::*;
use attn::{AttentionCall, AttentionKernel, BlockMask, DType, Error, KeyLengths, KeyValue, ThreadComm};
use half::bf16;
use kernels::rig::Rig;
use support::Random;

/// The first GPU.
struct Gpu;

impl Rig for Gpu {
    type Queue = CudaQueue;

    fn queue(_: u64) -> Option<CudaQueue> {
        static LACKING: OnceLock<Option<String>> = OnceLock::new();
        let lacking = LACKING.get_or_init(|| {
            let lacking = match cuda::devices() {
                Ok(devices) if devices[0].supported => None,
                Ok(devices) => Some(format!("no kernels for {:?}", devices[0])),
                Err(error) => Some(error.to_string()),
            };
            let required = std::env::var("ATTN_REQUIRE_GPU").is_ok_and(|value| value == "1");
            if let Some(lacking) = &lacking {
                assert!(!required, "ATTN_REQUIRE_GPU is 1, but {lacking}");
                // Not by a macro, whose output the test harness keeps to itself.
                let _ = writeln!(std::io::stderr(), "SKIPPED all that needs a GPU: {lacking}");
            }
            lacking
        });
        lacking.is_none().then(|| CudaQueue::new(0).unwrap())
    }
}

kernel_tests!(Gpu);

#[global_allocator]
static ALLOCATOR: support::counting::Counting = support::counting::Counting;

/// Held by tests that record, and by those that wait for all of the GPU: the one breaks the other.
static RECORDING: Mutex<()> = Mutex::new(());

fn alone_with_the_gpu() -> MutexGuard<'static, ()> {
    RECORDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Several GPUs that reach each other's memory.
struct Cards;

impl Rig for Cards {
    type Queue = CudaQueue;

    /// The ranks' cards take turns.
    fn queue(rank: u64) -> Option<CudaQueue> {
        let cards = cuda::devices().map_or(0, |devices| devices.len() as u64);
        if cards > 1 {
            return Some(CudaQueue::new((rank % cards) as usize).unwrap());
        }
        let _ = writeln!(std::io::stderr(), "SKIPPED what needs several GPUs: there are {cards}");
        None
    }
}

mod across_cards {
    use super::*;

    each! { Cards, direct:
        every_element_of_random_boxes_arrives,
        more_boxes_than_one_message_takes,
        a_hundred_exchanges_follow_each_other,
        a_late_rank_is_waited_for,
        nobody_leaves_before_all_is_written,
        blocks_go_round_in_the_order_of_a_ring,
    }
    each! { Cards, direct_faults:
        a_rank_that_does_not_come_is_named,
        boxes_that_do_not_fit_are_an_error_for_all,
        an_abort_ends_all_waits,
        a_rank_that_leaves_ends_the_others_waits,
    }
}

/// Two ranks record an exchange and replay it: who has come how far is counted on the GPU.
#[test]
fn a_graph_replays_a_direct_exchange() {
    let _alone = alone_with_the_gpu();
    let queues: Vec<CudaQueue> = (0..2).filter_map(Gpu::queue).collect();
    if queues.is_empty() {
        return;
    }
    let shape = [1, 2, 3, 8];
    let outcome = World::<Queues<Cuda>>::on_queues(queues).run(|comm| {
        let (queue, me) = (comm.queue()?, comm.rank());
        let direct =
            Direct::<Cuda>::open(&comm, &queue)?.expect("streams of one GPU reach each other's memory");
        let mut plan = ExchangePlan::default();
        plan.send(1 - me, [0; 4], shape);
        plan.receive(1 - me, [0; 4], shape);
        let mut source = cuda::to_device(&queue, &random(me as u64, shape))?;
        let mut destination = Tensor::<bf16, Cuda>::zeros(&queue, shape)?;
        let mut arena = Arena::<Cuda>::default();
        let meet = || comm.gather("the ranks of a test", &[]).map(drop);
        let (graph, ()) = queue.capture(|| {
            let transfer = Transfer::new(&plan, source.view(), destination.view_mut())?;
            direct.exchange(arena.open(&queue)?, &[transfer])
        })?;
        for round in 0..5 {
            cuda::upload(&queue, &random(10 * round + me as u64, shape), &mut source)?;
            meet()?;
            // SAFETY: the tensors and the exchange live, and nobody else uses them.
            unsafe { graph.launch() }?;
            let found = cuda::to_host(&queue, &destination)?;
            direct.check()?;
            meet()?;
            assert_eq!(found, random(10 * round + 1 - me as u64, shape), "rank {me}, round {round}");
        }
        // A call that is not replayed goes on from where the graph is.
        let transfer = Transfer::new(&plan, source.view(), destination.view_mut())?;
        direct.exchange(arena.open(&queue)?, &[transfer])?;
        Cuda::synchronize(&queue)?;
        direct.check()?;
        meet()
    });
    outcome.unwrap_or_else(|error: Error| panic!("{error}"));
}

#[parallel_attention(strategy = ["none", "ulysses", "ring"], backend = "flash", mask = "causal")]
struct Causal;

fn random(seed: u64, shape: [usize; 4]) -> Tensor<bf16> {
    let mut random = Random(seed);
    Tensor::from_fn(shape, |_| bf16::from_f32(random.normal())).unwrap()
}

/// Runs `body` with a session of one rank on a queue.
fn alone(
    queue: &CudaQueue,
    strategy: &str,
    body: impl Fn(&mut Session<Causal, ThreadComm<Cuda>, bf16>) -> attn::Result<()> + Sync,
) {
    let world = World::<Queues<Cuda>>::on_queues(vec![queue.clone()]);
    world
        .run(|comm| body(&mut Session::open_with(comm, &ParallelConfig::strategy(strategy))?))
        .unwrap_or_else(|error: Error| panic!("{strategy}: {error}"));
}

/// A sequence as long as real ones, against the host's kernel in fp32.
#[test]
fn a_long_sequence_agrees_with_the_host() {
    let Some(queue) = Gpu::queue(0) else { return };
    for head_dim in [64, 128, 256] {
        let (q, k) = ([1, 2048, 4, head_dim], [1, 2048, 2, head_dim]);
        let (query, key, value) = (random(1, q), random(2, k), random(3, k));
        let wide = |tensor: &Tensor<bf16>| tensor.cast::<f32>().unwrap();
        let right = World::threads(1)
            .run(|comm| {
                let mut session =
                    Session::<Causal, _, f32>::open_with(comm, &ParallelConfig::strategy("none"))?;
                session.attend(&wide(&query), &wide(&key), &wide(&value), &AttentionMetadata::default())
            })
            .unwrap()
            .remove(0);
        let right: Vec<f64> = right.as_slice().iter().map(|value| f64::from(*value)).collect();
        alone(&queue, "none", |session| {
            let [query, key, value] = [&query, &key, &value].map(|t| cuda::to_device(&queue, t).unwrap());
            let out = session.attend(&query, &key, &value, &AttentionMetadata::default())?;
            let error = support::relative_error(cuda::to_host(&queue, &out)?.as_slice(), &right);
            assert!(error < 4e-3, "head_dim {head_dim}: relative error {error:e}");
            Ok(())
        });
    }
}

/// The calls of one rank are recorded once, and replayed with other numbers in the same tensors.
#[test]
fn a_graph_replays_the_calls_of_one_rank() {
    let _alone = alone_with_the_gpu();
    let Some(queue) = Gpu::queue(0) else { return };
    let shape = [1, 300, 4, 64];
    for strategy in ["none", "ulysses", "ring"] {
        alone(&queue, strategy, |session| {
            let mut x = cuda::to_device(&queue, &random(1, shape))?;
            let mut out = Tensor::<bf16, Cuda>::zeros(&queue, shape)?;
            let metadata = AttentionMetadata::default();
            for _ in 0..2 {
                session.attend_into(&x, &x, &x, &metadata, &mut out)?;
            }
            let (graph, ()) = queue.capture(|| session.attend_into(&x, &x, &x, &metadata, &mut out))?;
            for seed in [2, 3] {
                let other = random(seed, shape);
                cuda::upload(&queue, &other, &mut x)?;
                session.attend_into(&x, &x, &x, &metadata, &mut out)?;
                let direct = cuda::to_host(&queue, &out)?;
                let nothing = Tensor::<bf16>::from_fn(shape, |_| bf16::NAN)?;
                cuda::upload(&queue, &nothing, &mut out)?;
                // SAFETY: the tensors and the session live, and nobody else uses them.
                unsafe { graph.launch() }?;
                assert_eq!(cuda::to_host(&queue, &out)?, direct, "{strategy}");
            }
            Ok(())
        });
    }
}

fn self_attention<'a>(
    x: &'a Tensor<bf16, Cuda>,
    mask: BlockMask<'a, Cuda>,
    out: &'a mut Tensor<bf16, Cuda>,
) -> AttentionCall<'a, bf16, Cuda> {
    let kv = KeyValue { key: x.view(), value: x.view() };
    AttentionCall { query: x.view(), kv, mask, scale: 0.125, out: out.view_mut(), lse: None }
}

/// A mask's key lengths and segments lie on the host, which a graph does not look at again; those in memory of the GPU it
/// does.
#[test]
fn key_lengths_are_captured_in_memory_of_the_gpu_alone() {
    let _alone = alone_with_the_gpu();
    let Some(queue) = Gpu::queue(0) else { return };
    let shape = [2, 100, 2, 64];
    let x = cuda::to_device(&queue, &random(1, shape)).unwrap();
    let mut out = Tensor::<bf16, Cuda>::zeros(&queue, shape).unwrap();
    let mut arena = Arena::<Cuda>::default();
    let mut other = Arena::<Cuda>::default();
    let mut masked = |lengths: [usize; 2], out: &mut Tensor<bf16, Cuda>| {
        let mask = BlockMask { key_lengths: Some(KeyLengths::new(&lengths)), ..BlockMask::FULL };
        FlashSm90::AUTO.forward(arena.open(&queue)?, &mut self_attention(&x, mask, out))
    };
    for _ in 0..2 {
        masked([3, 100], &mut out).unwrap();
    }
    let said = queue.capture(|| masked([3, 100], &mut out)).unwrap_err().to_string();
    assert!(said.contains("copying key lengths or segments from the host cannot be captured"), "{said}");
    assert!(said.contains("`forward_with`"), "{said}");

    let mut lengths = Tensor::<i32, Cuda>::zeros(&queue, [2, 1, 1, 1]).unwrap();
    let (graph, ()) = queue
        .capture(|| {
            let mut call = self_attention(&x, BlockMask::FULL, &mut out);
            let masks = DeviceMasks { key_lengths: Some(lengths.view()), segments: None };
            FlashSm90::AUTO.forward_with(other.open(&queue)?, &mut call, &masks)
        })
        .unwrap();
    for counts in [[3, 100], [57, 0]] {
        masked(counts, &mut out).unwrap();
        let direct = cuda::to_host(&queue, &out).unwrap();
        let nothing = Tensor::<bf16>::from_fn(shape, |_| bf16::NAN).unwrap();
        cuda::upload(&queue, &nothing, &mut out).unwrap();
        let host = Tensor::<i32>::from_fn([2, 1, 1, 1], |[row, ..]| counts[row] as i32).unwrap();
        cuda::upload(&queue, &host, &mut lengths).unwrap();
        // SAFETY: the tensors live, and nobody else uses them.
        unsafe { graph.launch() }.unwrap();
        assert_eq!(cuda::to_host(&queue, &out).unwrap(), direct, "{counts:?}");
    }
}

#[test]
fn collectives_of_several_ranks_cannot_be_captured() {
    let _alone = alone_with_the_gpu();
    if Gpu::queue(0).is_none() {
        return;
    }
    for strategy in ["ulysses", "ring"] {
        let queues: Vec<CudaQueue> = (0..2).filter_map(Gpu::queue).collect();
        let outcome = World::<Queues<Cuda>>::on_queues(queues).run(|comm| {
            let queue = comm.queue()?;
            let config = ParallelConfig::strategy(strategy);
            let mut session = Session::<Causal, _, bf16>::open_with(comm, &config)?;
            let x = cuda::to_device(&queue, &random(1, [1, 64, 4, 64]))?;
            let mut out = Tensor::<bf16, Cuda>::zeros(&queue, [1, 64, 4, 64])?;
            let metadata = AttentionMetadata::default();
            for _ in 0..2 {
                session.attend_into(&x, &x, &x, &metadata, &mut out)?;
            }
            queue.capture(|| session.attend_into(&x, &x, &x, &metadata, &mut out)).map(|_| ())
        });
        let said = outcome.unwrap_err().to_string();
        assert!(said.contains("capture a session of one rank"), "{strategy}: {said}");
    }
}

#[test]
fn nothing_is_allocated_while_a_graph_is_recorded() {
    let _alone = alone_with_the_gpu();
    let Some(queue) = Gpu::queue(0) else { return };
    let tensor = || Tensor::<bf16, Cuda>::zeros(&queue, [1, 1, 1, 64]);
    let said = queue.capture(tensor).unwrap_err().to_string();
    assert!(said.contains("allocating GPU memory cannot be captured"), "{said}");
    // The queue is as good as before.
    assert!(tensor().is_ok());
    let before = tensor().unwrap();
    // A tensor that goes meanwhile does not break the recording.
    let (graph, ()) = queue
        .capture(|| {
            drop(before);
            Ok(())
        })
        .unwrap();
    // SAFETY: nothing was recorded.
    unsafe { graph.launch() }.unwrap();
}

/// A thread that records neither allocates nor frees on any queue; others do both.
#[test]
fn a_recording_holds_for_all_queues_of_its_thread() {
    let _alone = alone_with_the_gpu();
    let (Some(queue), Some(other)) = (Gpu::queue(0), Gpu::queue(0)) else { return };
    let tensor = || Tensor::<bf16, Cuda>::zeros(&other, [1, 1, 1, 64]);
    let before = tensor().unwrap();
    let (graph, ()) = queue
        .capture(|| {
            let said = tensor().unwrap_err().to_string();
            assert!(said.contains("allocating GPU memory cannot be captured"), "{said}");
            drop(before);
            std::thread::scope(|scope| scope.spawn(|| tensor().map(drop)).join().unwrap())
        })
        .unwrap();
    // SAFETY: nothing was recorded.
    unsafe { graph.launch() }.unwrap();
    assert!(tensor().is_ok());
}

/// The primary context stays when nobody is left who uses it, and so does what others have in it.
#[test]
fn the_context_outlives_the_last_queue() {
    let Some(queue) = Gpu::queue(0) else { return };
    let (context, device) = (queue.stream().context().cu_ctx(), queue.stream().context().cu_device());
    drop(queue);
    let (mut flags, mut active) = (0, 0);
    // SAFETY: the device is one that the driver has named; both results are written.
    let asked = unsafe { sys::cuDevicePrimaryCtxGetState(device, &mut flags, &mut active) };
    assert!(asked.result().is_ok() && active == 1);
    assert_eq!(Gpu::queue(0).unwrap().stream().context().cu_ctx(), context);
}

#[test]
fn a_recording_ends_also_with_a_panic() {
    let _alone = alone_with_the_gpu();
    let Some(queue) = Gpu::queue(0) else { return };
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = queue.capture(|| -> attn::Result<()> { panic!("on purpose") });
    }));
    assert!(panicked.is_err());
    assert!(Tensor::<bf16, Cuda>::zeros(&queue, [1, 1, 1, 64]).is_ok());
}

/// One queue writes what another reads; the host waits for neither.
#[test]
fn queues_wait_for_each_other_on_the_gpu() {
    let (Some(first), Some(second)) = (Gpu::queue(0), Gpu::queue(0)) else { return };
    let shape = [1, 4096, 8, 128];
    let x = cuda::to_device(&first, &random(1, shape)).unwrap();
    let (mut y, mut z) = (
        Tensor::<bf16, Cuda>::zeros(&first, shape).unwrap(),
        Tensor::<bf16, Cuda>::zeros(&first, shape).unwrap(),
    );
    let run = |on: &CudaQueue, from: &Tensor<bf16, Cuda>, to: &mut Tensor<bf16, Cuda>| {
        let call = |tensor: &Tensor<bf16, Cuda>| RawTensor {
            base: tensor.view().base().as_ptr().cast(),
            strides: [4096 * 8 * 128, 8 * 128, 128],
        };
        let (from, out) = (call(from), call(to));
        let attention = RawAttention { query: from, key: from, value: from, out, ..raw_call(4096, 8, 128) };
        // SAFETY: the tensors live to the end of the test, which waits for the queues.
        unsafe { raw::attention(on, &attention) }.unwrap();
    };
    let begin = first.record().unwrap();
    run(&first, &x, &mut y);
    let end = first.record().unwrap();
    second.wait(&end).unwrap();
    run(&second, &y, &mut z);
    let apart = cuda::to_host::<bf16, Cuda>(&second, &z).unwrap();
    assert!(end.is_done().unwrap() && end.since(&begin).unwrap() > std::time::Duration::ZERO);
    run(&first, &x, &mut y);
    run(&first, &y, &mut z);
    assert_eq!(cuda::to_host::<bf16, Cuda>(&first, &z).unwrap(), apart);
}

fn raw_call(seq: usize, heads: usize, head_dim: usize) -> RawAttention {
    let nowhere = RawTensor { base: core::ptr::null_mut(), strides: [0; 3] };
    RawAttention {
        query: nowhere,
        key: nowhere,
        value: nowhere,
        out: nowhere,
        lse: None,
        key_lengths: core::ptr::null(),
        dtype: DType::BF16,
        batch: 1,
        seq_q: seq,
        seq_k: seq,
        heads,
        kv_heads: heads,
        head_dim,
        band: Band::causal(seq, seq),
        scale: 1.0 / (head_dim as f32).sqrt(),
        form: FlashForm::Auto,
    }
}

/// Memory and a stream that cudarc made; the same as in a session.
#[test]
fn memory_of_another_library_is_attended_in_place() {
    let _alone = alone_with_the_gpu();
    let Some(own) = Gpu::queue(0) else { return };
    let (seq, heads, head_dim) = (200, 2, 64);
    let shape = [1, seq, heads, head_dim];
    let host = random(4, shape);
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    // To cudarc, which has no bf16 unless a feature says so, elements are 16 bits.
    let x = stream.clone_htod::<u16, _>(bytemuck::cast_slice(host.as_slice())).unwrap();
    let mut out = stream.alloc_zeros::<u16>(host.as_slice().len()).unwrap();
    {
        let ((x, _x), (out, _out)) = (x.device_ptr(&stream), out.device_ptr_mut(&stream));
        let laid = |base: u64| RawTensor {
            base: core::ptr::without_provenance_mut(base as usize),
            strides: [seq * heads * head_dim, heads * head_dim, head_dim],
        };
        let (x, out) = (laid(x), laid(out));
        // SAFETY: the stream outlives the queue.
        let queue = unsafe { CudaQueue::from_raw(0, stream.cu_stream().cast()) }.unwrap();
        let call = RawAttention { query: x, key: x, value: x, out, ..raw_call(seq, heads, head_dim) };
        // SAFETY: both slices are held until the stream has been read below.
        unsafe { raw::attention(&queue, &call) }.unwrap();
    }
    let foreign = stream.clone_dtoh(&out).unwrap();
    alone(&own, "none", |session| {
        let x = cuda::to_device(&own, &host)?;
        let out = session.attend(&x, &x, &x, &AttentionMetadata::default())?;
        assert_eq!(bytemuck::cast_slice::<_, u16>(cuda::to_host(&own, &out)?.as_slice()), foreign);
        Ok(())
    });
}

#[test]
fn memory_that_runs_out_is_an_error_with_its_size() {
    let Some(queue) = Gpu::queue(0) else { return };
    let error = Tensor::<bf16, Cuda>::zeros(&queue, [1 << 20, 1 << 20, 1, 1]).unwrap_err();
    assert_eq!(error, Error::OutOfMemory { device: "cuda", bytes: 1 << 41 });
    assert_eq!(error.to_string(), "could not allocate 2199023255552 bytes of cuda memory");
    assert!(Tensor::<bf16, Cuda>::zeros(&queue, [1, 1, 1, 64]).is_ok());
}

#[test]
fn steady_calls_take_no_more_memory() {
    let Some(queue) = Gpu::queue(0) else { return };
    alone(&queue, "ring", |session| {
        let shape = [1, 1000, 4, 128];
        let x = cuda::to_device(&queue, &random(1, shape))?;
        let mut out = Tensor::<bf16, Cuda>::zeros(&queue, shape)?;
        let mut bytes = Vec::new();
        for _ in 0..6 {
            session.attend_into(&x, &x, &x, &AttentionMetadata::default(), &mut out)?;
            bytes.push(session.workspace_bytes());
        }
        assert_eq!(bytes[1..], [bytes[1]; 5]);
        Ok(())
    });
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_with_its_number() {
    if Gpu::queue(0).is_none() {
        return;
    }
    let said = CudaQueue::new(4096).unwrap_err().to_string();
    assert!(said.contains("there is no cuda:4096"), "{said}");
}

/// What another library made current on this thread stays so.
#[test]
fn the_current_context_of_a_thread_is_left_as_it_was() {
    if Gpu::queue(0).is_none() {
        return;
    }
    let current = || cuda::cudarc::driver::result::ctx::get_current().unwrap();
    std::thread::spawn(move || {
        assert_eq!(current(), None);
        let queue = Gpu::queue(0).unwrap();
        let tensor = cuda::to_device(&queue, &random(1, [1, 1, 1, 64])).unwrap();
        assert_eq!(current(), None);
        drop(tensor);
        assert_eq!(current(), None);
        let event = queue.record().unwrap();
        event.synchronize().unwrap();
        drop(event);
        assert_eq!(current(), None);
        drop(queue);
        assert_eq!(current(), None);
    })
    .join()
    .unwrap();
}

/// Where there is no driver, whatever asks for one gets an error and no panic.
#[test]
fn a_machine_without_a_gpu_is_told_so() {
    if let Err(error) = cuda::devices() {
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        assert_eq!(CudaQueue::new(0).unwrap_err(), error);
        // SAFETY: it is refused before the stream is looked at.
        let foreign = unsafe { CudaQueue::from_raw(0, core::ptr::null_mut()) };
        assert_eq!(foreign.unwrap_err(), error);
    }
}
