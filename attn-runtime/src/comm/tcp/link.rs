//! Messages over sockets.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::frame::Frame;
use super::inbox::Inbox;
use super::mesh;
use super::peer::Peer;
use crate::comm::Place;
use crate::comm::message::{Bytes, Event, Head, Link};
use crate::error::{Error, Result};

/// The least time for which a machine may be silent before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// A link over TCP: a connection to every other rank.
///
/// A rank whose process ends is lost at once; one whose machine falls silent, after a tenth of the deadline (at least five
/// seconds). What goes over the network is neither encrypted nor signed.
pub struct TcpLink {
    rank: usize,
    size: usize,
    peers: Vec<Option<Peer>>,
    inbox: Arc<Inbox>,
    patience: Duration,
}

impl TcpLink {
    /// Collective: connects all ranks with each other. A rank alone meets nobody.
    ///
    /// # Errors
    /// [`Error::Deadline`] on every rank if one does not come by the deadline, [`Error::RankLost`] if one ends meanwhile, and
    /// as [`Store::open`](super::Store::open).
    pub fn connect(place: &Place, deadline: Duration) -> Result<Self> {
        let streams = mesh::connect(place, deadline)?;
        Self::over(place.rank, streams, (deadline / 10).max(PATIENCE))
    }

    /// A link over connections that are there: by rank, none for its own.
    pub(super) fn over(rank: usize, streams: Vec<Option<TcpStream>>, patience: Duration) -> Result<Self> {
        let (size, inbox) = (streams.len(), Arc::new(Inbox::new(streams.len())));
        let start = |(peer, stream): (usize, Option<TcpStream>)| {
            stream.map(|stream| Peer::start(peer, stream, &inbox, patience)).transpose()
        };
        let peers = streams.into_iter().enumerate().map(start).collect::<Result<_>>()?;
        Ok(Self { rank, size, peers, inbox, patience })
    }
}

impl Link for TcpLink {
    const NAME: &'static str = "tcp";

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn send(&mut self, to: usize, head: Head, body: Option<Arc<Bytes>>) -> Result<()> {
        if to == self.rank {
            self.inbox.push(Event::Message { from: to, head, body });
            return Ok(());
        }
        match self.peers.get(to) {
            Some(Some(peer)) => {
                if !self.inbox.has_lost(to) {
                    peer.send(Frame::Message(head, body));
                }
                Ok(())
            }
            // Closed, or never there.
            _ => Err(Error::Plan(format!("there is no rank {to} in a group of {}", self.peers.len()))),
        }
    }

    fn receive(&mut self, until: Instant) -> Result<Option<Event>> {
        self.inbox.next(until)
    }

    /// If all is well, this waits for what is going out, unless nothing has moved for as long as a machine may be silent. Else
    /// what was sent before is let go, but for the news of the failure.
    fn close(&mut self, well: bool, grace: Duration) {
        if !well {
            self.inbox.end_ill();
        }
        for peer in self.peers.iter().flatten() {
            peer.send(Frame::Leave);
        }
        // A rank has all when it says so, whatever else it does: its reader answers.
        match well {
            true => self.inbox.wait_for_parting(self.rank, grace.max(self.patience), true),
            false => self.inbox.wait_for_parting(self.rank, grace, false),
        }
        // Cut all before the first is waited for.
        self.peers.iter().flatten().for_each(Peer::cut);
        self.peers.drain(..).flatten().for_each(Peer::join);
    }
}

impl core::fmt::Debug for TcpLink {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { rank, size, .. } = self;
        f.debug_struct("TcpLink").field("rank", rank).field("size", size).finish_non_exhaustive()
    }
}
