// Barriers in shared memory that count arrivals of threads and bytes of the copy engine (PTX ISA, "mbarrier").
#pragma once
#include "attn/cuda/shared.h"

namespace attn {

ATTN_DEVICE void barrier_init(SharedAddress barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Shows initialised barriers to the copy engine; block_sync then shows them to the other threads.
ATTN_DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and announces bytes that the copy engine will bring before the phase can end.
ATTN_DEVICE void barrier_expect(SharedAddress barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

ATTN_DEVICE void barrier_arrive(SharedAddress barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits until the phase of this parity has ended. A fresh barrier is in phase 0; waiting for parity 1 on it passes.
ATTN_DEVICE void barrier_wait(SharedAddress barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred passed;\n"
        "again_%=:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 passed, [%0], %1;\n"
        "@passed bra done_%=;\n"
        "bra again_%=;\n"
        "done_%=:\n"
        "}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

}  // namespace attn
