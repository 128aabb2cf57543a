//! What goes from one rank to another in an exchange, seen from either end, and how it gets there.

use std::sync::Arc;

use super::credit::{Answers, Credit};
use super::direct;
use super::pieces::Pieces;
use super::shared::View;
use crate::comm::StridedBox;

/// What goes to one rank, or comes from it.
pub(super) struct Way {
    pub(super) pieces: Pieces,
    /// How many messages have gone or come after the call: with pieces, or about pieces.
    pub(super) messages: u64,
    pub(super) course: Course,
    /// How far this rank may run ahead over a link with what goes, and what it answers to what comes. Shared memory has slots
    /// for that.
    pub(super) credit: Credit,
    pub(super) answers: Answers,
}

/// How it gets there.
pub(super) enum Course {
    /// In messages.
    Messages,
    /// Not decided: the other rank's call has not come. Whether this one's has offered its boxes.
    Open { offered: bool },
    /// This rank copies it, from or to these pieces of the other one's boxes, which are in these mappings.
    Copied(Pieces, Vec<Arc<View>>),
    /// The other rank copies it, and tells of each piece.
    Awaited,
}

/// What a message of data is: tensors, or word of a piece that its sender has copied.
pub(super) const TENSORS: u64 = 0;
/// Of what it sends.
pub(super) const WRITTEN: u64 = 1;
/// Of what it receives.
pub(super) const READ: u64 = 2;

impl Way {
    pub(super) const fn new(boxes: Vec<StridedBox>, limit: usize) -> Self {
        Self {
            pieces: Pieces::new(boxes, limit),
            messages: 0,
            course: Course::Messages,
            credit: Credit::unbounded(),
            answers: Answers::none(),
        }
    }

    /// Over a link, which takes whatever it is given: no more than `window` messages are on the way.
    pub(super) fn bound(&mut self, window: u64) {
        (self.credit, self.answers) = (Credit::new(window), Answers::new(window, self.pieces.messages()));
    }

    /// Between ranks that share memory: what is long is left open.
    pub(super) fn open(&mut self) {
        // Both ranks find the same, if their boxes pair.
        if direct::is_worth(self.pieces.boxes()) {
            self.course = Course::Open { offered: false };
        }
    }

    /// Decides how it goes, when it is known where the boxes are.
    pub(super) fn decide(&mut self, course: Course) {
        if !matches!(course, Course::Messages) {
            // Both ranks cut alike.
            self.pieces.cut_by(direct::PIECE);
        }
        self.course = course;
    }

    /// Whether it has a further message of tensors for the other rank.
    pub(super) fn has_message(&mut self) -> bool {
        matches!(self.course, Course::Messages) && !self.pieces.is_done()
    }

    /// Whether it has a further piece for this rank to copy.
    pub(super) fn has_copy(&mut self) -> bool {
        matches!(self.course, Course::Copied(..)) && !self.pieces.is_done()
    }

    /// Whether the other rank is to tell of a further piece.
    pub(super) fn has_word(&mut self) -> bool {
        matches!(self.course, Course::Awaited) && !self.pieces.is_done()
    }

    /// Whether all of it has gone or come.
    pub(super) fn is_done(&mut self) -> bool {
        !matches!(self.course, Course::Open { .. }) && self.pieces.is_done()
    }
}
