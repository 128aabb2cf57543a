//! What a rank calls, and how the ranks of a group find out who calls something else.

use core::fmt;
use core::hash::{Hash, Hasher};

use crate::comm::Signature;
use crate::error::{Error, Result};

/// A collective call, as ranks compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// [`Communicator::exchange`](crate::Communicator::exchange) of so many tensors.
    Exchange(Signature, usize),
    /// [`Communicator::rotate`](crate::Communicator::rotate).
    Rotate(Signature),
    /// [`Communicator::split`](crate::Communicator::split).
    Split,
    /// [`Rendezvous::gather`](crate::comm::Rendezvous::gather), and what for.
    Gather(&'static str),
}

impl Call {
    /// A number that differs, but for one case in 2^64, where calls do; the same in every process of one program.
    pub fn fingerprint(&self) -> u64 {
        hash(self)
    }

    /// Compares the calls of a group's ranks, by rank, with this rank's own. `members` are the ranks' numbers in the
    /// world: the error may reach other groups of it.
    ///
    /// # Errors
    /// [`Error::RanksDisagree`] if one differs, in the same words on every rank.
    pub(crate) fn agree<'c, T: fmt::Display + PartialEq + 'c>(
        members: &[usize],
        calls: impl Fn() -> core::slice::Iter<'c, T>,
    ) -> Result<()> {
        let votes = |call: &T| calls().filter(|other| *other == call).count();
        // The call that most ranks made; among equals, that of the lowest rank.
        let expected = calls().reduce(|best, call| if votes(call) > votes(best) { call } else { best });
        let Some(expected) = expected else { return Ok(()) };
        let Some((rank, theirs)) = calls().enumerate().find(|(_, call)| *call != expected) else {
            return Ok(());
        };
        let others: Vec<String> = calls()
            .zip(members)
            .filter(|(call, _)| *call == expected)
            .map(|(_, member)| member.to_string())
            .collect();
        Err(Error::RanksDisagree {
            rank: members[rank],
            theirs: theirs.to_string(),
            others: format!("rank{} {}", if others.len() == 1 { "" } else { "s" }, others.join(", ")),
            expected: expected.to_string(),
        })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(signature, n) => write!(f, "exchange ({signature}; {n} tensors)"),
            Self::Rotate(signature) => write!(f, "rotate ({signature})"),
            Self::Split => f.write_str("split"),
            Self::Gather(what) => write!(f, "gather ({what})"),
        }
    }
}

/// A number that is the same in every process of one program.
pub(super) fn hash(value: &impl Hash) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    value.hash(&mut hasher);
    hasher.finish()
}

/// FNV-1a, 64 bits: G. Fowler, L. C. Noll, K.-P. Vo, D. Eastlake, "The FNV Non-Cryptographic Hash Algorithm". The standard
/// library's own hasher promises no stable result.
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_differ_where_calls_do() {
        let calls = [Call::Split, Call::Gather("ids"), Call::Gather("addresses")];
        for (n, call) in calls.iter().enumerate() {
            for (m, other) in calls.iter().enumerate() {
                assert_eq!(call.fingerprint() == other.fingerprint(), n == m);
            }
        }
    }

    #[test]
    fn the_rank_that_differs_is_named_by_its_number_in_the_world() {
        let calls = [Call::Split, Call::Gather("ids"), Call::Split];
        let error = Call::agree(&[4, 6, 8], || calls.iter()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "rank 6 differs from its group: it called gather (ids), where ranks 4, 8 called split"
        );
        assert!(Call::agree(&[4, 6, 8], || [Call::Split; 3].iter()).is_ok());
    }
}
