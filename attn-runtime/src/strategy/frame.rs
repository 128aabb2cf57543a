//! Masks of the whole sequence, as the queries of one rank and the keys of one block see them.

use attn_plan::{Run, SequenceLayout};

use crate::device::{Device, Scope};
use crate::error::Result;
use crate::kernel::{Band, BlockMask, Cover, KeyLengths};
use crate::metadata::{JointStrategy, KeyPlacement, Sequence};
use crate::strategy::AttentionMask;
use crate::tensor::View;

/// A stretch of one side of a block: indices from `at` on, and what stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The first index.
    pub(super) at: usize,
    /// Which positions, or which joint tokens.
    pub(super) run: Run,
    /// Whether these are joint tokens.
    pub(super) joint: bool,
}

impl Piece {
    pub(super) const fn tokens(at: usize, run: Run) -> Self {
        Self { at, run, joint: false }
    }

    pub(super) const fn joint(at: usize, run: Run) -> Self {
        Self { at, run, joint: true }
    }
}

/// The pieces of one side: joint tokens first, then at most two runs of positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pieces {
    pieces: [Option<Piece>; 3],
}

impl Pieces {
    pub(super) fn of(pieces: impl IntoIterator<Item = Piece>) -> Self {
        let mut slots = [None; 3];
        let filled = pieces.into_iter().filter(|piece| piece.run.len > 0);
        slots.iter_mut().zip(filled).for_each(|(slot, piece)| *slot = Some(piece));
        Self { pieces: slots }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Piece> + Clone + use<> {
        self.pieces.into_iter().flatten()
    }

    /// How many indices they have.
    pub(super) fn len(&self) -> usize {
        self.iter().map(|piece| piece.run.len).sum()
    }

    /// The positions, if all are of one run and no joint tokens.
    fn single(&self) -> Option<Run> {
        match self.pieces {
            [Some(Piece { run, joint: false, .. }), None, None] => Some(run),
            _ => None,
        }
    }
}

/// What a rank must know of the whole sequence to mask a block.
pub(super) struct Frame<'a, D: Device> {
    /// Of the whole sequence; the dense mask has this rank's heads alone.
    pub(super) mask: AttentionMask<'a, D>,
    /// Who holds which queries.
    pub(super) query: SequenceLayout,
    /// Who holds which keys, if they are sharded.
    pub(super) key: SequenceLayout,
    /// Where keys are.
    pub(super) keys: KeyPlacement,
    /// How many joint tokens there are, and where they stand.
    pub(super) joint: (usize, JointStrategy),
    /// This rank's number among those that share the sequence.
    pub(super) outer: usize,
    /// This rank's queries.
    pub(super) rows: Pieces,
    /// Rows of the batch.
    pub(super) batch: usize,
}

impl<D: Device> Clone for Frame<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Frame<'_, D> {}

impl<'a, D: Device> Frame<'a, D> {
    /// The lengths of the whole sequences.
    const fn sequence(&self) -> Sequence {
        Sequence { query: self.query.seq(), key: self.key.seq() }
    }

    /// The mask by position over the whole sequence.
    pub(super) const fn band(&self) -> Band {
        self.mask.band(self.sequence())
    }

    /// This rank's queries, in one piece where the mask makes no difference between them.
    pub(super) fn row_pieces(&self) -> Pieces {
        if self.mask.tells_rows_apart() {
            return self.rows;
        }
        Pieces::of([Piece::tokens(0, Run::of(0..self.rows.len()))])
    }

    /// The mask of some queries and some keys.
    pub(super) fn block(&self, rows: Piece, keys: Piece) -> Result<BlockMask<'a, D>> {
        let dense = match self.mask.dense {
            None => None,
            Some(dense) => Some(
                dense
                    .select(2, self.joined(rows, self.query.seq()))?
                    .select(3, self.joined(keys, self.key.seq()))?,
            ),
        };
        // With joint tokens there is no span and there are no segments, and joint keys all count.
        let mask = self.mask.between(self.sequence(), rows.run, keys.run);
        Ok(BlockMask { key_lengths: mask.key_lengths.filter(|_| !keys.joint), dense, ..mask })
    }

    /// How a mask covers a block, in all rows of the batch.
    pub(super) fn cover(&self, mask: &BlockMask<'_, D>, rows: usize, keys: usize) -> Cover {
        let mut covers = (0..self.batch).map(|batch| mask.cover(batch, &(0..rows), &(0..keys)));
        let first = covers.next().unwrap_or(Cover::Skip);
        if covers.all(|cover| cover == first) { first } else { Cover::Partial }
    }

    /// The mask of all of this rank's queries and of keys that are `joint` joint tokens and then a run of positions,
    /// as one kernel call sees it: then neither side's positions are in more than one run.
    pub(super) fn call(&self, scope: Scope<'a, D>, joint: usize, run: Run) -> Result<BlockMask<'a, D>> {
        let keys = Pieces::of([Piece::joint(0, Run::of(0..joint)), Piece::tokens(joint, run)]);
        // With joint tokens there is no span and there are no segments: then it is no matter which rows these are.
        let rows = self.rows.single().unwrap_or(Run::EMPTY);
        let lengths = self.mask.key_lengths;
        let key_lengths = lengths.map(|lengths| KeyLengths::of_block(lengths, joint, run));
        let dense = self.mask.dense.map(|dense| self.assemble(scope, dense, &keys)).transpose()?;
        Ok(BlockMask { key_lengths, dense, ..self.mask.between(self.sequence(), rows, run) })
    }

    /// Where a piece stands in the joint sequence, which has `seq` positions besides the joint tokens.
    const fn joined(&self, piece: Piece, seq: usize) -> Run {
        let (tokens, order) = self.joint;
        let (joint, others) = order.starts(tokens, seq);
        let shift = if piece.joint { joint } else { others };
        Run { start: piece.run.start + shift, ..piece.run }
    }

    /// The dense mask of this rank's queries and of some keys: a view where both stand in one stretch, else a copy.
    fn assemble(
        &self,
        scope: Scope<'a, D>,
        dense: View<'a, u8, D>,
        keys: &Pieces,
    ) -> Result<View<'a, u8, D>> {
        let rows = self.stretches(&self.rows, self.query.seq());
        let keys = self.stretches(keys, self.key.seq());
        if let ([Some(rows), None, None], [Some(keys), None, None]) = (rows, keys) {
            return dense.select(2, rows)?.select(3, keys);
        }
        let length = |runs: [Option<Run>; 3]| runs.iter().flatten().map(|run| run.len).sum();
        let [batch, heads, ..] = dense.shape();
        let mut whole = scope.take::<u8>([batch, heads, length(rows), length(keys)])?;
        let mut row = 0;
        for rows in rows.into_iter().flatten() {
            let mut key = 0;
            for keys in keys.into_iter().flatten() {
                let part = whole.reborrow().narrow(2, row, rows.len)?.narrow(3, key, keys.len)?;
                scope.copy(dense.select(2, rows)?.select(3, keys)?, part)?;
                key += keys.len;
            }
            row += rows.len;
        }
        Ok(whole.into_view())
    }

    /// Where pieces stand in the joint sequence; those that follow each other there are one.
    fn stretches(&self, pieces: &Pieces, seq: usize) -> [Option<Run>; 3] {
        let mut stretches = [None::<Run>; 3];
        let mut last = 0;
        for run in pieces.iter().map(|piece| self.joined(piece, seq)) {
            match &mut stretches[last] {
                Some(before)
                    if before.step == run.step && before.start + before.len * before.step == run.start =>
                {
                    before.len += run.len;
                }
                Some(_) => {
                    last += 1;
                    stretches[last] = Some(run);
                }
                empty => *empty = Some(run),
            }
        }
        stretches
    }
}

#[cfg(test)]
mod tests {
    use attn_plan::Sharding;

    use super::*;
    use crate::device::{Arena, Cpu, cpu::CpuQueue};
    use crate::tensor::Tensor;

    fn frame(dense: &Tensor<u8>, order: JointStrategy, joint_rows: Run, rows: Run) -> Frame<'_, Cpu> {
        let layout = Sharding { outer: 2, ..Sharding::ONE }.sequence(4).unwrap();
        Frame {
            mask: AttentionMask { dense: Some(dense.view()), ..AttentionMask::default() },
            query: layout,
            key: layout,
            keys: KeyPlacement::Sharded,
            joint: (2, order),
            outer: 1,
            rows: Pieces::of([Piece::joint(0, joint_rows), Piece::tokens(joint_rows.len, rows)]),
            batch: 1,
        }
    }

    /// Rows and columns of a mask of 6 x 6, whose entries tell where they stand, for the second of two ranks: rows of
    /// the joint token that it computes and of its own positions; all keys, joint ones first.
    #[test]
    fn a_dense_mask_follows_rows_and_keys_to_where_they_stand_inside() {
        let queue = CpuQueue::new(1).unwrap();
        let dense = Tensor::<u8>::from_fn([1, 1, 6, 6], |[_, _, i, j]| (10 * i + j) as u8).unwrap();
        for (order, rows, columns) in [
            (JointStrategy::Front, [1, 4, 5], [0, 1, 2, 3, 4, 5]),
            (JointStrategy::Rear, [5, 2, 3], [4, 5, 0, 1, 2, 3]),
        ] {
            let mut arena = Arena::<Cpu>::default();
            let scope = arena.open(&queue).unwrap();
            let frame = frame(&dense, order, Run::of(1..2), Run::of(2..4));
            let mask = frame.call(scope, 2, Run::of(0..4)).unwrap().dense.unwrap();
            assert_eq!(mask.shape(), [1, 1, 3, 6]);
            for (i, row) in rows.into_iter().enumerate() {
                for (j, column) in columns.into_iter().enumerate() {
                    assert_eq!(mask.at([0, 0, i, j]), 10 * row + column, "{order:?} {i} {j}");
                }
            }
        }
    }

    #[test]
    fn rows_that_stand_together_are_not_copied() {
        let queue = CpuQueue::new(1).unwrap();
        let dense = Tensor::<u8>::from_fn([1, 1, 6, 6], |_| 1).unwrap();
        let mut arena = Arena::<Cpu>::default();
        let scope = arena.open(&queue).unwrap();
        let frame = frame(&dense, JointStrategy::Front, Run::of(0..2), Run::of(0..4));
        let mask = frame.call(scope, 2, Run::of(0..4)).unwrap().dense.unwrap();
        assert_eq!(mask.base(), dense.view().base());
    }
}
