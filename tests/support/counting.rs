//! An allocator that counts: those of each thread, for tests that run side by side, and those of all threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// To be a test program's `#[global_allocator]`.
pub struct Counting;

static OF_PROCESS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static OF_THREAD: Cell<usize> = const { Cell::new(0) };
}

/// Allocations of all threads so far.
pub fn of_process() -> usize {
    OF_PROCESS.load(Ordering::SeqCst)
}

/// Allocations of this thread so far.
pub fn of_thread() -> usize {
    OF_THREAD.get()
}

fn count() {
    OF_PROCESS.fetch_add(1, Ordering::SeqCst);
    // A thread that is ending has no counter any more, and no test looks at it.
    let _ = OF_THREAD.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call is the system allocator's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}
