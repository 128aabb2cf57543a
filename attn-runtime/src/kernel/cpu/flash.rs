//! Tiled attention with online softmax.
//!
//! T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022,
//! arXiv:2205.14135, algorithm 1; the order of loops (queries outside) and the division at the end are those of
//! T. Dao, "FlashAttention-2", 2023, arXiv:2307.08691, algorithm 1.
//!
//! A task is a tile of queries of one head. It walks over blocks of keys: products into a `TILE x BLOCK` panel,
//! softmax by row, output updated by the panel times the values. Blocks that no query of the tile attends are not
//! touched; in those that are attended in part, each row reads the values of its own keys alone.

use core::ops::Range;

use attn_plan::MaskKinds;

use crate::device::cpu::simd::{self, Vectorised, multiply_add};
use crate::device::{Cpu, Scope};
use crate::error::Result;
use crate::kernel::cpu::attended::{BLOCK, look, runs};
use crate::kernel::cpu::exp::exp;
use crate::kernel::cpu::rows::{cut, load};
use crate::kernel::cpu::state::{Finish, Running, SharedState, begin, finish};
use crate::kernel::{AttentionCall, AttentionKernel, BlockMask, CarriedState, CarriesState, Cover, Flash};
use crate::tensor::{Element, KeyValue, View, ViewMut};

/// Queries of a tile.
const TILE: usize = 64;
/// Floats that the inner loops keep side by side.
const LANES: usize = 16;
/// Queries that the inner loops keep side by side.
const ROWS: usize = 4;

impl<T: Element> AttentionKernel<Cpu, T> for Flash {
    const MASKS: MaskKinds = MaskKinds::ALL;

    fn forward(&self, scope: Scope<'_, Cpu>, call: &mut AttentionCall<'_, T, Cpu>) -> Result<()> {
        let rows = Finish::new(call.out.reborrow(), call.lse.as_mut().map(ViewMut::reborrow));
        each_tile(scope, call.query, call.kv, &call.mask, call.scale, |tile| {
            tile.output.fill(0.0);
            simd::run(Walk(tile));
            tile.for_each(|row, running, output| {
                // SAFETY: `each_tile` gives each row to one worker.
                unsafe { rows.row(row, *running, output) };
            });
        })
    }
}

impl<T: Element> CarriesState<Cpu, T> for Flash {
    fn begin<'a>(&self, scope: Scope<'a, Cpu>, query: [usize; 4]) -> Result<CarriedState<'a, Cpu>> {
        begin(scope, query)
    }

    fn step(
        &self,
        scope: Scope<'_, Cpu>,
        query: View<'_, T, Cpu>,
        kv: KeyValue<'_, T, Cpu>,
        mask: &BlockMask<'_, Cpu>,
        scale: f32,
        state: &mut CarriedState<'_, Cpu>,
    ) -> Result<()> {
        let state = SharedState::new(state);
        each_tile(scope, query, kv, mask, scale, |tile| {
            tile.for_each(|row, running, output| {
                // SAFETY: `each_tile` gives each row to one worker.
                *running = unsafe { state.load(row, output) };
            });
            simd::run(Walk(tile));
            tile.for_each(|row, running, output| {
                // SAFETY: as above.
                unsafe { state.store(row, *running, output) };
            });
        })
    }

    fn finish(
        &self,
        scope: Scope<'_, Cpu>,
        state: CarriedState<'_, Cpu>,
        out: ViewMut<'_, T, Cpu>,
        lse: Option<ViewMut<'_, f32, Cpu>>,
    ) -> Result<()> {
        finish(scope, state, out, lse)
    }
}

/// One worker's tile: queries of one head, with their state.
struct Tile<'m, T> {
    batch: usize,
    head: usize,
    /// The head that its queries attend with.
    kv_head: usize,
    kv: KeyValue<'m, T, Cpu>,
    mask: &'m BlockMask<'m, Cpu>,
    /// The queries' positions.
    positions: Range<usize>,
    head_dim: usize,
    /// `head_dim`, rounded up to whole lanes. What lies beyond, like rows beyond the tile and keys beyond the block, is
    /// computed along and never looked at.
    width: usize,
    /// `[TILE, width]`, already scaled.
    query: &'m mut [f32],
    /// `[TILE, width]`.
    output: &'m mut [f32],
    running: [Running; TILE],
    /// `[head_dim, BLOCK]`.
    keys: &'m mut [f32],
    /// `[BLOCK, width]`.
    values: &'m mut [f32],
    /// `[TILE, BLOCK]`: products, then their exponentials.
    panel: &'m mut [f32],
    /// Which keys of the block each query attends, while they attend some of it and not all.
    attended: [u64; TILE],
}

/// Calls `body` for each tile, its queries loaded.
fn each_tile<T: Element>(
    scope: Scope<'_, Cpu>,
    query: View<'_, T, Cpu>,
    kv: KeyValue<'_, T, Cpu>,
    mask: &BlockMask<'_, Cpu>,
    scale: f32,
    body: impl Fn(&mut Tile<'_, T>) + Sync,
) -> Result<()> {
    let [batch, seq_q, heads, head_dim] = query.shape();
    if query.shape().contains(&0) {
        return Ok(());
    }
    let group = heads / kv.key.shape()[2].max(1);
    let width = head_dim.next_multiple_of(LANES);
    let floats = (2 * TILE + BLOCK) * width + head_dim * BLOCK + TILE * BLOCK;
    let tiles = seq_q.div_ceil(TILE);
    scope.queue().for_each_with(tiles * batch * heads, floats, |mut memory, task| {
        // The last tiles first: under a causal mask they are the longest.
        let (index, batch_head) = (tiles - 1 - task / (batch * heads), task % (batch * heads));
        let mut tile = Tile {
            batch: batch_head / heads,
            head: batch_head % heads,
            kv_head: batch_head % heads / group,
            kv,
            mask,
            positions: index * TILE..seq_q.min((index + 1) * TILE),
            head_dim,
            width,
            query: cut(&mut memory, TILE * width),
            output: cut(&mut memory, TILE * width),
            running: [Running::EMPTY; TILE],
            keys: cut(&mut memory, head_dim * BLOCK),
            values: cut(&mut memory, BLOCK * width),
            panel: cut(&mut memory, TILE * BLOCK),
            attended: [0; TILE],
        };
        tile.load_query(&query, scale);
        body(&mut tile);
    })
}

/// Takes all keys that the mask allows into a tile's state.
struct Walk<'t, 'm, T>(&'t mut Tile<'m, T>);

impl<T: Element> Vectorised for Walk<'_, '_, T> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self(tile) = self;
        // What lies behind is padding, and not to be read.
        let keys = tile.mask.keys(tile.batch, tile.kv.key.shape()[1]);
        for start in (0..keys).step_by(BLOCK) {
            let block = start..keys.min(start + BLOCK);
            let row = [tile.batch, tile.head];
            let cover = look(tile.mask, row, &tile.positions, &block, &mut tile.attended);
            if cover == Cover::Skip {
                continue;
            }
            tile.load_block(&block);
            tile.products::<FUSED>(block.len());
            match cover {
                Cover::Full => tile.attend_all::<FUSED>(block.len()),
                Cover::Partial | Cover::Skip => tile.attend_some(),
            }
        }
    }
}

impl<T: Element> Tile<'_, T> {
    /// Calls `body(row, running, output)` for each query.
    fn for_each(&mut self, mut body: impl FnMut([usize; 3], &mut Running, &mut [f32])) {
        let rows = self.output.chunks_exact_mut(self.width).zip(&mut self.running);
        for ((output, running), position) in rows.zip(self.positions.clone()) {
            body([self.batch, position, self.head], running, &mut output[..self.head_dim]);
        }
    }

    fn load_query(&mut self, query: &View<'_, T, Cpu>, scale: f32) {
        for (row, position) in self.query.chunks_exact_mut(self.width).zip(self.positions.clone()) {
            load(query, [self.batch, position, self.head], &mut row[..self.head_dim]);
            for value in &mut row[..self.head_dim] {
                *value *= scale;
            }
        }
    }

    /// Widens a block: keys transposed, so that keys lie side by side, values as they are.
    #[inline(always)]
    fn load_block(&mut self, block: &Range<usize>) {
        for (index, position) in block.clone().enumerate() {
            let row = [self.batch, position, self.kv_head];
            // The values' row serves for the key on its way.
            let buffer = &mut self.values[index * self.width..][..self.width];
            load(&self.kv.key, row, &mut buffer[..self.head_dim]);
            for (column, value) in self.keys.chunks_exact_mut(BLOCK).zip(&*buffer) {
                column[index] = *value;
            }
            load(&self.kv.value, row, &mut buffer[..self.head_dim]);
        }
    }

    /// `panel = query * keys`.
    #[inline(always)]
    fn products<const FUSED: bool>(&mut self, keys: usize) {
        let (width, head_dim) = (self.width, self.head_dim);
        let rows = self.positions.len().next_multiple_of(ROWS);
        for row in (0..rows).step_by(ROWS) {
            for key in (0..keys).step_by(LANES) {
                let mut sums = [[0.0_f32; LANES]; ROWS];
                for (axis, column) in self.keys.chunks_exact(BLOCK).enumerate().take(head_dim) {
                    let column: &[f32; LANES] = lanes(column, key);
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let query = self.query[(row + r) * width + axis];
                        for lane in 0..LANES {
                            sums[lane] = multiply_add::<FUSED>(query, column[lane], sums[lane]);
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    self.panel[(row + r) * BLOCK + key..][..LANES].copy_from_slice(sums);
                }
            }
        }
    }

    /// Takes a block that every query attends into the state.
    #[inline(always)]
    fn attend_all<const FUSED: bool>(&mut self, keys: usize) {
        for row in 0..self.positions.len() {
            self.softmax_row(row, 0..keys);
        }
        let width = self.width;
        let rows = self.positions.len().next_multiple_of(ROWS);
        for row in (0..rows).step_by(ROWS) {
            for axis in (0..width).step_by(LANES) {
                let mut sums = [[0.0_f32; LANES]; ROWS];
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = *lanes(self.output, (row + r) * width + axis);
                }
                for key in 0..keys {
                    let value: &[f32; LANES] = lanes(self.values, key * width + axis);
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let weight = self.panel[(row + r) * BLOCK + key];
                        for lane in 0..LANES {
                            sums[lane] = multiply_add::<FUSED>(weight, value[lane], sums[lane]);
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    self.output[(row + r) * width + axis..][..LANES].copy_from_slice(sums);
                }
            }
        }
    }

    /// Takes a block that is attended in part into the state. A row touches no value but those of its own keys, so that
    /// what is not attended, NaN included, does not reach it.
    #[inline(always)]
    fn attend_some(&mut self) {
        let width = self.width;
        for row in 0..self.positions.len() {
            let attended = self.attended[row];
            if attended == 0 {
                continue;
            }
            let (start, end) =
                (attended.trailing_zeros() as usize, BLOCK - attended.leading_zeros() as usize);
            if attended.count_ones() as usize != end - start {
                for (key, product) in self.panel[row * BLOCK..][..end].iter_mut().enumerate().skip(start) {
                    *product = if attended >> key & 1 == 1 { *product } else { f32::NEG_INFINITY };
                }
            }
            self.softmax_row(row, start..end);
            let output = &mut self.output[row * width..][..width];
            for key in runs(attended).flatten() {
                let weight = self.panel[row * BLOCK + key];
                let value = &self.values[key * width..][..width];
                for (output, value) in output.iter_mut().zip(value) {
                    *output += weight * value;
                }
            }
        }
    }

    /// Turns a row's products into exponentials, and brings its state to the new maximum.
    #[inline(always)]
    fn softmax_row(&mut self, row: usize, keys: Range<usize>) {
        let weights = &mut self.panel[row * BLOCK..][keys];
        let before = self.running[row];
        let mut max = before.max;
        for weight in &*weights {
            max = if *weight > max { *weight } else { max };
        }
        let base = Running::base(max);
        let mut sums = [0.0_f32; LANES];
        let mut groups = weights.chunks_exact_mut(LANES);
        for group in &mut groups {
            for (lane, weight) in group.iter_mut().enumerate() {
                *weight = exp(*weight - base);
                sums[lane] += *weight;
            }
        }
        for (lane, weight) in groups.into_remainder().iter_mut().enumerate() {
            *weight = exp(*weight - base);
            sums[lane] += *weight;
        }
        // A row that had attended nothing keeps nothing, whatever the maximum has become.
        let keep = if before.sum == 0.0 { 0.0 } else { exp(before.max - base) };
        if keep != 1.0 {
            for output in &mut self.output[row * self.width..][..self.width] {
                *output *= keep;
            }
        }
        self.running[row] = Running { max, sum: before.sum * keep + sums.iter().sum::<f32>() };
    }
}

/// `LANES` floats from `start` on.
#[inline(always)]
fn lanes(slice: &[f32], start: usize) -> &[f32; LANES] {
    slice[start..].first_chunk().expect("buffers are whole lanes wide")
}
