//! What was tried, and what came of it.

use std::time::Duration;

use super::injector::{DEADLINE, Fault};

/// One fault in one world.
#[derive(Debug)]
pub(crate) struct Row {
    /// The section of the table.
    pub(crate) world: &'static str,
    pub(crate) strategy: &'static str,
    /// Where in the strategy.
    pub(crate) point: String,
    pub(crate) fault: Fault,
    /// The rank at fault.
    pub(crate) rank: usize,
    /// What each rank said at its end, if it said anything.
    pub(crate) said: Vec<Option<Result<(), String>>>,
    /// What whoever started the ranks said of a rank that ended badly.
    pub(crate) starter: Option<String>,
    /// How long the world lived after the fault's own sleep.
    pub(crate) took: Duration,
}

impl Row {
    /// What is not as it must be: every survivor ends with an error that names the rank or the collective, in time.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for (rank, said) in self.said.iter().enumerate().filter(|(rank, _)| *rank != self.rank) {
            match said {
                Some(Err(error)) if self.names(error) => {}
                Some(Err(error)) => {
                    complaints.push(format!("rank {rank} does not say whose fault it is: {error}"))
                }
                Some(Ok(())) => complaints.push(format!("rank {rank} thinks that all is well")),
                // Whoever started the ranks has ended this one, and says why.
                None if self
                    .starter
                    .as_ref()
                    .is_some_and(|said| said.contains(&format!("rank {}", self.rank))) => {}
                None => complaints.push(format!("rank {rank} ended without a word")),
            }
        }
        if self.took > DEADLINE + Duration::from_secs(2) {
            complaints.push(format!("it took {:.1} s", self.took.as_secs_f64()));
        }
        complaints
    }

    /// Whether an error blames the rank at fault, in words that fit what it did.
    fn names(&self, error: &str) -> bool {
        let says =
            |words: &[&str]| words.iter().any(|words| error.contains(&format!("rank {} {words}", self.rank)));
        match self.fault {
            Fault::Panic => says(&["panicked"]),
            Fault::Error => says(&["failed"]),
            Fault::Leave | Fault::Exit | Fault::Close => says(&["has ended", "is lost", "failed"]),
            // Under MPI nobody learns that a process is dead; at the deadline it is the one that is missing.
            Fault::Kill => says(&["has ended", "is lost", "failed"]) || self.misses(error),
            // Who waits for one that waits for the sleeper has not heard of that one either.
            Fault::Sleep => error.contains("passed its deadline"),
            // Of two that differ, nobody knows who is right.
            Fault::Shapes | Fault::Other => {
                error.contains("differs from its group") && says(&["differs", "called"])
            }
        }
    }

    /// Whether an error counts the rank at fault among those that had not arrived.
    fn misses(&self, error: &str) -> bool {
        let list = error.rsplit_once("ranks [").and_then(|(_, list)| list.split_once("] had not arrived"));
        list.is_some_and(|(list, _)| list.split(", ").any(|rank| rank == self.rank.to_string()))
    }

    /// A line of the table.
    pub(crate) fn line(&self) -> String {
        let mut heard: Vec<(String, Vec<usize>)> = Vec::new();
        for (rank, said) in self.said.iter().enumerate().filter(|(rank, _)| *rank != self.rank) {
            let text = match said {
                Some(Err(error)) => shortened(error),
                Some(Ok(())) => String::from("(nothing)"),
                None => format!(
                    "(ended by its starter: {})",
                    self.starter.as_deref().map(shortened).unwrap_or_default()
                ),
            };
            match heard.iter_mut().find(|(other, _)| *other == text) {
                Some((_, ranks)) => ranks.push(rank),
                None => heard.push((text, vec![rank])),
            }
        }
        let heard: Vec<String> = match heard.as_slice() {
            [(text, _)] => vec![text.clone()],
            several => several.iter().map(|(text, ranks)| format!("{ranks:?} {text}")).collect(),
        };
        let Self { strategy, point, fault, rank, took, .. } = self;
        format!(
            "| {strategy} | {point} | rank {rank} {} | {} | {:.1} s |",
            fault.name(),
            heard.join("; "),
            took.as_secs_f64()
        )
    }
}

/// An error without what stands in parentheses: the details of a call.
pub(crate) fn shortened(error: &str) -> String {
    let mut depth = 0_usize;
    let mut short = String::new();
    for letter in error.chars() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' | '\n' => short.push(' '),
            _ if depth == 0 => short.push(letter),
            _ => {}
        }
    }
    let words: Vec<&str> = short.split_whitespace().collect();
    words.join(" ").replace(" ,", ",").replace(" :", ":")
}
