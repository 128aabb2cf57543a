//! Opening: whether the ranks' GPUs reach each other, and whether what one writes arrives.

use core::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attn_runtime::comm::{Rendezvous, StridedBox};
use attn_runtime::{Result, Tensor};

use super::boxes::Boxes;
use super::seat::Seat;
use super::{DEADLINE, Direct};
use crate::cuda::abi::EXCHANGE_RANKS;
use crate::cuda::launches::Launches;
use crate::cuda::transfer::{to_host, upload};

/// The variable that switches the direct exchange off: by `0`.
const SWITCH: &str = "ATTN_DIRECT";

/// How long the test waits for the last rank.
const TEST_DEADLINE: Duration = Duration::from_secs(10);

/// What each rank sends to each in the test.
const TEST_WORDS: usize = 61;

impl<D: Launches> Direct<D> {
    /// Collective: opens the group's direct exchange, if every GPU reaches all others' memory and a test goes well. None,
    /// on every rank, if not, or if a rank has `ATTN_DIRECT=0`; the log says why.
    ///
    /// Several ranks may share a GPU, as streams of it. As long as one of them waits there, no rank may do what waits for
    /// all of the GPU: free memory, or call a kernel for the first time.
    ///
    /// # Errors
    /// If the ranks cannot talk.
    pub fn open(rendezvous: &dyn Rendezvous, queue: &D::Queue) -> Result<Option<Self>> {
        Ok(match Self::open_or_why(rendezvous, queue)? {
            Ok(direct) => Some(direct),
            Err(why) => {
                log::info!("no direct exchange between the GPUs of ranks {:?}: {why}", rendezvous.members());
                None
            }
        })
    }

    /// As [`open`](Self::open), with the reason where there is none, the same on every rank.
    ///
    /// # Errors
    /// If the ranks cannot talk.
    pub fn open_or_why(rendezvous: &dyn Rendezvous, queue: &D::Queue) -> Result<Result<Self, String>> {
        Self::open_from(rendezvous, queue, 0)
    }

    /// As [`open_or_why`](Self::open_or_why), as if so many messages had passed.
    ///
    /// # Errors
    /// If the ranks cannot talk.
    #[doc(hidden)]
    pub fn open_from(
        rendezvous: &dyn Rendezvous,
        queue: &D::Queue,
        first: u32,
    ) -> Result<Result<Self, String>> {
        let own = allowed(rendezvous.members().len()).and_then(|()| told(Seat::<D>::take(queue)));
        let records =
            match settle(rendezvous, "direct exchange: mailboxes", own.as_ref().map(|seat| seat.record()))? {
                Ok(records) => records,
                Err(why) => return Ok(Err(why)),
            };
        // What the test needs is allocated before anybody waits on a GPU.
        let joined = own.and_then(|_own| {
            let direct = Self::join(rendezvous, &records, first)?;
            let places = told(Places::new(queue, direct.me, direct.size()))?;
            Ok((direct, places))
        });
        let reached = settle(rendezvous, "direct exchange: reach", joined.as_ref().map(|_| Vec::new()))?;
        if let Err(why) = reached {
            return Ok(Err(why));
        }
        let tested = joined.and_then(|(direct, places)| told(direct.test(queue, places)).map(|()| direct));
        let well = settle(rendezvous, "direct exchange: test", tested.as_ref().map(|_| Vec::new()))?;
        Ok(well.and(tested))
    }

    /// Finds the ranks' seats and lets this rank's GPU reach their memory.
    fn join(rendezvous: &dyn Rendezvous, records: &[Vec<u8>], first: u32) -> Result<Self, String> {
        let seats: Vec<Arc<Seat<D>>> =
            told(records.iter().map(|record| Seat::find(record)).collect::<Result<_>>())?;
        let queues: Vec<_> = seats.iter().map(|seat| seat.queue.clone()).collect();
        told(D::connect(&queues))?;
        let direct = Self {
            seats,
            me: rendezvous.me(),
            members: rendezvous.members().to_vec(),
            limit_nanoseconds: AtomicU64::new(0),
            first,
            boxes: Mutex::new(Boxes::default()),
        };
        direct.set_deadline(TEST_DEADLINE);
        Ok(direct)
    }

    /// Sends a few words from every rank to every rank, and looks at what has come.
    fn test(&self, queue: &D::Queue, places: Places<D>) -> Result<()> {
        let Places { source, mut destination } = places;
        let parts = |base: *mut i32| {
            let extent = [1, 1, 1, TEST_WORDS];
            let part = move |peer| StridedBox {
                base: base.wrapping_add(peer * TEST_WORDS).cast(),
                item: size_of::<i32>(),
                extent,
                strides: [0, 0, 0, 1],
            };
            (0..self.size()).map(|peer| (peer, part(peer))).collect::<Vec<_>>()
        };
        let (outgoing, incoming) =
            (parts(source.view().base().as_ptr()), parts(destination.view_mut().base().as_ptr()));
        // SAFETY: the boxes are rows of two tensors that live to the end of this function, which waits.
        unsafe { self.exchange_boxes(queue, &outgoing, &incoming) }?;
        let arrived = to_host::<_, D>(queue, &destination)?;
        self.check()?;
        let right = Tensor::<i32>::from_fn(arrived.shape(), |[_, _, peer, at]| test_word(peer, self.me, at))?;
        if arrived != right {
            return Err(attn_runtime::Error::Plan(String::from(
                "a test of the direct exchange brought other bytes than were sent",
            )));
        }
        self.set_deadline(DEADLINE);
        Ok(())
    }
}

/// What the test sends and receives: a row for each rank.
struct Places<D: Launches> {
    source: Tensor<i32, D>,
    destination: Tensor<i32, D>,
}

impl<D: Launches> Places<D> {
    fn new(queue: &D::Queue, me: usize, ranks: usize) -> Result<Self> {
        let shape = [1, 1, ranks, TEST_WORDS];
        let here = Tensor::<i32>::from_fn(shape, |[_, _, peer, at]| test_word(me, peer, at))?;
        let mut source = Tensor::<i32, D>::zeros(queue, shape)?;
        upload::<_, D>(queue, &here, &mut source)?;
        let destination = Tensor::<i32, D>::zeros(queue, shape)?;
        D::synchronize(queue)?;
        Ok(Self { source, destination })
    }
}

/// What a rank sends to another in the test.
fn test_word(from: usize, to: usize, at: usize) -> i32 {
    ((from * 31 + to) * 1009 + at) as i32 + 1
}

/// Whether there may be such a group at all.
fn allowed(ranks: usize) -> Result<(), String> {
    if std::env::var_os(SWITCH).is_some_and(|value| value == "0") {
        return Err(format!("{SWITCH}=0 switches it off"));
    }
    if ranks > EXCHANGE_RANKS {
        return Err(format!("{ranks} ranks are more than {EXCHANGE_RANKS}"));
    }
    Ok(())
}

/// What kept a rank is a reason for all, not an error.
fn told<T>(outcome: Result<T>) -> Result<T, String> {
    outcome.map_err(|error| error.to_string())
}

/// All ranks' records, or the reason of the lowest rank that has one.
fn settle(
    rendezvous: &dyn Rendezvous,
    what: &'static str,
    own: Result<Vec<u8>, &String>,
) -> Result<Result<Vec<Vec<u8>>, String>> {
    let own = match own {
        Ok(record) => [&[1][..], &record].concat(),
        Err(why) => [&[0][..], why.as_bytes()].concat(),
    };
    let mut all = Vec::new();
    for (record, member) in rendezvous.gather(what, &own)?.into_iter().zip(rendezvous.members()) {
        match record.split_first() {
            Some((1, record)) => all.push(record.to_vec()),
            Some((_, why)) => return Ok(Err(format!("rank {member}: {}", String::from_utf8_lossy(why)))),
            None => return Ok(Err(format!("rank {member} left no record"))),
        }
    }
    Ok(Ok(all))
}
