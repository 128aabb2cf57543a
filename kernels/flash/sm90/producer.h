// The producer: one warp that keeps the copy engine busy.
#pragma once
#include "order.h"

namespace attn::flash::sm90 {

// Hints to the L2 cache: queries are read once, keys and values by every tile of their head.
constexpr uint64_t evict_first = 0x12F0000000000000ull, evict_last = 0x14F0000000000000ull;

// Keys and values go through a ring of stages each. A stage's full barrier ends its phase when the bytes have come, the
// empty barrier when every consumer warpgroup is done with them.
//
// There are few registers here: what can be found anew is not kept.
template <class Tile>
struct Producer {
    const Problem& p;
    const Shared<Tile>& shared;
    const TensorMap &query, &key, &value;

    // Blocks of keys that were loaded.
    Turn<Tile> turn = {};
    // A fresh barrier counts as past the phase before its first: nobody has to empty what was never full. So the
    // parities waited for on empty barriers are the opposite of the consumers'.
    uint32_t query_parity = 1, padding_parity = 0;

    // One lane waits and issues. (A lane that merely waited along could fall behind, find the barrier two phases on,
    // and wait for ever for the parity that it missed.)
    ATTN_DEVICE static bool issues() { return thread_index() == 0; }

    ATTN_DEVICE void load_query(const Place& place) {
        if (issues()) {
            barrier_wait(shared.query_empty, query_parity);
            if constexpr (Tile::packed) {
                load_packed_query(place);
            } else {
                barrier_expect(shared.query_full, Tile::query_bytes);
                tma_load(shared.query, query, shared.query_full, 0, place.row_block * Tile::rows, 0, place.head,
                         place.batch, evict_first);
            }
        }
        query_parity ^= 1;
    }

    // The map has an axis for the heads of a group in the place of that for slabs. Its box is the tile's rows that are
    // there; what stands in the others does not matter.
    ATTN_DEVICE void load_packed_query(const Place& place) {
        barrier_expect(shared.query_full, p.rows * Tile::row_bytes * Tile::slabs);
#pragma unroll 1
        for (int slab = 0; slab < Tile::slabs; ++slab) {
            tma_load(shared.query + slab * Tile::rows * Tile::row_bytes, query, shared.query_full,
                     slab * Tile::slab_columns, 0, 0, place.head, place.batch, evict_first);
        }
    }

    ATTN_DEVICE void load_keys(int block, int kv_head, int batch) {
        if (issues()) {
            const SharedAddress full = shared.key_full + 8 * turn.stage();
            barrier_wait(shared.key_empty + 8 * turn.stage(), turn.parity() ^ 1);
            barrier_expect(full, Tile::block_bytes);
            tma_load(shared.key + turn.stage() * Tile::block_bytes, key, full, 0, block * Tile::keys, 0, kv_head, batch,
                     evict_last);
        }
        ++turn.count;
    }

    // The values of the block whose keys came as number `of`.
    ATTN_DEVICE void load_values(Turn<Tile> of, int block, int kv_head, int batch, int length) {
        const int kept = length - block * Tile::keys;
        // Beyond the tensor the copy engine brings zeros. Padding inside it may be anything, and zero weights times
        // infinity are no number: it is overwritten before the consumers see it.
        const bool padded = kept < Tile::keys && length < p.seq_k;
        const SharedAddress to = shared.value + of.stage() * Tile::block_bytes;
        const SharedAddress full = shared.value_full + 8 * of.stage();
        if (issues()) {
            const SharedAddress arrived = padded ? shared.padding_full : full;
            barrier_wait(shared.value_empty + 8 * of.stage(), of.parity() ^ 1);
            barrier_expect(arrived, Tile::block_bytes);
            tma_load(to, value, arrived, 0, block * Tile::keys, 0, kv_head, batch, evict_last);
        }
        if (padded) {
            overwrite_padding(to, kept);
            if (issues()) barrier_arrive(full);
        }
    }

    // Zeros for rows `kept` and after of a block of values that is on its way to `to`, by the whole warp.
    ATTN_DEVICE void overwrite_padding(SharedAddress to, int kept) {
        barrier_wait(shared.padding_full, padding_parity);
        padding_parity ^= 1;
        constexpr int pieces = Tile::row_bytes / 16;
#pragma unroll 1
        for (int slab = 0; slab < Tile::slabs; ++slab) {
            const SharedAddress rows = to + slab * Tile::keys * Tile::row_bytes;
#pragma unroll 1
            for (int piece = kept * pieces + thread_index(); piece < Tile::keys * pieces; piece += 32) {
                store_shared_16(rows + 16 * piece, 0, 0, 0, 0);
            }
        }
        fence_proxy_async();
        warp_sync();
    }

    // Values follow one block behind the keys, as they are needed.
    ATTN_DEVICE void run() {
#pragma unroll 1
        for (int round = 0; round < rounds_of(p); ++round) {
            Place place;
            if (!place_of<Tile>(p, round, place)) continue;
            auto order = order_of<Tile>(p, place);
            int block = order.next();
            if (block < 0 && carries<Tile>(p)) continue;
            // Keeps the lanes that only help with padding from running ahead.
            warp_sync();
            const int kv_head = place.head / p.heads_per_kv, batch = place.batch;
            const int length = key_length(p.mask, batch, p.seq_k);
            if (block >= 0) load_keys(block, kv_head, batch);
            load_query(place);
            if (block < 0) continue;
#pragma unroll 1
            for (int after = order.next(); after >= 0; after = order.next()) {
                load_keys(after, kv_head, batch);
                load_values({turn.count - 2}, block, kv_head, batch, length);
                block = after;
            }
            load_values({turn.count - 1}, block, kv_head, batch, length);
        }
        drain();
    }

    // Waits until the consumers are done with all that was loaded: no phase of a barrier is left that nobody looked at.
    ATTN_DEVICE void drain() {
        if (!issues()) return;
        barrier_wait(shared.query_empty, query_parity);
        // Before the first blocks, the counts are those of phases that a fresh barrier has behind it.
#pragma unroll 1
        for (int back = Tile::stages; back > 0; --back) {
            const Turn<Tile> of = {turn.count - back};
            barrier_wait(shared.key_empty + 8 * of.stage(), of.parity());
            barrier_wait(shared.value_empty + 8 * of.stage(), of.parity());
        }
    }
};

}  // namespace attn::flash::sm90
