//! Rank 0's side of the store: a door, a shelf, and a thread for each rank that has come.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::door::{Door, Host};
use super::hello::{Answer, Question, Room};
use super::request::{Reply, Request, Wish, ranks};
use super::shelf::{End, Seat, Shelf, Waited};
use crate::comm::place::Token;
use crate::error::Result;

/// How long ranks that are told of the end may take to hear it.
const FAREWELL: Duration = Duration::from_millis(500);

/// Keeps the store.
pub(super) struct Keeper {
    pub(super) shelf: Arc<Shelf>,
    desk: Arc<Desk>,
    /// Closed before the ranks are told that all have finished, so that who comes then comes to the next world.
    door: Mutex<Option<Door>>,
}

/// Serves ranks.
struct Desk {
    shelf: Arc<Shelf>,
    size: usize,
    token: Token,
    world: u64,
    streams: Mutex<Vec<TcpStream>>,
}

impl Keeper {
    pub(super) fn open(listener: TcpListener, size: usize, token: Token) -> Result<Self> {
        let shelf = Arc::new(Shelf::new(size));
        let world = RandomState::new().hash_one(std::process::id()) | 1;
        let desk = Desk { shelf: Arc::clone(&shelf), size, token, world, streams: Mutex::default() };
        let desk = Arc::new(desk);
        let door = Door::open(listener, Arc::clone(&desk))?;
        Ok(Self { shelf, desk, door: Mutex::new(Some(door)) })
    }

    /// The number of the world, not zero.
    pub(super) fn world(&self) -> u64 {
        self.desk.world
    }

    /// Where it listens.
    pub(super) fn address(&self) -> Option<IpAddr> {
        let door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        door.as_ref().map(|door| door.address().ip())
    }

    /// Who was turned away.
    pub(super) fn notes(&self) -> String {
        let door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        door.as_ref().map(Door::notes).unwrap_or_default()
    }

    /// Tells the ranks that all have finished.
    pub(super) fn close(&self) {
        self.door.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.shelf.end(End::Well);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.door.lock().unwrap_or_else(PoisonError::into_inner).take();
        // If the end has not come before, rank 0 has failed.
        self.shelf.end(End::Lost(0));
        self.shelf.wait_for_silence(Instant::now() + FAREWELL);
        for stream in self.desk.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Host for Desk {
    fn judge(&self, question: &Question) -> Answer {
        if let Err(answer) = question.check(Room::Store, self.size, &self.token) {
            return answer;
        }
        match self.shelf.seat(question.rank) {
            Seat::Given => Answer::Welcome(self.world),
            Seat::Taken => Answer::Taken,
            Seat::Over => Answer::Over,
        }
    }

    fn missed(&self, question: &Question) {
        if let Ok(rank) = usize::try_from(question.rank) {
            self.shelf.unseat(rank);
        }
    }

    fn enter(&self, question: &Question, stream: TcpStream) {
        let Ok(rank) = usize::try_from(question.rank) else { return };
        self.shelf.serve(1);
        if let Ok(handle) = stream.try_clone() {
            self.streams.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        }
        while let Some(request) = Request::receive(&stream) {
            if self.reply(rank, request).send(&stream).is_err() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
        self.shelf.left(rank);
        self.shelf.serve(-1);
    }
}

impl Desk {
    fn reply(&self, rank: usize, request: Request) -> Reply {
        let until = Instant::now() + request.wait;
        Reply::Waited(match request.wish {
            Wish::Set => match self.shelf.set(&request.key, request.value) {
                Ok(()) => Waited::Value(Vec::new()),
                Err(why) => return Reply::Refused(why),
            },
            Wish::Wait => self.shelf.wait(&request.key, until),
            Wish::Finish => {
                self.shelf.finish(rank);
                self.shelf.wait_for_end(until)
            }
            Wish::GiveUp => {
                let mut missing = ranks(&request.value);
                missing.retain(|rank| *rank < self.size);
                self.shelf.end(End::GaveUp(missing));
                Waited::Value(Vec::new())
            }
        })
    }
}
