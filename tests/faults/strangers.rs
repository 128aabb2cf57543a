//! Who comes to the port at which ranks find each other, and does not belong there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// How a hello begins, and what comes then: the version, what for, rank, size, world, token.
const HELLO: &[u8; 8] = b"attn-ask";
const VERSION: u32 = 1;
const STORE: u32 = 1;
const TOKEN: usize = 128;

/// The most lines that are held at a time.
const HELD: usize = 200;

/// What a stranger sends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Garbage {
    /// Nothing: it only holds the line.
    Nothing,
    /// The beginning of a hello, of every length in turn, and then nothing.
    HalfAHello,
    /// Bytes that follow from a seed, some of them behind the first word of a hello.
    Random(u64),
    /// A request of a browser.
    Http,
    /// A hello with the largest numbers there are, and no token.
    HugeNumbers,
    /// As a rank of this world, but with another token.
    OtherToken,
    /// All of these in turn.
    All(u64),
}

/// Comes again and again until it is done, and counts how often.
pub(crate) fn besiege(port: u16, garbage: Garbage, done: &AtomicBool, came: &AtomicUsize) {
    let mut seed = match garbage {
        Garbage::Random(seed) | Garbage::All(seed) => seed,
        _ => 1,
    };
    let mut held = Vec::new();
    for number in 0.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        came.fetch_add(1, Ordering::Relaxed);
        let garbage = match garbage {
            Garbage::All(_) => [
                Garbage::Nothing,
                Garbage::HalfAHello,
                Garbage::Random(0),
                Garbage::Http,
                Garbage::HugeNumbers,
                Garbage::OtherToken,
            ][number % 6],
            one => one,
        };
        // It may be hung up on at any time.
        let _ = stream.write_all(&bytes(garbage, number, &mut seed));
        if matches!(garbage, Garbage::Nothing | Garbage::HalfAHello) {
            held.push(stream);
            if held.len() > HELD {
                held.remove(0);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn bytes(garbage: Garbage, number: usize, seed: &mut u64) -> Vec<u8> {
    match garbage {
        Garbage::Nothing | Garbage::All(_) => Vec::new(),
        Garbage::HalfAHello => {
            let mut bytes = hello([3, 4], b"");
            bytes.truncate(1 + number % (bytes.len() - 1));
            bytes
        }
        Garbage::Random(_) => {
            let mut bytes = if number.is_multiple_of(4) { HELLO.to_vec() } else { Vec::new() };
            let length = next(seed) % 400;
            bytes.extend((0..length).map(|_| next(seed) as u8));
            bytes
        }
        Garbage::Http => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        Garbage::HugeNumbers => hello([u64::MAX; 2], b""),
        Garbage::OtherToken => hello([1 + number as u64 % 3, 4], b"not this one"),
    }
}

/// A hello to the store of this rank of so many.
fn hello([rank, size]: [u64; 2], token: &[u8]) -> Vec<u8> {
    let mut bytes = HELLO.to_vec();
    bytes.extend([VERSION, STORE].iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend([rank, size, 0].iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend((0..TOKEN).map(|at| token.get(at).copied().unwrap_or_default()));
    bytes
}

/// A number that follows from another one: D. Lehmer's generator.
fn next(number: &mut u64) -> usize {
    *number = *number * 48_271 % 2_147_483_647;
    *number as usize
}

/// A rank that knows the token, is let in, and then announces more than there is: 4 GiB as a key, and as much as its value.
/// What to do is in the environment, as for any rank.
pub(crate) fn announce() -> Option<()> {
    let of = |name: &str| std::env::var(name).ok();
    let address = format!("{}:{}", of("ATTN_MASTER_ADDR")?, of("ATTN_MASTER_PORT")?);
    let mut stream = (0..500).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        TcpStream::connect(&address).ok()
    })?;
    let place = ["ATTN_RANK", "ATTN_WORLD_SIZE"].map(|name| of(name)?.parse().ok());
    let [Some(rank), Some(size)] = place else { return None };
    stream.write_all(&hello([rank, size], of("ATTN_TOKEN")?.as_bytes())).ok()?;
    let mut welcome = [0; 24];
    stream.read_exact(&mut welcome).ok()?;
    if welcome[8..16] != [0; 8] {
        return None;
    }
    let request: Vec<u8> =
        [1, u32::MAX, u32::MAX, 0].iter().flat_map(|number| number.to_le_bytes()).collect();
    stream.write_all(&request).ok()?;
    // Until it is hung up on.
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    matches!(stream.read(&mut welcome), Ok(0) | Err(_)).then_some(())
}
