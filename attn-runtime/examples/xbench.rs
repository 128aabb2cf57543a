#![allow(missing_docs)]
use attn_runtime::comm::message::{ChannelLink, MessageComm};
use attn_runtime::device::cpu::CpuQueue;
use attn_runtime::*;
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let ranks: usize = args[1].parse().unwrap();
    let kib: usize = args[2].parse().unwrap();
    let by_link = args.get(3).is_some_and(|s| s == "link");
    let threads = args.get(3).is_some_and(|s| s == "threads");
    // [1, seq, heads, 128] f32; each pair kib KiB
    let dim = 128;
    let heads = 4;
    let seq = kib * 1024 / (dim * heads * 4);
    let body = move |comm: &dyn Fn() -> Result<()>, rank: usize| {
        for _ in 0..3 {
            comm().unwrap();
        }
        let n = ((256 << 20) / (kib << 10)).clamp(10, 2000) / ranks;
        let mut best = f64::MAX;
        for _ in 0..n * 5 {
            let t = Instant::now();
            comm().unwrap();
            best = best.min(t.elapsed().as_secs_f64());
        }
        if rank == 0 {
            let bytes = (kib << 10) * (ranks - 1);
            println!(
                "{ranks} ranks {kib} KiB a pair: {:.1} us, {:.2} GB/s a rank sent",
                best * 1e6,
                bytes as f64 / best / 1e9
            );
        }
    };
    let run =
        move |rank: usize,
              ex: &mut dyn FnMut(&ExchangePlan, &Tensor<f32>, &mut Tensor<f32>) -> Result<()>| {
            let from =
                Tensor::<f32>::from_fn([1, seq, heads * ranks, dim], |[_, a, b, c]| (a + b + c) as f32)
                    .unwrap();
            let mut to = Tensor::<f32>::from_fn([1, seq * ranks, heads, dim], |_| 0.0).unwrap();
            let mut plan = ExchangePlan::default();
            for p in 0..ranks {
                plan.send(p, [0, 0, p * heads, 0], [1, seq, heads, dim]);
                plan.receive(p, [0, p * seq, 0, 0], [1, seq, heads, dim]);
            }
            let cell = std::cell::RefCell::new((ex, &mut to));
            body(
                &|| {
                    let mut c = cell.borrow_mut();
                    let (ex, to) = &mut *c;
                    ex(&plan, &from, to)
                },
                rank,
            );
        };
    let sig = Signature {
        strategy: "x",
        stage: "x",
        call: 0,
        dtype: DType::F32,
        query: [1; 4],
        key: [1; 4],
        keys: KeyPlacement::Sharded,
        joint: (0, JointStrategy::Front),
        sharding: Sharding::ONE,
        mask: Mask::NONE,
        digest: 0,
        scale_bits: 0,
        lse: false,
    };
    if threads {
        World::threads(ranks)
            .threads_per_rank(1)
            .run(|comm| {
                let mut arena = Arena::<Cpu>::default();
                let q = comm.queue()?;
                run(comm.rank(), &mut |plan, from, to| {
                    let t = Transfer::new(plan, from.view(), to.view_mut())?;
                    comm.exchange(arena.open(&q)?, &sig, &mut [t])
                });
                Ok::<_, Error>(())
            })
            .unwrap();
        return;
    }
    std::thread::scope(|s| {
        for link in ChannelLink::world(ranks) {
            s.spawn(move || {
                let f = if by_link { MessageComm::by_link } else { MessageComm::new };
                let comm = f(link, CpuQueue::new(1).unwrap(), Duration::from_secs(60)).unwrap();
                let mut arena = Arena::<Cpu>::default();
                let q = comm.queue().unwrap();
                run(comm.rank(), &mut |plan, from, to| {
                    let t = Transfer::new(plan, from.view(), to.view_mut())?;
                    comm.exchange(arena.open(&q)?, &sig, &mut [t])
                });
            });
        }
    });
}
