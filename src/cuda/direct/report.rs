//! What a rank's kernels have reported, as an error.

use core::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use attn_runtime::{Error, Result};

use super::Operation;
use crate::cuda::abi::{EXCHANGE_LATE, EXCHANGE_UNLIKE, EXCHANGE_WITHDRAWN, ExchangeReport};

/// The error that a report holds, if any, for rank `me` of a group.
pub(super) fn read(report: &ExchangeReport, me: usize, members: &[usize], deadline: Duration) -> Result<()> {
    if report.set.load(Ordering::Acquire) == 0 {
        return Ok(());
    }
    let word = |word: &AtomicU32| word.load(Ordering::Relaxed);
    let member = |rank: u32| members.get(rank as usize).copied().unwrap_or(usize::MAX);
    let sender = word(&report.sender);
    let operation = match word(&report.operation) {
        operation if operation == Operation::Rotate as u32 => "direct rotate",
        _ => "direct exchange",
    };
    Err(match word(&report.reason) {
        EXCHANGE_LATE => Error::Deadline {
            operation: operation.to_owned(),
            sequence: u64::from(word(&report.calls)),
            seconds: deadline.as_secs_f64(),
            missing: (0..members.len() as u32)
                .filter(|rank| word(&report.ranks) >> rank & 1 == 1)
                .map(member)
                .collect(),
        },
        EXCHANGE_UNLIKE => {
            unlike(report, sender as usize == me, [sender, word(&report.receiver)].map(member))
        }
        EXCHANGE_WITHDRAWN => {
            let message = format!("it has withdrawn from the {operation}");
            Error::RankFailed { rank: member(sender), message }
        }
        other => Error::Plan(format!("the kernels of the {operation} report the unknown reason {other}")),
    })
}

/// The error for boxes that do not fit; only their sender knows more.
fn unlike(report: &ExchangeReport, own: bool, [sender, receiver]: [usize; 2]) -> Error {
    let word = |word: &AtomicU32| word.load(Ordering::Relaxed);
    let extent = |extent: &[AtomicU32; 4]| [0, 1, 2, 3].map(|axis| word(&extent[axis]));
    Error::Plan(if !own {
        format!("rank {sender} sends other boxes than rank {receiver} expects")
    } else if word(&report.which) == u32::MAX {
        let (sent, expected) = (word(&report.sent), word(&report.expected));
        format!("rank {sender} sends {sent} boxes to rank {receiver}, which expects {expected}")
    } else {
        let (sent, expected) = (extent(&report.sent_extent), extent(&report.expected_extent));
        let items = [word(&report.sent_item), word(&report.expected_item)];
        if items[0] == items[1] {
            format!("rank {sender} sends {sent:?} to rank {receiver}, which expects {expected:?}")
        } else {
            let [sent_item, expected_item] = items;
            format!(
                "rank {sender} sends {sent:?} elements of {sent_item} bytes to rank {receiver}, which expects {expected:?} \
                 of {expected_item}"
            )
        }
    })
}
