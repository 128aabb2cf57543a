//! The store by which ranks find each other: keys and values, kept by rank 0 while a world comes together.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::address::{MEETING, Meeting};
use super::hello::{Answer, Question, Room};
use super::keeper::Keeper;
use super::request::{Reply, Request, SLICE, Wish, listed};
use super::shelf::{End, Waited};
use super::wire::{after, connect_by, words};
use crate::comm::Place;
use crate::comm::place::Token;
use crate::error::{Error, Result};

/// How long an answer that needs no wait may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a rank that gives up may take to tell the others, and to be told.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the ranks do together here, as errors name it.
const OPERATION: &str = "the start of the world";

/// A rank's handle of the store.
///
/// Rank 0 keeps it, at [`Place::master_addr`] and [`Place::master_port`], and listens on that address alone unless others
/// could not reach it there. Who does not know the world's [`Token`] is turned away, and so are other programs. Keys are up to
/// 256 bytes long and values up to a MiB.
///
/// A rank whose handle goes before [`finish`](Self::finish) is lost, which ends the waits of all others.
pub struct Store {
    meeting: Meeting,
    deadline: Duration,
    until: Instant,
    world: u64,
    side: Side,
}

enum Side {
    Keeper(Keeper),
    Visitor(Mutex<TcpStream>),
}

impl Store {
    /// Opens the store on rank 0, or connects to it. Waits until the deadline for rank 0 to be there. So long from now all
    /// waits of this handle end.
    ///
    /// # Errors
    /// - [`Error::Unavailable`] if rank 0 cannot listen there, nobody does by the deadline, or the others wait no longer.
    /// - [`Error::Environment`] if rank 0 turns this process away: for another token, another number of ranks, another
    ///   version, or because the rank is there already.
    pub fn open(place: &Place, deadline: Duration) -> Result<Self> {
        place.check()?;
        let (meeting, until) = (Meeting::of(place)?, after(deadline));
        let token = place.token.clone().unwrap_or(Token::NONE);
        let (world, side) = if place.rank == 0 {
            let keeper = Keeper::open(meeting.listen()?, place.size, token)?;
            (keeper.world(), Side::Keeper(keeper))
        } else {
            let (world, stream) = visit(place, &meeting, &token, deadline, until)?;
            (world, Side::Visitor(Mutex::new(stream)))
        };
        Ok(Self { meeting, deadline, until, world, side })
    }

    /// Puts a value under a key, in the place of what is there.
    ///
    /// # Errors
    /// If it is larger than the store takes, a rank is lost, or the store cannot be reached.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let refused = |why: String| Error::Configuration(format!("the store does not take `{key}`: {why}"));
        match &self.side {
            Side::Keeper(keeper) => keeper.shelf.set(key.as_bytes(), value.to_vec()).map_err(refused),
            Side::Visitor(stream) => {
                // What is too large is not sent: the store would take it for garbage.
                super::shelf::check(key.as_bytes(), value).map_err(refused)?;
                match self.ask(stream, Wish::Set, key.as_bytes(), value, Duration::ZERO)? {
                    Reply::Refused(why) => Err(refused(why)),
                    Reply::Waited(Waited::Ended(end)) => Err(self.ended(end)),
                    Reply::Waited(_) => Ok(()),
                }
            }
        }
    }

    /// A key's value, if there is one.
    ///
    /// # Errors
    /// If a rank is lost, or the store cannot be reached.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        match self.wait_so_long(Wish::Wait, key.as_bytes(), Duration::ZERO)? {
            Waited::Value(value) => Ok(Some(value)),
            Waited::NotYet(_) => Ok(None),
            Waited::Ended(end) => Err(self.ended(end)),
        }
    }

    /// A key's value, as soon as there is one.
    ///
    /// # Errors
    /// [`Error::Deadline`] if there is none by the deadline, which names the ranks that had not come; as [`get`](Self::get)
    /// otherwise.
    pub fn wait(&self, key: &str) -> Result<Vec<u8>> {
        self.wait_for(Wish::Wait, key.as_bytes())
    }

    /// Collective: waits until no rank needs the store any more, and closes it. Its port is then free.
    ///
    /// # Errors
    /// [`Error::Deadline`] if that is not so by the deadline; [`Error::RankLost`] if a rank is lost before.
    pub fn finish(self) -> Result<()> {
        let finished = match &self.side {
            Side::Visitor(_) => self.wait_for(Wish::Finish, &[]).map(drop),
            Side::Keeper(keeper) => {
                keeper.shelf.finish(0);
                match keeper.shelf.wait_for_all(self.until) {
                    Waited::Value(_) => {
                        keeper.close();
                        Ok(())
                    }
                    Waited::NotYet(missing) => Err(self.late(missing)),
                    Waited::Ended(end) => Err(self.ended(end)),
                }
            }
        };
        finished.inspect_err(|error| {
            if let Error::Deadline { missing, .. } = error {
                self.give_up(missing);
            }
        })
    }

    /// Tells the others that this rank waits no longer, and for which ranks it has waited. Only the first counts.
    pub(super) fn give_up(&self, missing: &[usize]) {
        match &self.side {
            Side::Keeper(keeper) => keeper.shelf.end(End::GaveUp(missing.to_vec())),
            Side::Visitor(stream) => {
                // If the store is gone, there is nobody to tell.
                let _ = self.ask(stream, Wish::GiveUp, &[], &listed(missing), Duration::ZERO);
            }
        }
    }

    /// The number of this world, which no other has.
    pub(super) const fn world(&self) -> u64 {
        self.world
    }

    /// When all waits end.
    pub(super) const fn until(&self) -> Instant {
        self.until
    }

    /// The address from which this rank talks to the store, or on which it listens if it keeps it.
    pub(super) fn own_address(&self) -> Option<IpAddr> {
        match &self.side {
            Side::Keeper(keeper) => keeper.address(),
            Side::Visitor(stream) => {
                Some(stream.lock().unwrap_or_else(PoisonError::into_inner).local_addr().ok()?.ip())
            }
        }
    }

    /// The address at which this rank has found rank 0.
    pub(super) fn keeper_address(&self) -> Option<IpAddr> {
        match &self.side {
            Side::Keeper(keeper) => keeper.address(),
            Side::Visitor(stream) => {
                Some(stream.lock().unwrap_or_else(PoisonError::into_inner).peer_addr().ok()?.ip())
            }
        }
    }

    /// The deadline has passed, and these ranks had not come.
    pub(super) fn late(&self, missing: Vec<usize>) -> Error {
        let notes = match &self.side {
            Side::Keeper(keeper) => keeper.notes(),
            Side::Visitor(_) => String::new(),
        };
        Error::Deadline {
            operation: format!("{OPERATION} at {}{notes}", self.meeting),
            sequence: 0,
            seconds: self.deadline.as_secs_f64(),
            missing,
        }
    }

    fn ended(&self, end: End) -> Error {
        match end {
            End::GaveUp(missing) => self.late(missing),
            End::Lost(rank) => self.lost(rank, "it ended while the ranks were finding each other"),
            End::Well => self.lost(0, "it has closed the store, which this rank still asks"),
        }
    }

    fn lost(&self, rank: usize, why: &str) -> Error {
        Error::RankLost {
            rank,
            operation: format!("{OPERATION} at {}", self.meeting),
            sequence: 0,
            why: why.into(),
        }
    }

    fn wait_for(&self, wish: Wish, key: &[u8]) -> Result<Vec<u8>> {
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            match self.wait_so_long(wish, key, left.min(SLICE))? {
                Waited::Value(value) => return Ok(value),
                Waited::Ended(End::Well) if wish == Wish::Finish => return Ok(Vec::new()),
                Waited::Ended(end) => return Err(self.ended(end)),
                Waited::NotYet(absent) if left.is_zero() => return Err(self.late(absent)),
                Waited::NotYet(_) => {}
            }
        }
    }

    fn wait_so_long(&self, wish: Wish, key: &[u8], wait: Duration) -> Result<Waited> {
        match &self.side {
            Side::Keeper(keeper) => Ok(keeper.shelf.wait(key, after(wait))),
            Side::Visitor(stream) => match self.ask(stream, wish, key, &[], wait)? {
                Reply::Waited(waited) => Ok(waited),
                Reply::Refused(why) => Err(Error::Configuration(why)),
            },
        }
    }

    fn ask(
        &self,
        stream: &Mutex<TcpStream>,
        wish: Wish,
        key: &[u8],
        value: &[u8],
        wait: Duration,
    ) -> Result<Reply> {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        // After the deadline, a little longer: the answer may be on its way.
        let last = (self.until + FAREWELL).max(Instant::now() + FAREWELL);
        let until = last.min(Instant::now() + wait + PATIENCE);
        let request = Request { wish, key: key.to_vec(), value: value.to_vec(), wait };
        let reply = request.send(&stream, until).and_then(|()| Reply::receive(&stream, until));
        reply.map_err(|error| {
            // What comes late would be taken for the answer to the next question.
            let _ = stream.shutdown(Shutdown::Both);
            self.lost(0, &format!("of its store: {}", words(&error)))
        })
    }
}

/// Connects to rank 0's store, as soon as it is there.
fn visit(
    place: &Place,
    meeting: &Meeting,
    token: &Token,
    deadline: Duration,
    until: Instant,
) -> Result<(u64, TcpStream)> {
    let Place { rank, size, .. } = *place;
    let question = Question::new(Room::Store, rank, size, 0, token);
    let mut pause = Duration::from_millis(5);
    loop {
        let why = match meeting.addresses() {
            Err(error) => format!("the name has no address ({error})"),
            Ok(addresses) => match knock(&addresses, &question, until) {
                Ok((Answer::Welcome(world), stream)) => return Ok((world, stream)),
                Ok((answer, _)) => return Err(turned_away(rank, meeting, answer, &question)),
                Err(error) => words(&error),
            },
        };
        let left = until.saturating_duration_since(Instant::now());
        sleep(pause.min(left));
        if left <= pause {
            return Err(Error::Unavailable {
                what: MEETING,
                why: format!("rank {rank} waited {} s for rank 0 at {meeting}: {why}", deadline.as_secs_f64()),
                cure: "is rank 0 started, are `ATTN_MASTER_ADDR` and `ATTN_MASTER_PORT` right, and is the port open?"
                    .into(),
            });
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Asks at the first address that answers; the error is that of the first.
pub(super) fn knock(
    addresses: &[SocketAddr],
    question: &Question,
    until: Instant,
) -> io::Result<(Answer, TcpStream)> {
    let mut first = None;
    for address in addresses {
        let until = until.min(Instant::now() + PATIENCE);
        let asked = connect_by(*address, until)
            .and_then(|stream| question.ask(&stream, until).map(|answer| (answer, stream)));
        match asked {
            Ok(asked) => return Ok(asked),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| ErrorKind::NotFound.into()))
}

fn turned_away(rank: usize, meeting: &Meeting, answer: Answer, question: &Question) -> Error {
    let why = answer.why(question);
    let why = format!("rank {rank} was turned away by rank 0 at {meeting}: {why}");
    match answer {
        Answer::Over => {
            Error::Unavailable { what: MEETING, why, cure: "see what the other ranks say".into() }
        }
        _ => Error::Environment(why),
    }
}
