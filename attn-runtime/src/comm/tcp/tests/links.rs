use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{on_all, places, seconds};
use crate::comm::message::{Bytes, Event, Head, Link};
use crate::comm::tcp::frame::{self, Frame};
use crate::comm::tcp::{Store, TcpLink};
use crate::error::{Error, Result};

fn head(number: u64) -> Head {
    Head([number, 0, 0, 0, 0, 0, 0, !number])
}

fn body(length: usize, seed: usize) -> Arc<Bytes> {
    let mut bytes = Bytes::zeroed(length).unwrap();
    for (n, word) in bytes.as_mut_slice().chunks_mut(4096).enumerate() {
        word.fill((n * 31 + seed) as u8);
    }
    Arc::new(bytes)
}

fn next(link: &mut TcpLink) -> Event {
    link.receive(Instant::now() + seconds(20)).unwrap().expect("something comes within 20 s")
}

/// The next event, which must be the loss of this rank: why.
fn lost(link: &mut TcpLink, expected: usize) -> String {
    match next(link) {
        Event::Lost { rank, why } if rank == expected => why,
        other => panic!("{other:?} in place of the loss of rank {expected}"),
    }
}

/// A connection: both its ends.
fn line() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (here, listener.accept().unwrap().0)
}

/// Two links with one connection.
fn pair() -> (TcpLink, TcpLink) {
    let (here, there) = line();
    let link = |rank, streams| TcpLink::over(rank, streams, seconds(5)).unwrap();
    (link(0, vec![None, Some(here)]), link(1, vec![Some(there), None]))
}

#[test]
fn messages_arrive_in_order_from_every_rank() {
    const EACH: u64 = 200;
    on_all(&places(4), |place| {
        let mut link = TcpLink::connect(place, seconds(20)).unwrap();
        assert_eq!((link.rank(), link.size()), (place.rank, 4));
        for number in 0..EACH {
            for to in 0..4 {
                let body = (number % 3 > 0).then(|| body(number as usize * 37, place.rank));
                link.send(to, head(number), body).unwrap();
            }
        }
        let mut expected = [0; 4];
        while expected.iter().any(|count| *count < EACH) {
            let (from, found, found_body) = match next(&mut link) {
                Event::Message { from, head, body } => (from, head, body),
                // It has all that it waited for, and has closed.
                Event::Lost { rank, .. } => {
                    assert_eq!(expected[rank], EACH);
                    continue;
                }
            };
            let number = expected[from];
            assert_eq!(found, head(number));
            match found_body {
                None => assert_eq!(number % 3, 0),
                Some(found) => assert_eq!(**found, **body(number as usize * 37, from)),
            }
            expected[from] += 1;
        }
        link.close(true, seconds(5));
    });
}

#[test]
fn large_messages_pass_each_other() {
    const BYTES: usize = 64 << 20;
    let (mut one, mut other) = pair();
    std::thread::scope(|scope| {
        for link in [&mut one, &mut other] {
            scope.spawn(|| {
                let (me, peer) = (link.rank(), 1 - link.rank());
                link.send(peer, head(1), Some(body(BYTES, me))).unwrap();
                link.send(peer, head(2), None).unwrap();
                let Event::Message { body: Some(found), .. } = next(link) else { panic!() };
                assert!(**found == **body(BYTES, peer));
                assert!(matches!(next(link), Event::Message { body: None, .. }));
            });
        }
    });
}

#[test]
fn a_send_does_not_wait_for_who_does_not_read() {
    let (here, _there) = line();
    let mut link = TcpLink::over(0, vec![None, Some(here)], seconds(5)).unwrap();
    let started = Instant::now();
    let large = body(16 << 20, 0);
    for _ in 0..8 {
        link.send(1, head(0), Some(Arc::clone(&large))).unwrap();
    }
    assert!(link.receive(Instant::now() + Duration::from_millis(50)).unwrap().is_none());
    assert!(started.elapsed() < seconds(1), "{:?}", started.elapsed());
    // Nor does the end, longer than it may.
    link.close(false, Duration::from_millis(200));
    assert!((200..1500).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert_eq!(Arc::strong_count(&large), 1, "what was not sent is let go");
}

/// Reads 256 KiB in 3 ms at best: the rest of what a connection has.
struct Slow(TcpStream);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(256 << 10);
        std::thread::sleep(Duration::from_micros(length as u64 * 3000 / (256 << 10)));
        self.0.read(&mut buffer[..length])
    }
}

#[test]
fn an_end_waits_for_what_goes_out_slowly() {
    const MESSAGES: u64 = 8;
    let (here, there) = line();
    let mut link = TcpLink::over(0, vec![None, Some(here)], seconds(5)).unwrap();
    let reader = std::thread::spawn(move || {
        let mut there = Slow(there);
        for number in 0..MESSAGES {
            let Ok(Frame::Message(found, Some(found_body))) = frame::read(&mut there) else {
                panic!("message {number} does not come")
            };
            assert_eq!((found, found_body.len()), (head(number), 8 << 20));
        }
        assert!(matches!(frame::read(&mut there), Ok(Frame::Leave)));
        frame::write(&mut there.0, &Frame::Heard).unwrap();
    });
    for number in 0..MESSAGES {
        link.send(1, head(number), Some(body(8 << 20, 0))).unwrap();
    }
    let (started, grace) = (Instant::now(), Duration::from_millis(100));
    link.close(true, grace);
    assert!(started.elapsed() > grace, "it was too fast to tell anything");
    reader.join().unwrap();
}

#[test]
fn an_end_gives_up_when_nothing_goes_out() {
    let (here, _there) = line();
    let mut link = TcpLink::over(0, vec![None, Some(here)], seconds(1)).unwrap();
    link.send(1, head(0), Some(body(64 << 20, 0))).unwrap();
    let started = Instant::now();
    link.close(true, Duration::from_millis(100));
    assert!(started.elapsed() < seconds(5), "{:?}", started.elapsed());
}

#[test]
fn why_a_rank_fails_goes_before_what_it_has_still_to_send() {
    let (here, mut there) = line();
    let mut link = TcpLink::over(0, vec![None, Some(here)], seconds(5)).unwrap();
    for number in 0..8 {
        link.send(1, head(number), Some(body(32 << 20, 0))).unwrap();
    }
    // As a communicator says that it fails.
    let failure = Head([0x6174_6e02 << 32 | 3, 0, 0, 0, 0, 0, 0, 0]);
    assert!(failure.tells_of_an_end());
    link.send(1, failure, Some(body(100, 0))).unwrap();
    let end = std::thread::spawn(move || link.close(false, seconds(5)));
    std::thread::sleep(Duration::from_millis(100));
    // The message that was under way is whole.
    assert!(matches!(frame::read(&mut there), Ok(Frame::Message(found, Some(_))) if found == head(0)));
    assert!(matches!(frame::read(&mut there), Ok(Frame::Message(found, Some(_))) if found == failure));
    assert!(matches!(frame::read(&mut there), Ok(Frame::Leave)));
    frame::write(&mut there, &Frame::Heard).unwrap();
    end.join().unwrap();
}

#[test]
fn no_deadline_is_too_long() {
    on_all(&places(2), |place| {
        let mut link = TcpLink::connect(place, Duration::MAX).unwrap();
        link.send(1 - place.rank, head(1), None).unwrap();
        assert!(matches!(next(&mut link), Event::Message { .. }));
        link.close(true, seconds(5));
    });
}

#[test]
fn the_loss_comes_once_after_the_last_message() {
    let (mut stays, mut goes) = pair();
    goes.send(0, head(1), Some(body(8 << 20, 3))).unwrap();
    goes.send(0, head(2), None).unwrap();
    // Sent to who has stopped listening: it must not cost what is on its way back.
    stays.send(1, head(9), Some(body(1 << 20, 3))).unwrap();
    let started = Instant::now();
    goes.close(true, seconds(20));
    assert!(started.elapsed() < seconds(5), "it waits for the other's reader, not for the other");
    for number in [1, 2] {
        assert!(
            matches!(next(&mut stays), Event::Message { from: 1, head: found, .. } if found == head(number))
        );
    }
    assert_eq!(lost(&mut stays, 1), "it has ended and closed its connection");
    assert!(stays.receive(Instant::now() + Duration::from_millis(50)).unwrap().is_none());
    stays.send(1, head(3), None).unwrap();
    let started = Instant::now();
    stays.close(false, seconds(20));
    assert!(started.elapsed() < seconds(5));
}

#[test]
fn a_rank_that_goes_without_a_word_is_lost() {
    let (mut stays, mut goes) = pair();
    goes.send(0, head(1), None).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(goes);
    assert!(matches!(next(&mut stays), Event::Message { .. }));
    let why = lost(&mut stays, 1);
    assert!(why.contains("ended or was killed"), "{why}");
}

#[test]
fn garbage_ends_a_connection() {
    let (here, mut there) = line();
    let mut link = TcpLink::over(0, vec![None, Some(here)], seconds(5)).unwrap();
    there.write_all(&[0xab; 4096]).unwrap();
    let why = lost(&mut link, 1);
    assert!(why.contains("what is no message (mark abababab"), "{why}");
    link.close(false, seconds(5));
}

#[test]
fn both_may_close_at_once() {
    for _ in 0..20 {
        let (one, other) = pair();
        let started = Instant::now();
        std::thread::scope(|scope| {
            for mut link in [one, other] {
                scope.spawn(move || {
                    link.send(1 - link.rank(), head(5), Some(body(100_000, 1))).unwrap();
                    link.close(true, seconds(20));
                });
            }
        });
        assert!(started.elapsed() < seconds(5), "{:?}", started.elapsed());
    }
}

#[test]
fn a_rank_alone_meets_nobody() {
    let mut link = TcpLink::connect(&places(1)[0], seconds(1)).unwrap();
    assert_eq!((link.rank(), link.size()), (0, 1));
    link.close(true, seconds(1));
}

#[test]
fn worlds_may_follow_one_another_at_one_place() {
    let places = places(3);
    for _ in 0..5 {
        on_all(&places, |place| {
            TcpLink::connect(place, seconds(20)).unwrap().close(true, seconds(5));
        });
    }
}

/// How the start ends for those that come, where others do not.
#[track_caller]
fn start(come: &[usize], size: usize, deadline: Duration) -> Vec<Error> {
    let places: Vec<_> = places(size).into_iter().filter(|place| come.contains(&place.rank)).collect();
    on_all(&places, |place| TcpLink::connect(place, deadline).map(drop).unwrap_err())
}

#[test]
fn a_rank_that_does_not_come_is_named_by_all() {
    let started = Instant::now();
    for (come, missing) in [(&[0, 1, 3][..], [2]), (&[0, 1, 2][..], [3])] {
        for error in start(come, 4, Duration::from_millis(500)) {
            assert!(matches!(&error, Error::Deadline { missing: found, .. } if *found == missing), "{error}");
        }
    }
    for error in start(&[1, 2], 3, Duration::from_millis(500)) {
        assert!(error.to_string().contains("s for rank 0 at 127.0.0.1"), "{error}");
    }
    assert!(started.elapsed() < seconds(5), "{:?}", started.elapsed());
}

#[test]
fn a_rank_that_ends_during_the_start_ends_it_for_all() {
    let started = Instant::now();
    let outcomes: Vec<Result<()>> = on_all(&places(3), |place| {
        if place.rank == 2 {
            // Comes, and goes before the others know where it is.
            let store = Store::open(place, seconds(20))?;
            return (0..2).try_for_each(|rank| store.wait(&format!("address of rank {rank}")).map(drop));
        }
        TcpLink::connect(place, seconds(20)).map(drop)
    });
    for outcome in &outcomes[..2] {
        let error = outcome.as_ref().unwrap_err();
        assert!(matches!(error, Error::RankLost { rank: 2, .. }), "{error}");
    }
    assert!(started.elapsed() < seconds(5), "{:?}", started.elapsed());
}

#[test]
fn a_rank_that_says_where_it_is_and_goes_ends_the_start_too() {
    let started = Instant::now();
    let outcomes: Vec<Result<()>> = on_all(&places(3), |place| {
        if place.rank == 2 {
            let store = Store::open(place, seconds(20))?;
            store.set("address of rank 2", b"127.0.0.1:1")?;
            (0..2).try_for_each(|rank| store.wait(&format!("address of rank {rank}")).map(drop))?;
            std::thread::sleep(Duration::from_millis(200));
            return Ok(());
        }
        TcpLink::connect(place, seconds(20)).map(drop)
    });
    for outcome in &outcomes[..2] {
        let error = outcome.as_ref().unwrap_err();
        assert!(matches!(error, Error::RankLost { rank: 2, .. }), "{error}");
    }
    assert!(started.elapsed() < seconds(5), "{:?}", started.elapsed());
}
