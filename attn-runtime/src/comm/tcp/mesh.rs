//! A connection between every two ranks: each finds the others through the store, and knows who they are.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::address::reachable;
use super::door::{Door, Host};
use super::hello::{Answer, Question, Room};
use super::store::{Store, knock};
use super::wire::words;
use crate::comm::Place;
use crate::comm::place::Token;
use crate::error::{Error, Result};

/// How often a rank that waits for others looks whether they still live.
const GLANCE: Duration = Duration::from_millis(100);

/// Connects this rank with all others: their connections, by rank, none for itself. Waits for them until the deadline.
///
/// # Errors
/// [`Error::Deadline`] on every rank if one does not come, [`Error::RankLost`] if one ends, and as [`Store::open`].
pub(super) fn connect(place: &Place, deadline: Duration) -> Result<Vec<Option<TcpStream>>> {
    place.check()?;
    if place.size == 1 {
        return Ok(vec![None]);
    }
    let store = Store::open(place, deadline)?;
    let connected = assemble(place, &store);
    match connected {
        Ok(streams) => store.finish().map(|()| streams),
        Err(error) => {
            if let Error::Deadline { missing, .. } = &error {
                store.give_up(missing);
            }
            Err(error)
        }
    }
}

fn assemble(place: &Place, store: &Store) -> Result<Vec<Option<TcpStream>>> {
    let Place { rank, size, .. } = *place;
    let token = place.token.clone().unwrap_or(Token::NONE);
    let (sender, visitors) = sync_channel(size);
    let arrivals = Arrivals {
        above: rank,
        size,
        world: store.world(),
        token: token.clone(),
        come: Mutex::new(vec![false; size]),
        sender,
    };
    let (door, at) = open_door(place, store, Arc::new(arrivals))?;
    store.set(&key(rank), at.to_string().as_bytes())?;
    let mut streams: Vec<Option<TcpStream>> = (0..size).map(|_| None).collect();
    // Asked for all of them, so that whoever is missing is missed here, where every rank learns of it.
    let addresses = (0..size).filter(|peer| *peer != rank).map(|peer| address(store, peer));
    let addresses = addresses.collect::<Result<Vec<_>>>()?;
    for (peer, address) in addresses.into_iter().enumerate().take(rank) {
        let question = Question::new(Room::Link, rank, size, store.world(), &token);
        streams[peer] = Some(reach(store, peer, address, &question)?);
    }
    while streams.iter().flatten().count() < size - 1 {
        match visitors.recv_timeout(GLANCE) {
            Ok((peer, stream)) => streams[peer] = Some(stream),
            Err(RecvTimeoutError::Timeout) if Instant::now() < store.until() => {
                store.get(ALIVE)?;
            }
            Err(_) => {
                let missing = (0..size).filter(|peer| *peer != rank && streams[*peer].is_none());
                return Err(store.late(missing.collect()));
            }
        }
    }
    drop(door);
    Ok(streams)
}

/// The key of a rank's address.
fn key(rank: usize) -> String {
    format!("address of rank {rank}")
}

/// A key that nobody sets: asked for, the store tells whether a rank is lost.
const ALIVE: &str = "alive";

/// Opens the door for the ranks above this one: the address at which they find it. An address that is not specified stands
/// for that at which they have found the store.
fn open_door(place: &Place, store: &Store, host: Arc<Arrivals>) -> Result<(Door, SocketAddr)> {
    let failed =
        |error: std::io::Error| Error::Library { library: "TCP", call: "bind", text: error.to_string() };
    let own = store.own_address().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    // Rank 0 stays where the others have found its store.
    let own = if place.rank == 0 { own } else { reachable(own, place) };
    let door = Door::open(TcpListener::bind((own, 0)).map_err(failed)?, host)?;
    let address = door.address();
    Ok((door, address))
}

/// Where a rank is found.
fn address(store: &Store, peer: usize) -> Result<SocketAddr> {
    let text = store.wait(&key(peer)).map_err(|error| match error {
        // All have come, and this one has not said where it is.
        Error::Deadline { missing, .. } if missing.is_empty() => store.late(vec![peer]),
        error => error,
    })?;
    let address: Option<SocketAddr> = core::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
    let Some(mut address) = address else {
        let text = String::from_utf8_lossy(&text).into_owned();
        return Err(Error::Library { library: "TCP", call: "address of a rank", text });
    };
    if address.ip().is_unspecified()
        && let Some(rank_0) = store.keeper_address()
    {
        address.set_ip(rank_0);
    }
    Ok(address)
}

/// Connects to a rank that is known to be there.
fn reach(store: &Store, peer: usize, address: SocketAddr, question: &Question) -> Result<TcpStream> {
    loop {
        let why = match knock(&[address], question, store.until()) {
            Ok((Answer::Welcome(_), stream)) => {
                let endless = stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None));
                let failed = |error: std::io::Error| Error::Library {
                    library: "TCP",
                    call: "setsockopt",
                    text: error.to_string(),
                };
                return endless.map(|()| stream).map_err(failed);
            }
            Ok((answer, _)) => answer.why(question),
            Err(error) => words(&error),
        };
        store.get(ALIVE)?;
        if Instant::now() >= store.until() {
            return Err(Error::Unavailable {
                what: "a connection between two ranks",
                why: format!("rank {} has not reached rank {peer} at {address}: {why}", question.rank),
                cure: "ranks connect to each other at ports that the system chooses: does a firewall keep them apart?".into(),
            });
        }
        sleep(GLANCE);
    }
}

/// Lets in the ranks above this one, each once.
struct Arrivals {
    above: usize,
    size: usize,
    world: u64,
    token: Token,
    come: Mutex<Vec<bool>>,
    sender: SyncSender<(usize, TcpStream)>,
}

impl Arrivals {
    fn come(&self, rank: usize) -> bool {
        let mut come = self.come.lock().unwrap_or_else(PoisonError::into_inner);
        rank > self.above && come.get_mut(rank).is_some_and(|come| !core::mem::replace(come, true))
    }
}

impl Host for Arrivals {
    fn judge(&self, question: &Question) -> Answer {
        if let Err(answer) = question.check(Room::Link, self.size, &self.token) {
            return answer;
        }
        if question.world != self.world {
            return Answer::OtherWorld;
        }
        let come = usize::try_from(question.rank).is_ok_and(|rank| self.come(rank));
        if come { Answer::Welcome(self.world) } else { Answer::Taken }
    }

    fn missed(&self, question: &Question) {
        let mut come = self.come.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(come) = usize::try_from(question.rank).ok().and_then(|rank| come.get_mut(rank)) {
            *come = false;
        }
    }

    fn enter(&self, question: &Question, stream: TcpStream) {
        if let Ok(rank) = usize::try_from(question.rank) {
            // Nobody listens any more if this rank has given up.
            let _ = self.sender.try_send((rank, stream));
        }
    }
}
