//! A rank's place in a group: its mailbox, what its kernels and the hosts tell each other, and how the other ranks of the
//! process find it.

use core::any::Any;
use core::hash::{BuildHasher, Hasher};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use attn_runtime::{Error, Result};

use crate::cuda::abi::ExchangeReport;
use crate::cuda::launches::{Launches, queue_on};

/// A mailbox, a report, the queue that they were allocated on, and a number in the process.
pub(super) struct Seat<D: Launches> {
    pub(super) queue: D::Queue,
    mailbox: D::Memory,
    report: D::Shared,
    number: u64,
}

/// Seats by their number. Who holds one keeps it.
static SEATS: Mutex<BTreeMap<u64, Weak<dyn Any + Send + Sync>>> = Mutex::new(BTreeMap::new());

impl<D: Launches> Seat<D> {
    /// Allocates a mailbox, and waits until it is empty: peers write there in no order with the queue.
    pub(super) fn take(queue: &D::Queue) -> Result<Arc<Self>> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let mut bytes = 0;
        queue_on::<D>(queue, "exchange_prepare", |launchers, _| {
            // SAFETY: by `abi.h` both functions take nothing, in whatever context is current.
            unsafe {
                bytes = (launchers.exchange_mailbox_bytes)();
                (launchers.exchange_prepare)()
            }
        })?;
        let mailbox = D::allocate(queue, bytes)?;
        let report = D::share(queue, size_of::<ExchangeReport>())?;
        D::synchronize(queue)?;
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        D::move_in(queue);
        let seat = Arc::new(Self { queue: queue.clone(), mailbox, report, number });
        let known: Arc<dyn Any + Send + Sync> = seat.clone();
        SEATS.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::downgrade(&known));
        Ok(seat)
    }

    pub(super) fn mailbox(&self) -> NonNull<u8> {
        D::base(&self.mailbox)
    }

    pub(super) fn report(&self) -> &ExchangeReport {
        // SAFETY: `take` has allocated that many zeroed bytes, aligned to 64, which stay while `self` does; all fields are
        // atomics, for which zeros are numbers, and kernels write them as such.
        unsafe { D::shared_base(&self.report).cast::<ExchangeReport>().as_ref() }
    }

    /// Waits for what is queued.
    pub(super) fn settle(&self) -> Result<()> {
        D::synchronize(&self.queue)
    }

    /// By which other ranks find it.
    pub(super) fn record(&self) -> Vec<u8> {
        [process(), self.number].iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// The seat of a record.
    ///
    /// # Errors
    /// If it belongs to another process or another kind of device.
    pub(super) fn find(record: &[u8]) -> Result<Arc<Self>> {
        let number = |at: usize| {
            let bytes = record.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_le_bytes)
        };
        let unavailable = |why: &str| Error::Unavailable {
            what: "the direct exchange",
            why: why.to_owned(),
            cure: String::from("its ranks are threads of one process, on GPUs of one kind"),
        };
        if number(0) != Some(process()) {
            return Err(unavailable("a rank is another process"));
        }
        let seats = SEATS.lock().unwrap_or_else(PoisonError::into_inner);
        let seat = number(8).and_then(|number| seats.get(&number)).and_then(Weak::upgrade);
        seat.and_then(|seat| seat.downcast::<Self>().ok())
            .ok_or_else(|| unavailable("a rank has another device, or has left"))
    }
}

impl<D: Launches> Drop for Seat<D> {
    fn drop(&mut self) {
        SEATS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
        D::move_out(&self.queue);
    }
}

/// A number of this process that others do not have.
fn process() -> u64 {
    static NUMBER: OnceLock<u64> = OnceLock::new();
    *NUMBER.get_or_init(|| {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.finish()
    })
}
