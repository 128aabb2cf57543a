// What kernels of several GPUs tell each other: flags in memory that all of them reach, at system scope (PTX ISA, "Memory
// consistency model").
#pragma once
#include "attn/cuda/thread.h"

namespace attn {

// Reads a flag; what its writer has stored before releasing it is seen from here on.
ATTN_DEVICE uint32_t load_acquire_system(const uint32_t* flag) {
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}

// Writes a flag behind all that this thread has stored, or knows other threads to have stored.
ATTN_DEVICE void store_release_system(uint32_t* flag, uint32_t value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// Writes a flag that stands for nothing but itself.
ATTN_DEVICE void store_relaxed_system(uint32_t* flag, uint32_t value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// Orders what this thread knows to have been stored before whatever follows, for every GPU.
ATTN_DEVICE void fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

// As fence_system, and of two threads that each store, call this and load what the other one stores, one at least sees
// the other's store.
ATTN_DEVICE void fence_system_total() { asm volatile("fence.sc.sys;" ::: "memory"); }

// Adds to a counter in this GPU's memory and returns what it was. Whoever reads a sum knows what was stored before the
// additions that it is made of.
ATTN_DEVICE uint32_t add_to_counter(uint32_t* counter, uint32_t value) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(value) : "memory");
    return before;
}

// Lets others run for about so long.
ATTN_DEVICE void pause_for(uint32_t nanoseconds) { asm volatile("nanosleep.u32 %0;" ::"r"(nanoseconds)); }

// Time, by the GPU's clock, which steps by up to a microsecond.
ATTN_DEVICE uint64_t nanoseconds() {
    uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

}  // namespace attn
