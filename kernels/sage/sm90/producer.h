// The producer: one warp that keeps the copy engine busy. Beside flash's it has little to do: values beyond a key length
// are zeros already.
#pragma once
#include "../problem.h"
#include "../runs.h"
#include "tile.h"

namespace attn::sage::sm90 {

// Hints to the L2 cache: queries are read once, keys and values by every tile of their head.
constexpr uint64_t evict_first = 0x12F0000000000000ull, evict_last = 0x14F0000000000000ull;

template <class Tile>
struct Producer {
    const Problem& p;
    const Shared<Tile>& shared;
    const TensorMap &query, &key, &value;

    // Blocks of keys that were loaded.
    Turn<Tile> turn = {};
    // A fresh barrier counts as past the phase before its first, so parities waited for on empty barriers are the opposite
    // of the consumers'.
    uint32_t query_parity = 1;

    // One lane waits and issues; the others help to find the way.
    ATTN_DEVICE static bool issues() { return thread_index() == 0; }

    ATTN_DEVICE void load_query(const flash::Place& place) {
        if (issues()) {
            barrier_wait(shared.query_empty, query_parity);
            barrier_expect(shared.query_full, Tile::query_bytes);
            tma_load(shared.query, query, shared.query_full, 0, place.row_block * Tile::rows, 0, place.head,
                     place.batch, evict_first);
        }
        query_parity ^= 1;
    }

    ATTN_DEVICE void load_block(int block, int kv_head, int batch) {
        if (issues()) {
            const SharedAddress key_full = shared.key_full + 8 * turn.stage();
            barrier_wait(shared.key_empty + 8 * turn.stage(), turn.parity() ^ 1);
            barrier_expect(key_full, Tile::block_bytes);
            tma_load(shared.key + turn.stage() * Tile::block_bytes, key, key_full, 0, block * Tile::keys, 0, kv_head,
                     batch, evict_last);
            const SharedAddress value_full = shared.value_full + 8 * turn.stage();
            barrier_wait(shared.value_empty + 8 * turn.stage(), turn.parity() ^ 1);
            barrier_expect(value_full, Tile::block_bytes);
            tma_load(shared.value + turn.stage() * Tile::block_bytes, value, value_full, block * Tile::keys, 0, 0,
                     kv_head, batch, evict_last);
        }
        ++turn.count;
    }

    ATTN_DEVICE void load_blocks(const flash::Place& place, Cover cover) {
        const int kv_head = place.head / p.tiles.heads_per_kv;
        Run run = next_run<Tile>(p.tiles, place, cover, 0);
#pragma unroll 1
        while (!run.is_empty()) {
#pragma unroll 1
            for (int block = run.begin; block < run.end; ++block) load_block(block, kv_head, place.batch);
            warp_sync();
            run = next_run<Tile>(p.tiles, place, cover, run.end);
        }
    }

    ATTN_DEVICE void run() {
#pragma unroll 1
        for (int round = 0; round < flash::rounds_of(p.tiles); ++round) {
            flash::Place place;
            if (!flash::place_of<Tile>(p.tiles, round, place)) continue;
            warp_sync();
            if (p.carried && has_none<Tile>(p.tiles, place)) continue;
            load_query(place);
            load_blocks(place, Cover::Partial);
            load_blocks(place, Cover::Full);
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

}  // namespace attn::sage::sm90
