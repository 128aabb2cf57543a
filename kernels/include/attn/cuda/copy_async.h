// Copies that a thread begins and that go on without it: 16 bytes from global to shared memory (PTX ISA, "cp.async").
#pragma once
#include "attn/cuda/shared.h"

namespace attn {

// Begins to copy 16 bytes, past the L1 cache. Both addresses are multiples of 16.
ATTN_DEVICE void copy_async_16(SharedAddress to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// The same, of which only the first `bytes` (0 to 16) are read; the rest become zeros.
ATTN_DEVICE void copy_async_16(SharedAddress to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Closes a group of this thread's copies.
ATTN_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the last `Pending` groups of this thread have arrived. Other threads see them once they have met
// this one.
template <int Pending>
ATTN_DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace attn
