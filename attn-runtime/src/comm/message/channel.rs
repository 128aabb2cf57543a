//! A link over channels inside of one process: the model of what a link does, and what tests run on.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::{Bytes, Event, Head, Link};
use crate::error::Result;

/// Carries messages between ranks that are threads of one process, by channels.
///
/// ```
/// use attn_runtime::comm::Rendezvous;
/// use attn_runtime::comm::message::{ChannelLink, MessageComm};
/// use attn_runtime::device::cpu::CpuQueue;
///
/// let ranks = ChannelLink::world(2).into_iter().map(|link| {
///     std::thread::spawn(|| {
///         let comm = MessageComm::new(link, CpuQueue::new(1)?, std::time::Duration::from_secs(20))?;
///         comm.run(|comm| comm.gather("names", format!("rank {}", comm.me()).as_bytes()))
///     })
/// });
/// for rank in ranks.collect::<Vec<_>>() {
///     assert_eq!(rank.join().unwrap()?, [b"rank 0", b"rank 1"]);
/// }
/// # Ok::<(), attn_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct ChannelLink {
    rank: usize,
    /// Ways to all ranks; none to those that are lost, and none to this one.
    to: Vec<Option<Sender<Event>>>,
    from: Receiver<Event>,
}

impl ChannelLink {
    /// The links of `ranks` ranks.
    pub fn world(ranks: usize) -> Vec<Self> {
        let (to, from): (Vec<_>, Vec<_>) = (0..ranks).map(|_| channel()).unzip();
        let to: Vec<Option<Sender<Event>>> = to.into_iter().map(Some).collect();
        let links = from.into_iter().enumerate().map(|(rank, from)| {
            let mut to = to.clone();
            to[rank] = None;
            Self { rank, to, from }
        });
        links.collect()
    }

    /// Tells the others that nothing will come any more.
    fn leave(&mut self) {
        let why = String::from("its link has been closed");
        for to in &mut self.to {
            if let Some(to) = to.take() {
                // Who is not there any more need not be told.
                let _ = to.send(Event::Lost { rank: self.rank, why: why.clone() });
            }
        }
    }
}

impl Link for ChannelLink {
    const NAME: &'static str = "channels";

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn send(&mut self, to: usize, head: Head, body: Option<Arc<Bytes>>) -> Result<()> {
        if let Some(way) = self.to.get_mut(to)
            && let Some(sender) = way
            && sender.send(Event::Message { from: self.rank, head, body }).is_err()
        {
            *way = None;
        }
        Ok(())
    }

    fn receive(&mut self, until: Instant) -> Result<Option<Event>> {
        match self.from.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                // Nobody is left who could send: time passes as it would if they were silent.
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
                Ok(None)
            }
        }
    }

    fn close(&mut self, _: bool, _: Duration) {
        self.leave();
    }
}

impl Drop for ChannelLink {
    fn drop(&mut self) {
        self.leave();
    }
}
