//! How far ranks know that the others have come.

use std::time::{Duration, Instant};

use super::{Comm, world};
use crate::comm::{Communicator, Rendezvous, Whereabouts};
use crate::error::Result;

/// Looks until this is known, or for so long as nothing takes here.
fn look(comm: &Comm, expected: &[Whereabouts]) {
    let started = Instant::now();
    while comm.whereabouts() != expected && started.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(comm.whereabouts(), expected);
}

fn at(place: u64) -> Whereabouts {
    Whereabouts { arrived: Some(place), ended: false }
}

#[test]
fn who_looks_learns_where_the_others_are_whatever_they_wait_for() {
    for open in [Comm::by_link, Comm::new] {
        let outcomes: Vec<Result<()>> = world(4, open, |comm| {
            let me = comm.me();
            // The first three backwards, and the last alone.
            let group = comm.split(usize::from(me == 3), 4 - me)?;
            assert_eq!(group.whereabouts()[group.me()], Whereabouts::default());
            comm.arrive([1, 5, 3, 8][me]);
            match me {
                0 => {
                    group.arrive(0);
                    let ended = Whereabouts { ended: true, ..at(8) };
                    look(comm, &[at(1), at(5), at(3), ended]);
                    // Rank 2 has left no word.
                    look(&group, &[Whereabouts::default(), at(7), at(0)]);
                }
                1 => group.arrive(7),
                // It ends at once, whoever asks later.
                3 => return Ok(()),
                _ => {}
            }
            // The others wait here.
            group.gather("the end", &[]).map(drop)
        });
        assert_eq!(outcomes, vec![Ok(()); 4]);
    }
}

#[test]
fn who_is_done_with_a_group_has_told_how_far_it_came() {
    let outcomes = world(2, Comm::by_link, |comm| {
        let group = comm.split(0, 0)?;
        group.arrive(4);
        if comm.me() == 1 {
            drop(group);
        } else {
            look(&group, &[at(4), at(4)]);
        }
        comm.gather("the end", &[]).map(drop)
    });
    assert_eq!(outcomes, [Ok(()), Ok(())]);
}
