// Attention in 8 bits for Hopper: products of whole numbers for the scores, of e4m3 for the output.
//
// A block of threads stays on its multiprocessor and takes tile after tile: one warpgroup loads, two compute.
#pragma once
#include "consumer.h"
#include "producer.h"

namespace attn::sage::sm90 {

template <class Tile>
ATTN_KERNEL(Tile::threads, 1)
forward(ATTN_GRID_CONSTANT const TensorMap query, ATTN_GRID_CONSTANT const TensorMap key,
        ATTN_GRID_CONSTANT const TensorMap value, ATTN_GRID_CONSTANT const TensorMap out,
        ATTN_GRID_CONSTANT const Problem p) {
    const Shared<Tile> shared(shared_base());
    if (thread_index() == 0) {
        tma_prefetch(query);
        tma_prefetch(key);
        tma_prefetch(value);
        barrier_init(shared.query_full, 1);
        barrier_init(shared.query_empty, Tile::groups);
        for (int stage = 0; stage < Tile::stages; ++stage) {
            barrier_init(shared.key_full + 8 * stage, 1);
            barrier_init(shared.key_empty + 8 * stage, Tile::groups);
            barrier_init(shared.value_full + 8 * stage, 1);
            barrier_init(shared.value_empty + 8 * stage, Tile::groups);
        }
        barrier_init_fence();
    }
    block_sync();
    const int warpgroup = thread_index() >> 7;
    if (warpgroup == 0) {
        registers_release<Tile::producer_registers>();
        if (thread_index() < 32) {
            Producer<Tile> producer{p, shared, query, key, value};
            producer.run();
        }
    } else {
        registers_acquire<Tile::consumer_registers>();
        Consumer<Tile> consumer{p, shared, out, warpgroup - 1};
        consumer.run();
    }
}

}  // namespace attn::sage::sm90
