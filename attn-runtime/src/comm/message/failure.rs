//! Failures on their way to other ranks.

use crate::error::Error;

/// The error of a rank as its world hears of it: failures of the world as they are, a rank's own under its number.
pub(super) fn shown(error: &Error, me: usize) -> Error {
    match error {
        Error::RankFailed { .. }
        | Error::RankPanicked { .. }
        | Error::RanksDisagree { .. }
        | Error::Deadline { .. }
        | Error::RankLeft { .. }
        | Error::RankLost { .. } => error.clone(),
        own => Error::RankFailed { rank: me, message: own.to_string() },
    }
}

/// A failure as bytes.
pub(super) fn write(error: &Error, me: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    match shown(error, me) {
        Error::RankPanicked { rank, message } => {
            bytes.tag(2).number(rank).text(&message);
        }
        Error::RanksDisagree { rank, theirs, others, expected } => {
            bytes.tag(3).number(rank).text(&theirs).text(&others).text(&expected);
        }
        Error::Deadline { operation, sequence, seconds, missing } => {
            bytes.tag(4).text(&operation).word(sequence).word(seconds.to_bits());
            missing.into_iter().for_each(|rank| {
                bytes.number(rank);
            });
        }
        Error::RankLeft { rank, operation, sequence } => {
            bytes.tag(5).number(rank).text(&operation).word(sequence);
        }
        Error::RankLost { rank, operation, sequence, why } => {
            bytes.tag(6).number(rank).text(&operation).word(sequence).text(&why);
        }
        Error::RankFailed { rank, message } => {
            bytes.tag(1).number(rank).text(&message);
        }
        own => {
            bytes.tag(1).number(me).text(&own.to_string());
        }
    }
    bytes
}

/// A failure that rank `from` has told.
pub(super) fn read(bytes: &[u8], from: usize) -> Error {
    let unreadable = || Error::RankFailed {
        rank: from,
        message: format!("it told of a failure in {} bytes that cannot be read", bytes.len()),
    };
    Reader(bytes).failure().unwrap_or_else(unreadable)
}

/// Writes the parts of a failure, one behind the other.
trait Write {
    fn tag(&mut self, tag: u8) -> &mut Self;
    fn word(&mut self, word: u64) -> &mut Self;
    fn text(&mut self, text: &str) -> &mut Self;

    fn number(&mut self, number: usize) -> &mut Self {
        self.word(number as u64)
    }
}

impl Write for Vec<u8> {
    fn tag(&mut self, tag: u8) -> &mut Self {
        self.push(tag);
        self
    }

    fn word(&mut self, word: u64) -> &mut Self {
        self.extend(word.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len()).extend(text.as_bytes());
        self
    }
}

/// What has not been read yet.
struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
    fn failure(mut self) -> Option<Error> {
        let (tag, rest) = self.0.split_first()?;
        self.0 = rest;
        let error = match tag {
            1 => Error::RankFailed { rank: self.number()?, message: self.text()? },
            2 => Error::RankPanicked { rank: self.number()?, message: self.text()? },
            3 => Error::RanksDisagree {
                rank: self.number()?,
                theirs: self.text()?,
                others: self.text()?,
                expected: self.text()?,
            },
            4 => Error::Deadline {
                operation: self.text()?,
                sequence: self.word()?,
                seconds: f64::from_bits(self.word()?),
                missing: core::iter::from_fn(|| self.number()).collect(),
            },
            5 => Error::RankLeft { rank: self.number()?, operation: self.text()?, sequence: self.word()? },
            6 => Error::RankLost {
                rank: self.number()?,
                operation: self.text()?,
                sequence: self.word()?,
                why: self.text()?,
            },
            _ => return None,
        };
        self.0.is_empty().then_some(error)
    }

    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    fn number(&mut self) -> Option<usize> {
        self.word()?.try_into().ok()
    }

    fn text(&mut self) -> Option<String> {
        let length = self.number()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failures() -> [Error; 6] {
        let text = |text: &str| text.to_owned();
        [
            Error::RankFailed { rank: 1, message: text("the disk is full") },
            Error::RankPanicked { rank: 2, message: text("") },
            Error::RanksDisagree {
                rank: 3,
                theirs: text("split"),
                others: text("ranks 0, 1"),
                expected: text("gather (ids)"),
            },
            Error::Deadline {
                operation: text("rotate (..)"),
                sequence: 9,
                seconds: 0.25,
                missing: vec![4, 6],
            },
            Error::RankLeft { rank: 5, operation: text("split"), sequence: u64::MAX },
            Error::RankLost {
                rank: 6,
                operation: text("split"),
                sequence: 1,
                why: text("the connection was reset"),
            },
        ]
    }

    #[test]
    fn failures_of_a_world_arrive_as_they_were() {
        for failure in failures() {
            assert_eq!(read(&write(&failure, 7), 0), failure);
        }
    }

    #[test]
    fn a_ranks_own_error_goes_under_its_number() {
        let own = Error::Plan("there is no rank 9 in a group of 4".into());
        let told = Error::RankFailed { rank: 7, message: own.to_string() };
        assert_eq!(read(&write(&own, 7), 0), told);
        assert_eq!(shown(&own, 7), told);
    }

    #[test]
    fn a_failure_cut_short_is_still_a_failure() {
        for failure in failures() {
            let bytes = write(&failure, 7);
            for length in 0..bytes.len() {
                let error = read(&bytes[..length], 8);
                // Of a deadline only the last of the missing ranks may be lost.
                let whole = matches!(error, Error::Deadline { .. });
                assert!(whole || matches!(error, Error::RankFailed { rank: 8, .. }), "{error}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_failure(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let error = read(&bytes, 8);
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
