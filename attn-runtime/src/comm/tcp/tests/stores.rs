use std::net::TcpListener;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::{on_all, places, seconds};
use crate::comm::place::Token;
use crate::comm::tcp::Store;
use crate::error::{Error, Result};

#[test]
fn ranks_find_what_others_have_set() {
    let all = on_all(&places(3), |place| {
        let store = Store::open(place, seconds(20))?;
        if place.rank == 2 {
            std::thread::sleep(Duration::from_millis(30));
        }
        store.set(&format!("of {}", place.rank), &[place.rank as u8; 3])?;
        let found: Result<Vec<_>> = (0..3).map(|rank| store.wait(&format!("of {rank}"))).collect();
        assert_eq!(store.get("of nobody")?, None);
        store.set("of 0", b"again")?;
        assert_eq!(store.get("of 0")?.as_deref(), Some(&b"again"[..]));
        let large = store.set("large", &vec![0; (1 << 20) + 1]).unwrap_err();
        assert!(large.to_string().contains("a value of 1048577 bytes: at most 256 and 1048576"), "{large}");
        assert!(store.set("", b"").is_err());
        assert!(store.set(&"k".repeat(257), b"").is_err());
        store.set("largest", &vec![7; 1 << 20])?;
        assert_eq!(store.wait("largest")?.len(), 1 << 20);
        store.finish()?;
        found
    });
    for found in all {
        let found = found.unwrap();
        assert!(found[0] == [0; 3] || found[0] == b"again");
        assert_eq!(found[1..], [[1; 3], [2; 3]]);
    }
}

#[test]
fn its_port_is_free_again_once_it_is_finished() {
    let places = places(2);
    for _ in 0..5 {
        for outcome in on_all(&places, |place| Store::open(place, seconds(20))?.finish()) {
            outcome.unwrap();
        }
    }
}

#[test]
fn who_waits_for_nobody_is_told_where() {
    let started = Instant::now();
    let place = &places(4)[2];
    let error = Store::open(place, Duration::from_millis(300)).err().unwrap();
    assert!((250..3000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    let port = place.master_port.unwrap();
    let words =
        format!("rank 2 waited 0.3 s for rank 0 at 127.0.0.1:{port}: connection refused; is rank 0 started");
    assert!(error.to_string().contains(&words), "{error}");
}

#[test]
fn a_port_in_use_is_named() {
    let place = &places(2)[0];
    let _other = TcpListener::bind(("127.0.0.1", place.master_port.unwrap())).unwrap();
    let error = Store::open(place, seconds(1)).err().unwrap();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(
        error.to_string().contains("the port is in use; choose another one with `ATTN_MASTER_PORT`"),
        "{error}"
    );
}

/// Opens the store on rank 0 with what `change` makes of its place, and then as rank 1: how that ends for both.
fn refused(change: impl Fn(&mut crate::comm::Place)) -> (Error, Error) {
    let (mut place, met) = (places(2), Barrier::new(2));
    change(&mut place[0]);
    let mut outcomes = on_all(&place, |place| {
        if place.rank == 0 {
            let store = Store::open(place, Duration::from_millis(400)).unwrap();
            met.wait();
            return store.wait("what nobody sets").unwrap_err();
        }
        met.wait();
        let started = Instant::now();
        let error = Store::open(place, seconds(20)).err().unwrap();
        assert!(started.elapsed() < seconds(5));
        error
    });
    let theirs = outcomes.pop().unwrap();
    (outcomes.pop().unwrap(), theirs)
}

#[test]
fn both_sides_are_told_why_a_rank_was_turned_away() {
    for (change, why) in [
        (
            (|place| place.token = Token::new("abc").ok()) as fn(&mut crate::comm::Place),
            "its token differs: it belongs to another job, or `ATTN_TOKEN` is not the same on every rank",
        ),
        (
            |place| {
                place.size = 3;
                place.local_size = 3;
            },
            "it takes itself for rank 1 of 2, where the other counts 3 ranks",
        ),
    ] {
        let (ours, theirs) = refused(change);
        assert!(matches!(theirs, Error::Environment(_)), "{theirs}");
        assert!(theirs.to_string().contains(why), "{theirs}");
        // Who does not belong here brings nobody down: rank 0 waits on, and says so at last.
        assert!(matches!(&ours, Error::Deadline { missing, .. } if missing.contains(&1)), "{ours}");
        assert!(ours.to_string().contains(why), "{ours}");
    }
}

#[test]
fn a_rank_does_not_come_twice() {
    let (mut places, met) = (places(3), Barrier::new(2));
    places[2].rank = 1;
    places[2].local_rank = 1;
    let outcomes = on_all(&places, |place| match place.rank {
        0 => Store::open(place, seconds(1)).and_then(|store| store.wait("nothing")).map(drop),
        _ => {
            let store = Store::open(place, seconds(20));
            // The first one stays until the second one has come.
            met.wait();
            store.and_then(|store| store.wait("nothing")).map(drop)
        }
    });
    let words: Vec<String> = outcomes.into_iter().map(|outcome| outcome.unwrap_err().to_string()).collect();
    let twice = "there is a rank 1 already: two processes were given the same rank";
    assert_eq!(words[1..].iter().filter(|words| words.contains(twice)).count(), 1, "{words:?}");
    assert!(words[0].contains("ranks [2] had not arrived") && words[0].contains(twice), "{words:?}");
}

#[test]
fn a_rank_that_does_not_finish_is_named_by_all() {
    let outcomes = on_all(&places(3), |place| {
        // Rank 1 would wait for long, and is told before.
        let deadline = if place.rank == 1 { seconds(20) } else { Duration::from_millis(500) };
        let store = Store::open(place, deadline).unwrap();
        if place.rank == 1 { store.wait("nothing").map(drop) } else { store.finish() }
    });
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert!(matches!(&error, Error::Deadline { missing, .. } if *missing == [1]), "{error}");
    }
}

#[test]
fn a_rank_that_goes_ends_the_waits_of_the_others() {
    let started = Instant::now();
    let outcomes = on_all(&places(3), |place| {
        let store = Store::open(place, seconds(20))?;
        store.set(&format!("{}", place.rank), b"")?;
        if place.rank == 1 {
            [0, 2].iter().try_for_each(|rank| store.wait(&format!("{rank}")).map(drop))?;
            return Ok(Vec::new());
        }
        store.wait("never")
    });
    for rank in [0, 2] {
        let error = outcomes[rank].as_ref().unwrap_err();
        assert!(matches!(error, Error::RankLost { rank: 1, .. }), "{error}");
    }
    assert!(started.elapsed() < seconds(5), "{:?}", started.elapsed());
}

#[test]
fn who_comes_after_the_others_have_gone_is_told_so() {
    let gone = Barrier::new(2);
    let outcomes = on_all(&places(3), |place| {
        if place.rank == 2 {
            gone.wait();
            let error = Store::open(place, seconds(20)).map(drop).unwrap_err();
            gone.wait();
            return error;
        }
        let store = Store::open(place, seconds(20)).unwrap();
        if place.rank == 1 {
            drop(store);
            return Error::ZeroSize { what: "rank 1" };
        }
        let error = store.wait("never").unwrap_err();
        gone.wait();
        // Rank 0 has heard, and stays until rank 2 has.
        gone.wait();
        error
    });
    assert!(matches!(outcomes[0], Error::RankLost { rank: 1, .. }), "{}", outcomes[0]);
    assert!(matches!(outcomes[2], Error::Unavailable { .. }), "{}", outcomes[2]);
    assert!(outcomes[2].to_string().contains("the others wait no longer"), "{}", outcomes[2]);
}

#[test]
fn rank_0_that_goes_ends_the_waits_of_the_others() {
    let started = Instant::now();
    let outcomes = on_all(&places(3), |place| {
        let store = Store::open(place, seconds(20))?;
        if place.rank == 0 {
            (1..3).try_for_each(|rank| store.wait(&format!("{rank}")).map(drop))?;
            return Ok(Vec::new());
        }
        store.set(&format!("{}", place.rank), b"")?;
        store.wait("never")
    });
    for outcome in &outcomes[1..] {
        let error = outcome.as_ref().unwrap_err();
        assert!(matches!(error, Error::RankLost { rank: 0, .. }), "{error}");
    }
    assert!(started.elapsed() < seconds(5), "{:?}", started.elapsed());
}
