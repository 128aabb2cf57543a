// The copy engine (TMA): boxes of five axes between global and shared memory, described by a tensor map.
#pragma once
#include <cuda.h>

#include "attn/cuda/shared.h"

namespace attn {

using TensorMap = CUtensorMap;

ATTN_DEVICE void tma_prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Queues a box; its bytes count on `barrier`, whole also where the box reaches beyond the tensor (zeros arrive there).
// `policy`: a hint to the L2 cache.
ATTN_DEVICE void tma_load(SharedAddress to, const TensorMap& map, SharedAddress barrier, int c0, int c1, int c2,
                          int c3, int c4, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(policy)
        : "memory");
}

// Queues a box the other way; what lies beyond the tensor is not written.
ATTN_DEVICE void tma_store(const TensorMap& map, SharedAddress from, int c0, int c1, int c2, int c3, int c4) {
    asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(
                     &map),
                 "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
                 : "memory");
}

ATTN_DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but the last `Pending` groups of this thread's stores have read their shared memory ...
template <int Pending>
ATTN_DEVICE void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}

// ... and have been written.
template <int Pending>
ATTN_DEVICE void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace attn
