//! Who does not belong here and comes all the same.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{on_all, places, seconds};
use crate::comm::place::{Place, Token};
use crate::comm::tcp::Store;
use crate::comm::tcp::hello::{Answer, Question, Room};
use crate::error::Error;

fn call_on(place: &Place) -> TcpStream {
    loop {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", place.master_port.unwrap())) {
            return stream;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A number that follows from another one: D. Lehmer's generator.
fn next(number: &mut u64) -> usize {
    *number = *number * 48_271 % 2_147_483_647;
    *number as usize
}

#[test]
fn garbage_keeps_nobody_out() {
    let (places, done) = (places(2), AtomicBool::new(false));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let noise = scope.spawn(|| {
            let mut number = 7;
            let mut calls = 0;
            while calls < 500 || !done.load(Ordering::Relaxed) {
                let mut stream = call_on(&places[0]);
                let mut bytes = vec![0_u8; next(&mut number) % 400];
                bytes.iter_mut().for_each(|byte| *byte = next(&mut number) as u8);
                match next(&mut number) % 4 {
                    0 => bytes.splice(..0, *b"attn-ask").for_each(drop),
                    1 => bytes.splice(..0, *b"GET / HTTP/1.1\r\n\r\n").for_each(drop),
                    _ => {}
                }
                let _ = stream.write_all(&bytes);
                calls += 1;
                if calls == 10_000 {
                    break;
                }
            }
            calls
        });
        // While they come, a world comes together, again and again.
        on_all(&places, |place| {
            let store = Store::open(place, seconds(20)).unwrap();
            for round in 0..50 {
                store.set(&format!("{} {round}", place.rank), b"here").unwrap();
                store.wait(&format!("{} {round}", 1 - place.rank)).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
            if place.rank == 1 {
                done.store(true, Ordering::Relaxed);
                // The noise ends before the store does.
                while !noise.is_finished() {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            store.finish().unwrap();
        });
        assert!(noise.join().unwrap() >= 500);
    });
    assert!(started.elapsed() < seconds(15), "{:?}", started.elapsed());
}

#[test]
fn who_only_holds_the_line_keeps_nobody_out() {
    let places = places(2);
    let started = Instant::now();
    on_all(&places, |place| {
        let mut lines = Vec::new();
        if place.rank == 1 {
            for count in 0..200 {
                let mut line = call_on(&places[0]);
                let _ = line.write_all(&b"attn-ask"[..count % 8]);
                lines.push(line);
            }
        }
        let store = Store::open(place, seconds(20)).unwrap();
        assert!(started.elapsed() < seconds(5), "{:?}", started.elapsed());
        // None of them is told anything before it is hung up on.
        for mut line in lines {
            line.set_read_timeout(Some(seconds(5))).unwrap();
            let mut told = [0; 1];
            assert!(!matches!(line.read(&mut told), Ok(1..)));
        }
        assert!(started.elapsed() < seconds(10), "{:?}", started.elapsed());
        store.finish().unwrap();
    });
}

#[test]
fn another_version_is_named_on_both_sides() {
    let places = places(2);
    let errors = on_all(&places, |place| {
        if place.rank == 0 {
            let store = Store::open(place, Duration::from_millis(400)).unwrap();
            return store.wait("nothing").unwrap_err().to_string();
        }
        let mut question = Question::new(Room::Store, 1, 2, 0, &Token::NONE);
        question.version = 77;
        let stream = call_on(&places[0]);
        let answer = question.ask(&stream, Instant::now() + seconds(5)).unwrap();
        assert_eq!(answer, Answer::OtherVersion(1));
        answer.why(&question)
    });
    assert!(errors[1].contains("it speaks version 77 and the other 1"), "{errors:?}");
    assert!(errors[0].contains(&errors[1]), "{errors:?}");
}

#[test]
fn a_rank_that_talks_nonsense_is_lost_and_what_it_announces_is_not_there() {
    let places = places(2);
    on_all(&places, |place| {
        if place.rank == 0 {
            let error = Store::open(place, seconds(20)).unwrap().wait("nothing").unwrap_err();
            assert!(matches!(error, Error::RankLost { rank: 1, .. }), "{error}");
            return;
        }
        let mut stream = call_on(&places[0]);
        let question = Question::new(Room::Store, 1, 2, 0, &Token::NONE);
        let answer = question.ask(&stream, Instant::now() + seconds(5)).unwrap();
        assert!(matches!(answer, Answer::Welcome(_)));
        // A key of four GiB.
        let mut request = vec![0xff; 16];
        request[..4].copy_from_slice(&1_u32.to_le_bytes());
        stream.write_all(&request).unwrap();
        stream.set_read_timeout(Some(seconds(5))).unwrap();
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
    });
}
