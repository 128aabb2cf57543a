//! The kernels round attention, each in turns with a plain copy that moves as many bytes.

use attn::device::Arena;
use attn::{BlockMask, CarriesState, Communicator, Element, Error, ExchangePlan, KeyValue, Tensor, Transfer};

use super::SIGNATURE;
use super::problem::Problem;
use super::row::{Row, Work};
use super::times::Times;
use crate::failure::Failure;
use crate::machine::{Machine, world};
use crate::random::positions;

/// How many keys a state has seen before it is divided into the output.
const KEYS: usize = 64;

/// When something began and ended.
type Span<D> = [<D as Machine>::Moment; 2];

/// Copies from shares of the positions to shares of the heads, and back: a tensor as large as the query, on `ranks`
/// ranks at once.
///
/// # Errors
/// If memory cannot be had, or the device reports an error.
pub(super) fn reshard<D: Machine, T: Element>(problem: &Problem, ranks: usize) -> Result<[Row; 2], Failure> {
    let [batch, seq, heads, head_dim] = problem.query;
    let (positions_each, heads_each) = (seq / ranks, heads / ranks);
    // All ranks' tensors stand behind one another, along the batch axis of one.
    let by_positions = [ranks * batch, positions_each, heads, head_dim];
    let by_heads = [ranks * batch, seq, heads_each, head_dim];
    let mut forth = ExchangePlan::default();
    for (from, to) in (0..ranks).flat_map(|from| (0..ranks).map(move |to| (from, to))) {
        let extent = [batch, positions_each, heads_each, head_dim];
        forth.send(0, [from * batch, 0, to * heads_each, 0], extent);
        forth.receive(0, [to * batch, from * positions_each, 0, 0], extent);
    }
    let back = ExchangePlan { sends: forth.receives.clone(), receives: forth.sends.clone() };

    // A group of one rank copies its boxes at once, as each rank of a larger group copies those of its peers.
    let group = world::<D>(D::queues(1, problem.threads)?).communicators()?.pop();
    let group = group.ok_or(Error::ZeroSize { what: "the number of ranks" })?;
    let queue = group.queue()?;
    let mut arena = Arena::<D>::default();
    let mut measure = |name, plan: &ExchangePlan, source: [usize; 4], destination: [usize; 4]| {
        let source = D::upload(&queue, positions::<T>(4, source, 0, source[1])?)?;
        let mut destination = Tensor::<T, D>::zeros(&queue, destination)?;
        // Read once, and written once.
        let bytes = 2 * source.shape().iter().product::<usize>() * size_of::<T>();
        let [(times, floor)] = in_turns::<D, 1>(problem, &queue, [bytes], || {
            let start = D::moment(&queue)?;
            let mut transfers = [Transfer::new(plan, source.view(), destination.view_mut())?];
            group.exchange(arena.open(&queue)?, &SIGNATURE, &mut transfers)?;
            Ok([[start, D::moment(&queue)?]])
        })?;
        Ok::<_, Failure>(row(name, ranks, times, bytes, floor))
    };
    Ok([measure("reshard", &forth, by_positions, by_heads)?, measure("back", &back, by_heads, by_positions)?])
}

/// Making the state that ring carries, and dividing it into the output, for all queries.
///
/// # Errors
/// As [`reshard`].
pub(super) fn state<D, K, T>(kernel: &K, problem: &Problem) -> Result<[Row; 2], Failure>
where
    D: Machine,
    K: CarriesState<D, T>,
    T: Element,
{
    let queue =
        D::queues(1, problem.threads)?.pop().ok_or(Error::ZeroSize { what: "the number of ranks" })?;
    let random = |stream, whole, length| D::upload(&queue, positions::<T>(stream, whole, 0, length)?);
    let keys = problem.key[1].min(KEYS);
    let query = random(1, problem.query, problem.query[1])?;
    let (key, value) = (random(2, problem.key, keys)?, random(3, problem.key, keys)?);
    let mut out = Tensor::<T, D>::zeros(&queue, problem.query)?;
    let mut arena = Arena::<D>::default();

    let [batch, seq, heads, head_dim] = problem.query;
    let (rows, float) = (batch * seq * heads, size_of::<f32>());
    // A row that has attended nothing is one without maximum and sum; the output counts from the first step on.
    let made = rows * 2 * float;
    let divided = rows * (head_dim * (float + size_of::<T>()) + 2 * float);
    let [(begin, begin_floor), (finish, finish_floor)] =
        in_turns::<D, 2>(problem, &queue, [made, divided], || {
            let scope = arena.open(&queue)?;
            let kv = KeyValue { key: key.view(), value: value.view() };
            let begins = D::moment(&queue)?;
            let mut state = kernel.begin(scope, problem.query)?;
            let begun = D::moment(&queue)?;
            let scale = 1.0 / (head_dim as f32).sqrt();
            kernel.step(scope, query.view(), kv, &BlockMask::FULL, scale, &mut state)?;
            let finishes = D::moment(&queue)?;
            kernel.finish(scope, state, out.view_mut(), None)?;
            Ok([[begins, begun], [finishes, D::moment(&queue)?]])
        })?;
    Ok([row("begin", 1, begin, made, begin_floor), row("finish", 1, finish, divided, finish_floor)])
}

/// Measures `N` things that `work` does, which move so many bytes, and after each round plain copies that move as many.
/// Gives for each its times and the median of the copies.
fn in_turns<D: Machine, const N: usize>(
    problem: &Problem,
    queue: &D::Queue,
    bytes: [usize; N],
    mut work: impl FnMut() -> attn::Result<[Span<D>; N]>,
) -> attn::Result<[(Times, f64); N]> {
    // What is copied is read and written, so half as large a tensor moves as many bytes.
    let tensor = |index: usize| {
        let shape = [1, 1, 1, bytes[index].div_ceil(2 * size_of::<f32>())];
        Ok((D::upload(queue, positions::<f32>(5, shape, 0, 1)?)?, Tensor::<f32, D>::zeros(queue, shape)?))
    };
    let mut tensors = (0..N).map(tensor).collect::<attn::Result<Vec<_>>>()?;
    let mut spans: Vec<([Span<D>; N], Vec<Span<D>>)> = Vec::with_capacity(problem.runs);
    for round in 0..problem.warmup + problem.runs {
        let worked = work()?;
        let copied = tensors.iter_mut().map(|(from, to)| {
            let start = D::moment(queue)?;
            D::duplicate(queue, from, to)?;
            Ok([start, D::moment(queue)?])
        });
        let copied = copied.collect::<attn::Result<_>>()?;
        if round >= problem.warmup {
            spans.push((worked, copied));
        }
    }
    D::synchronize(queue)?;
    let mut measured = [(Times::ZERO, 0.0); N];
    for (index, measured) in measured.iter_mut().enumerate() {
        let length = |[start, end]: &Span<D>| D::milliseconds(start, end);
        let worked = spans.iter().map(|(worked, _)| length(&worked[index])).collect::<attn::Result<_>>()?;
        let copied = spans.iter().map(|(_, copied)| length(&copied[index])).collect::<attn::Result<_>>()?;
        *measured = (Times::of(worked), Times::of(copied).median);
    }
    Ok(measured)
}

fn row(name: &'static str, ranks: usize, times: Times, bytes: usize, floor: f64) -> Row {
    Row {
        name,
        run: None,
        ranks,
        times,
        work: Work::Bytes(bytes as u64),
        floor_ms: Some(floor),
        bytes_per_rank: None,
    }
}
