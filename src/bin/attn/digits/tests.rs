//! The model against PyTorch's traces of it, and the sharded model against both.

use attn::device::cpu::CpuQueue;

use super::*;

/// A fair bound for two float32 implementations; see the model's README.
const BOUND: f64 = 2e-5;

/// The four samples that PyTorch left traces of.
struct Reference {
    bytes: Vec<u8>,
}

impl Reference {
    fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/dit-digits/reference.safetensors");
        Self { bytes: std::fs::read(path).unwrap() }
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F32);
        tensor.data().as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }

    /// The first `samples` of them.
    fn task(&self, samples: usize) -> Task {
        let mut task = Task::parse(&self.bytes).unwrap();
        task.noise.truncate(samples * TOKENS * CHANNELS);
        task.sample.truncate(samples * TOKENS * CHANNELS);
        task.text.truncate(samples * TEXT);
        task
    }
}

#[track_caller]
fn assert_close(name: &str, found: &[f32], expected: &[f32]) {
    let difference = max_difference(found, expected);
    assert!(difference <= BOUND && found.len() == expected.len(), "{name}: off by {difference:e}");
}

fn run(strategy: Strategy, ulysses: usize, outer: usize) -> Run {
    Run { strategy, sharding: Sharding { ulysses, outer, ..Sharding::ONE } }
}

/// The same in an order, and shares that may differ.
fn uneven(run: Run, layout: RingLayout) -> Run {
    Run { sharding: Sharding { layout, split: Split::Uneven, ..run.sharding }, ..run }
}

/// Rows of a strided view, one after the other.
fn elements(view: attn::View<'_, f32>) -> Vec<f32> {
    let [batch, tokens, heads, head_dim] = view.shape();
    let rows = (0..batch).flat_map(move |b| (0..tokens).map(move |s| (b, s)));
    rows.flat_map(|(b, s)| {
        (0..heads)
            .flat_map(move |h| (0..head_dim).map(move |d| [b, s, h, d]))
            .map(move |index| view.at(index))
    })
    .collect()
}

fn all_tokens() -> Positions {
    Positions::from(attn::Run::of(0..TOKENS))
}

fn every_trace_is_pytorchs<K: Default>()
where
    JointAttention<K>: ParallelAttention<ThreadComm<Cpu>, f32>,
{
    let (reference, model) = (Reference::load(), Dit::<K>::load(MODEL).unwrap());
    let task = reference.task(2);
    let config = ParallelConfig::strategy("none");
    World::threads(1)
        .run(|comm| {
            let mut session = Session::<JointAttention<K>, _, f32>::open_with(comm, &config)?;
            let (team, (noise, at)) = (session.queue().clone(), task.shard(all_tokens()));
            let cond = model.condition(&team, 1.0);
            assert_close("cond_t1", &cond, &reference.tensor("cond_t1"));
            let mut tokens = model.embed(&team, &noise, &task.text);
            for (i, block) in model.blocks.iter().enumerate() {
                if [0, 4].contains(&i) {
                    let (image, text) = block.normalise(&team, &tokens, &cond);
                    let (image, text) = block.attention.project(&team, &image, &text, &at);
                    for (part, name) in ["q", "k", "v"].into_iter().enumerate() {
                        for (stream, qkv) in [("image", &image), ("text", &text)] {
                            let name = format!("blocks.{i}.{stream}.{name}");
                            assert_close(&name, &elements(qkv.part(part)?), &reference.tensor(&name));
                        }
                    }
                    let (image, text) = block.attention.mix(&mut session, &image, &text)?;
                    assert_close("image.o", &image, &reference.tensor(&format!("blocks.{i}.image.o")));
                    assert_close("text.o", &text, &reference.tensor(&format!("blocks.{i}.text.o")));
                }
                block.forward(&mut session, &mut tokens, &cond, &at)?;
            }
            Ok::<_, Failure>(())
        })
        .unwrap();
}

#[test]
fn every_trace_is_pytorchs_with_flash() {
    every_trace_is_pytorchs::<Flash>();
}

#[test]
fn every_trace_is_pytorchs_with_sdpa() {
    every_trace_is_pytorchs::<Sdpa>();
}

#[test]
fn the_velocity_is_pytorchs_on_any_number_of_ranks() {
    let (reference, model) = (Reference::load(), Dit::<Flash>::load(MODEL).unwrap());
    let (task, expected) = (reference.task(4), reference.tensor("velocity_t1"));
    let (ulysses, ring, hybrid) = (Strategy::Ulysses, Strategy::Ring, Strategy::Hybrid);
    let (allgather_kv, ulysses_allgather) = (Strategy::AllgatherKv, Strategy::UlyssesAllgather);
    for run in [
        Run::ONE_RANK,
        run(ulysses, 4, 1),
        run(ring, 1, 8),
        run(hybrid, 2, 2),
        run(allgather_kv, 1, 4),
        run(ulysses_allgather, 2, 2),
        uneven(run(ulysses, 3, 1), RingLayout::Contiguous),
        uneven(run(ring, 1, 5), RingLayout::Zigzag),
        uneven(run(hybrid, 2, 3), RingLayout::Striped),
        uneven(run(ulysses_allgather, 3, 2), RingLayout::Contiguous),
    ] {
        let shards = World::threads(run.ranks())
            .run(|comm| {
                let tokens = run.sharding.sequence(TOKENS).map_err(attn::Error::from)?.positions(comm.rank());
                let (noise, at) = task.shard(tokens);
                let mut session = Session::<JointAttention<Flash>, _, f32>::open_with(comm, &run.config())?;
                Ok::<_, Failure>((tokens, model.velocity(&mut session, &noise, &task.text, 1.0, &at)?))
            })
            .unwrap();
        let velocity = gather(shards.iter().map(|(tokens, shard)| (*tokens, shard.as_slice())));
        assert_close(&run.to_string(), &velocity, &expected);
    }
}

#[test]
fn a_sample_is_pytorchs_after_all_steps() {
    let (reference, model) = (Reference::load(), Dit::<Flash>::load(MODEL).unwrap());
    let task = reference.task(1);
    let zigzag = uneven(run(Strategy::Hybrid, 2, 2), RingLayout::Zigzag);
    for run in [Run::ONE_RANK, run(Strategy::Ulysses, 2, 1), run(Strategy::Ring, 1, 2), zigzag] {
        let (sample, timing) = sample(&model, run, None, None, &task, || {}).unwrap();
        assert_close(&format!("{run}, {timing:?}"), &sample, &task.sample);
    }
}

#[test]
fn shards_gather_to_the_whole() {
    let task = Task::parse(DIGITS).unwrap();
    for (layout, ranks) in
        RingLayout::ALL.into_iter().flat_map(|layout| [1, 3, 256, 300].map(|n| (layout, n)))
    {
        let sequence = uneven(run(Strategy::Ring, 1, ranks), layout).sharding.sequence(TOKENS).unwrap();
        let positions = (0..ranks).map(|rank| sequence.positions(rank));
        let shards: Vec<_> = positions.map(|tokens| (tokens, task.shard(tokens).0)).collect();
        let whole = gather(shards.iter().map(|(tokens, shard)| (*tokens, shard.as_slice())));
        assert!(whole == task.noise, "{ranks} ranks, {}", layout.name());
    }
}

#[test]
fn a_difference_that_is_not_a_number_is_infinite() {
    assert_eq!(max_difference(&[1.0, f32::NAN], &[1.0, 2.0]), f64::INFINITY);
    assert_eq!(max_difference(&[1.0, 2.5], &[1.0, 2.0]), 0.5);
}

#[test]
fn spreading_reaches_every_row_once() {
    for (rows, threads) in [(0, 2), (1, 3), (7, 3), (8, 1)] {
        let team = CpuQueue::new(threads).unwrap();
        let mut y = vec![0.0; rows * 5];
        layers::spread(&team, &mut y, 5, |first, part| {
            part.iter_mut().enumerate().for_each(|(i, y)| *y += (first * 5 + i) as f32);
        });
        assert!(y.iter().enumerate().all(|(i, y)| *y == i as f32), "{rows} rows, {threads} threads");
    }
}

#[test]
fn the_picture_is_dark_ink_on_white() {
    let black_corner: Vec<f32> = (0..TOKENS * CHANNELS).map(|i| if i == 0 { 3.0 } else { -1.0 }).collect();
    let mut file = Vec::new();
    picture::write(&mut file, &[&black_corner], 1).unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height, info.color_type), (108, 108, png::ColorType::Grayscale));
    let dark: Vec<(usize, usize)> =
        (0..108 * 108).filter(|i| pixels[*i] == 0).map(|i| (i / 108, i % 108)).collect();
    let square: Vec<(usize, usize)> = (6..9).flat_map(|y| (6..9).map(move |x| (y, x))).collect();
    assert_eq!(dark, square);
    assert!(pixels.iter().all(|pixel| [0, 255].contains(pixel)));
}
