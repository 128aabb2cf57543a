//! What goes wrong on purpose, and what every rank must hear of it.

use std::time::Duration;

use attn::prelude::*;
use attn::{Error, ExchangePlan, KeyValue, Transfer};

use super::{Memory, scoped, signature};

/// How long collectives wait in worlds in which a fault is tried.
pub const DEADLINE: Duration = Duration::from_secs(1);

/// One fault: what each rank of a fresh world does, with collectives that wait for [`DEADLINE`], and what must come of it.
pub struct Fault<C> {
    /// What is tried.
    pub name: &'static str,
    /// What a rank does. The last one is at fault.
    pub body: fn(&C) -> attn::Result<()>,
    /// Whether the rank at fault thinks that all is well.
    pub leaves: bool,
    /// Whether a rank (its number, how many there are) was told what it must hear.
    pub heard: fn(usize, usize, &Error) -> bool,
}

/// The faults, for two ranks or more.
pub fn faults<C: Communicator>() -> Vec<Fault<C>>
where
    C::Device: Memory,
{
    vec![
        Fault {
            name: "another shape",
            body: |comm| meet(comm, usize::from(at_fault(comm))),
            leaves: false,
            heard: |_, ranks, error| matches!(error, Error::RanksDisagree { rank, .. } if ranks == 2 || *rank == ranks - 1),
        },
        Fault {
            name: "another collective",
            body: |comm| if at_fault(comm) { turn(comm, 1, || Ok(())) } else { meet(comm, 0) },
            leaves: false,
            heard: |_, ranks, error| matches!(error, Error::RanksDisagree { rank, .. } if ranks == 2 || *rank == ranks - 1),
        },
        Fault {
            name: "a split where others exchange",
            body: |comm| if at_fault(comm) { comm.split(0, 0).map(drop) } else { meet(comm, 0) },
            leaves: false,
            heard: |_, ranks, error| matches!(error, Error::RanksDisagree { rank, .. } if ranks == 2 || *rank == ranks - 1),
        },
        Fault {
            name: "a box of another extent",
            body: |comm| boxes(comm, if at_fault(comm) { 3 } else { 4 }),
            leaves: false,
            heard: |_, _, error| {
                matches!(error, Error::Plan(_) | Error::RankFailed { .. })
                    && error.to_string().contains("[1, 3, 1, 1]")
            },
        },
        Fault {
            name: "a box of another extent in a group that counts backwards",
            body: |comm| boxes(&backwards(comm)?, if at_fault(comm) { 3 } else { 4 }),
            leaves: false,
            heard: |_, ranks, error| {
                let said = error.to_string();
                let names =
                    |to| said.contains(&format!("rank {} sends Some([1, 3, 1, 1]) to rank {to}", ranks - 1));
                (0..ranks - 1).any(names)
            },
        },
        Fault {
            name: "a block of another length in a group that counts backwards",
            body: |comm| {
                let length = if at_fault(comm) { 2 } else { 1 };
                turn(&backwards(comm)?, length, || Ok(()))
            },
            leaves: false,
            heard: |_, ranks, error| {
                error.to_string().contains(&format!("rank {}'s block is 2 long", ranks - 1))
            },
        },
        Fault {
            name: "an error while a block is shown",
            body: |comm| {
                let fails = at_fault(comm);
                let outcome = || if fails { Err(Error::Scale(f32::NAN)) } else { Ok(()) };
                turn(comm, 1, outcome).and_then(|()| meet(comm, 0))
            },
            leaves: false,
            heard: |rank, ranks, error| match error {
                Error::Scale(_) => rank == ranks - 1,
                Error::RankFailed { rank: failed, message } => {
                    *failed == ranks - 1 && message.contains("NaN")
                }
                _ => false,
            },
        },
        Fault {
            name: "a rank that returns early",
            body: |comm| if at_fault(comm) { Ok(()) } else { meet(comm, 0) },
            leaves: true,
            heard: |_, ranks, error| names(error, ranks - 1),
        },
        Fault {
            name: "a rank that fails elsewhere",
            body: |comm| if at_fault(comm) { Err(Error::Scale(f32::INFINITY)) } else { meet(comm, 0) },
            leaves: false,
            heard: |rank, ranks, error| rank == ranks - 1 || names(error, ranks - 1),
        },
        Fault {
            name: "a rank that sleeps past the deadline",
            body: |comm| {
                if at_fault(comm) {
                    std::thread::sleep(DEADLINE + Duration::from_millis(500));
                }
                meet(comm, 0)
            },
            leaves: false,
            heard: |rank, ranks, error| match error {
                Error::Deadline { operation, sequence, missing, .. } => {
                    operation.starts_with("exchange") && *sequence == 1 && *missing == [ranks - 1]
                }
                // Whoever slept may find the others gone.
                error => rank == ranks - 1 && !matches!(error, Error::Plan(_)),
            },
        },
        Fault {
            name: "a rank that sleeps in the middle of a ring",
            body: |comm| {
                let asleep = at_fault(comm);
                turn(comm, 1, || {
                    if asleep {
                        std::thread::sleep(DEADLINE + Duration::from_millis(500));
                    }
                    Ok(())
                })?;
                meet(comm, 0)
            },
            leaves: false,
            heard: |rank, ranks, error| match error {
                Error::Deadline { missing, .. } => !missing.is_empty(),
                error => rank == ranks - 1 && !matches!(error, Error::Plan(_)),
            },
        },
    ]
}

fn at_fault<C: Communicator>(comm: &C) -> bool {
    comm.rank() + 1 == comm.size()
}

/// Whether an error is about a rank.
fn names(error: &Error, at_fault: usize) -> bool {
    match error {
        Error::RankLeft { rank, .. } | Error::RankLost { rank, .. } | Error::RankFailed { rank, .. } => {
            *rank == at_fault
        }
        _ => false,
    }
}

/// An exchange of nothing.
fn meet<C: Communicator>(comm: &C, call: usize) -> attn::Result<()> {
    scoped(comm, |scope| comm.exchange(scope, &signature("meet", call), &mut []))
}

/// All ranks, the last one first.
fn backwards<C: Communicator>(comm: &C) -> attn::Result<C> {
    comm.split(0, comm.size() - comm.rank())
}

/// A ring of blocks of one position, in which this rank shows one of so many.
fn turn<C: Communicator>(
    comm: &C,
    positions: usize,
    mut visit: impl FnMut() -> attn::Result<()>,
) -> attn::Result<()> {
    let queue = comm.queue()?;
    let tensor = Tensor::<f32, C::Device>::zeros(&queue, [1, positions, 1, 8])?;
    let block = KeyValue { key: tensor.view(), value: tensor.view() };
    let lengths = vec![1; comm.size()];
    scoped(comm, |scope| comm.rotate(scope, &signature("turn", 0), &lengths, block, |_, _| visit()))
}

/// An exchange in which each rank sends each so many positions, and expects four.
fn boxes<C: Communicator>(comm: &C, positions: usize) -> attn::Result<()> {
    let queue = comm.queue()?;
    let from = Tensor::<f32, C::Device>::zeros(&queue, [1, 4, 1, 1])?;
    let mut to = Tensor::<f32, C::Device>::zeros(&queue, [1, 4 * comm.size(), 1, 1])?;
    let mut plan = ExchangePlan::default();
    for peer in (0..comm.size()).filter(|&peer| peer != comm.rank()) {
        plan.send(peer, [0; 4], [1, positions, 1, 1]);
        plan.receive(peer, [0, 4 * peer, 0, 0], [1, 4, 1, 1]);
    }
    scoped(comm, |scope| {
        let transfer = Transfer::new(&plan, from.view(), to.view_mut())?;
        comm.exchange(scope, &signature("boxes", 0), &mut [transfer])
    })
}
