//! Scratch memory that the ranks of a host reach in one another: what goes from rank to rank is copied once, from where it is
//! to where it belongs.
//!
//! The arenas of a rank take their blocks here. A rank that waits in an exchange says where in its windows its boxes are, and
//! the other one writes to them or reads from them. So this is the only memory of a rank that others write, and only while it
//! waits for them: when it stops to wait before they are done, it takes the window back.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::memory::{Memory, Open, Place};
use crate::device::cpu::{CpuMemory, Lender};
use crate::error::{Error, Result};

/// Less than this is no window: exchanges of so little go by messages. (Less in tests, whose arenas are small.)
const LEAST: usize = if cfg!(test) { 1 << 10 } else { 256 << 10 };

/// Where tensors start; before them the window says what it is.
const TENSORS: usize = 4096;

/// The first number: what it is known by.
const KEY: usize = 0;

/// Whether it has been taken back or is no more, on a cache line of its own.
const WITHDRAWN: usize = 8;

/// The windows of a rank, and those of others that it has mapped.
#[derive(Debug)]
pub(in crate::comm::message) struct Windows {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    own: Vec<Weak<Window>>,
    /// By rank and key.
    theirs: HashMap<(usize, u64), Arc<View>>,
}

/// Memory of this rank that others of its host reach.
#[derive(Debug)]
pub(in crate::comm::message) struct Window {
    memory: Memory,
    open: Open,
    key: u64,
    /// Whether it has been taken back, and whether others no more write here.
    withdrawn: AtomicBool,
    private: AtomicBool,
}

/// A window of another rank.
#[derive(Debug)]
pub(in crate::comm::message) struct View {
    memory: Memory,
}

/// What others have to know of a window to map it, as numbers.
pub(in crate::comm::message) type Address = [u64; 4];

impl Windows {
    pub(in crate::comm::message) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The window of this rank in which so many bytes are, and where.
    pub(in crate::comm::message) fn find(
        &self,
        base: *const u8,
        bytes: usize,
    ) -> Option<(Arc<Window>, usize)> {
        let state = self.state();
        state.own.iter().filter_map(Weak::upgrade).find_map(|window| {
            let offset = base.addr().checked_sub(window.base().addr().get())?;
            let inside = offset.checked_add(bytes)? <= window.bytes();
            (inside && !window.is_withdrawn()).then_some((window, offset))
        })
    }

    /// Maps a window of a rank, unless it is mapped.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub(in crate::comm::message) fn look(&self, rank: usize, address: Address) -> Result<Arc<View>> {
        let [key, process, descriptor, bytes] = address;
        if let Some(view) = self.state().theirs.get(&(rank, key)).filter(|view| !view.is_withdrawn()) {
            return Ok(Arc::clone(view));
        }
        let unavailable = |why: String| Error::Unavailable {
            what: "the scratch memory that another rank of this host shares",
            why,
            cure: String::from("set ATTN_SHARED_MEMORY=0 to do without it"),
        };
        let memory = Memory::open_for_writing(Place { process, descriptor, bytes })
            .map_err(|error| unavailable(error.to_string()))?;
        if memory.bytes() < TENSORS || memory.number(KEY).load(Ordering::Acquire) != key {
            return Err(unavailable(String::from("it is not what was announced")));
        }
        let view = Arc::new(View { memory });
        let theirs = &mut self.state().theirs;
        // Windows come where others have gone.
        theirs.retain(|_, view| !view.is_withdrawn());
        theirs.insert((rank, key), Arc::clone(&view));
        Ok(view)
    }
}

impl Lender for Windows {
    fn lend(&self, bytes: usize) -> Option<CpuMemory> {
        let whole = bytes.checked_add(TENSORS).filter(|_| bytes >= LEAST)?;
        let (memory, open) = match Memory::create(whole) {
            Ok(made) => made,
            Err(error) => {
                log::info!(
                    "no shared memory of {bytes} bytes for scratch tensors ({error}): it is the heap's"
                );
                return None;
            }
        };
        let key = RandomState::new().build_hasher().finish();
        memory.number(KEY).store(key, Ordering::Release);
        let window = Arc::new(Window {
            memory,
            open,
            key,
            withdrawn: AtomicBool::new(false),
            private: AtomicBool::new(false),
        });
        let base = window.base();
        let mut state = self.state();
        state.own.retain(|window| window.strong_count() > 0);
        state.own.push(Arc::downgrade(&window));
        // SAFETY: the window has so many bytes from its base on, zeroed, which is aligned to a page. Others write there only
        // what they are asked to write by a rank that has this memory, and not after it has taken that back.
        Some(unsafe { CpuMemory::owned_by(window, base, bytes) })
    }
}

impl Window {
    fn base(&self) -> NonNull<u8> {
        let base = self.memory.at(TENSORS, self.bytes()).and_then(NonNull::new);
        base.unwrap_or(NonNull::dangling())
    }

    fn bytes(&self) -> usize {
        self.memory.bytes() - TENSORS
    }

    /// What others have to know of it.
    pub(in crate::comm::message) fn address(&self) -> Address {
        let Place { process, descriptor, bytes } = self.open.place;
        [self.key, process, descriptor, bytes]
    }

    /// Whether it has been taken back.
    pub(in crate::comm::message) fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Acquire)
    }

    /// Takes back what was asked of others: who reads here finds out that it has read nothing, and if others were asked to
    /// write (`written`), they still write to what they have mapped, but not to this rank's memory. That keeps what it holds.
    pub(in crate::comm::message) fn withdraw(&self, written: bool) {
        self.mark();
        self.withdrawn.store(true, Ordering::Release);
        if written
            && !self.private.swap(true, Ordering::AcqRel)
            && let Err(error) = self.memory.make_private(&self.open)
        {
            // Nobody can be told, and nothing else keeps others from writing here.
            log::error!("cannot take back memory that others may still write ({error}): the process ends");
            std::process::abort();
        }
    }

    /// Says to others that it is no more.
    fn mark(&self) {
        // Memory that is private already is seen by nobody, and was marked before it was.
        self.memory.number(WITHDRAWN).store(1, Ordering::SeqCst);
        // What is written from now on is not seen by who does not see the mark.
        fence(Ordering::SeqCst);
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.mark();
        // Others forget it when they map the next one; until then their mappings shall hold no memory.
        self.open.release(TENSORS);
    }
}

impl View {
    /// The address of so many bytes, from an offset on; none if the window does not hold them.
    pub(in crate::comm::message) fn at(&self, offset: usize, bytes: usize) -> Option<*mut u8> {
        self.memory.at(TENSORS.checked_add(offset)?, bytes)
    }

    /// Whether it has been withdrawn: what has been read here so far may be anything.
    pub(in crate::comm::message) fn is_withdrawn(&self) -> bool {
        // What was read before is not read after the look.
        fence(Ordering::SeqCst);
        self.memory.number(WITHDRAWN).load(Ordering::SeqCst) != 0
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// A window of so many bytes, and its memory.
    fn window(windows: &Windows, bytes: usize) -> (CpuMemory, Arc<Window>) {
        let memory = windows.lend(bytes).unwrap();
        let (window, offset) = windows.find(memory.base().as_ptr(), bytes).unwrap();
        assert_eq!(offset, 0);
        (memory, window)
    }

    #[test]
    fn what_one_rank_writes_the_other_finds() {
        let (own, others) = (Windows::new(), Windows::new());
        let (mut memory, window) = window(&own, 10_000);
        let view = others.look(0, window.address()).unwrap();
        memory.bytes_mut()[9_999] = 7;
        // SAFETY: both addresses are inside of the window, and nobody else looks at it.
        unsafe {
            assert_eq!(*view.at(9_999, 1).unwrap(), 7);
            *view.at(64, 1).unwrap() = 5;
        }
        assert_eq!(memory.bytes()[64], 5);
        assert!(
            view.at(9_999, 2).is_none()
                && view.at(usize::MAX, 1).is_none()
                && view.at(1, usize::MAX).is_none()
        );
        assert!(own.find(memory.base().as_ptr(), 10_001).is_none());
        assert!(own.find(memory.base().as_ptr().wrapping_sub(1), 1).is_none());
        assert!(own.lend(LEAST - 1).is_none() && own.lend(usize::MAX).is_none());
    }

    #[test]
    fn who_writes_to_what_was_withdrawn_writes_where_nobody_looks() {
        let (own, others) = (Windows::new(), Windows::new());
        let (mut memory, window) = window(&own, 10_000);
        let view = others.look(0, window.address()).unwrap();
        memory.bytes_mut().fill(1);
        assert!(!view.is_withdrawn());
        window.withdraw(false);
        assert!(view.is_withdrawn());
        assert!(memory.bytes().iter().all(|byte| *byte == 1));
        window.withdraw(true);
        // SAFETY: the address is inside of the mapping.
        unsafe { *view.at(0, 1).unwrap() = 9 };
        assert!(memory.bytes().iter().all(|byte| *byte == 1));
        memory.bytes_mut()[0] = 3;
        // SAFETY: as above.
        unsafe { assert_eq!(*view.at(0, 1).unwrap(), 9) };
        assert!(own.find(memory.base().as_ptr(), 1).is_none());
    }

    #[test]
    fn windows_that_are_gone_are_forgotten() {
        let (own, others) = (Windows::new(), Windows::new());
        let (memory, first) = window(&own, 5_000);
        let address = first.address();
        let view = others.look(0, address).unwrap();
        // SAFETY: the address is inside of the mapping, and nobody else looks at it.
        unsafe { *view.at(4_999, 1).unwrap() = 7 };
        drop((memory, first));
        assert!(view.is_withdrawn());
        // SAFETY: as above.
        unsafe { assert_eq!(*view.at(4_999, 1).unwrap(), 0) };
        // What has gone cannot be mapped any more, nor what another window's number is said to be.
        let error = others.look(0, address).unwrap_err().to_string();
        assert!(error.contains("ATTN_SHARED_MEMORY=0"), "{error}");
        let (_memory, second) = window(&own, 5_000);
        let [key, process, descriptor, bytes] = second.address();
        assert!(others.look(0, [key ^ 1, process, descriptor, bytes]).is_err());
        assert!(others.look(0, [key, process, descriptor, bytes]).is_ok());
        assert_eq!(others.state().theirs.keys().collect::<Vec<_>>(), [&(0, key)]);
    }
}
