// The flash kernel for every GPU since Ampere: online softmax over blocks of keys (Dao et al. 2022; Dao 2023,
// FlashAttention-2), with copies that go on beside the tensor cores.
//
// One block of threads for each tile, a warp for every 16 or 32 of its rows; blocks of a grid begin in order, so the longest
// tiles come first. Shared memory holds the queries and one block each of keys and of values: while the keys are multiplied,
// their values come; while the values are multiplied, the next keys.
#pragma once
#include "../pairs.h"
#include "output.h"
#include "products.h"
#include "runs.h"
#include "ways.h"

namespace attn::flash::sm80 {

template <class Tile>
struct Forward {
    const Problem& p;

    RowPair rows[Tile::strips];
    float output[Tile::strips][Tile::head_dim / 2];

    static ATTN_DEVICE int lane() { return thread_index() & 31; }
    static ATTN_DEVICE int warp_row() { return thread_index() / 32 * 16 * Tile::strips; }

    // The tile, found anew wherever it is needed, so that it takes no registers in the loop.
    ATTN_DEVICE Place place() const {
        Place place = {};
        place_of<Tile>(p, opaque(0), place);
        return place;
    }

    ATTN_DEVICE bool carries() const { return p.state_max.base != nullptr; }

    // The thread's first row of a strip.
    static ATTN_DEVICE int first_row(const Place& place, int strip) {
        return place.row_block * Tile::rows + warp_row() + 16 * strip + lane() / 4;
    }

    // Products of keys that their query does not attend become -inf.
    ATTN_DEVICE void mask(float (&scores)[Tile::keys / 2], int strip, const Place& place, int block, int length) const {
        const int row = first_row(place, strip);
        if (is_irregular(p.mask)) {
            uint32_t allowed[2];
            read_pairs<Tile>(allowed, p, place, row, block);
            mask_pairs(scores, allowed);
        } else {
            mask_block<Tile>(scores, p, length, row, block);
        }
    }

    // Takes the softmax of a strip's products into its output so far, and makes an operand of it.
    ATTN_DEVICE void weigh(float (&scores)[Tile::keys / 2], uint32_t (&weights)[Tile::keys / 4], int strip) {
        float correction[2];
        softmax_block(scores, rows[strip], correction, p.scale_log2);
        to_operand<typename Tile::Element>(scores, weights);
        rescale(output[strip], correction);
    }

    // A block of keys, which are on their way, and whose neighbour below is the next: both are attended by everybody.
    ATTN_DEVICE void step_inside(const Ways<Tile>& ways, int block) {
        float scores[Tile::strips][Tile::keys / 2];
        uint32_t weights[Tile::strips][Tile::keys / 4];
        copy_async_wait<0>();
        // All threads' keys have come, and nobody reads the values before any more.
        block_sync();
        ways.template load_values<false>(p, block, 0);
        copy_async_commit();
        multiply_keys<Tile>(scores, ways.queries(), ways.keys());
        copy_async_wait<0>();
        // All threads' values have come, and nobody reads the keys any more.
        block_sync();
        ways.template load_keys<false>(p, block - 1, 0);
        copy_async_commit();
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) weigh(scores[m], weights[m], m);
        multiply_values<Tile>(output, weights, ways.values());
    }

    // Any other block. `run` is the one that it is of; then the one that the next block is of. False if there is none.
    ATTN_DEVICE bool step(const Ways<Tile>& ways, int& block, Run& run) {
        float scores[Tile::strips][Tile::keys / 2];
        uint32_t weights[Tile::strips][Tile::keys / 4];
        const Place tile = place();
        const int length = key_length(p.mask, tile.batch, p.seq_k), here = block;
        const bool masked = run.masked;
        copy_async_wait<0>();
        block_sync();
        ways.template load_values<true>(p, block, length);
        copy_async_commit();
        multiply_keys<Tile>(scores, ways.queries(), ways.keys());
        copy_async_wait<0>();
        block_sync();
        bool more = true;
        if (block > run.bottom) {
            --block;
        } else {
            more = Runs<Tile>{p, tile}.next(run);
            block = run.top;
        }
        if (more) ways.template load_keys<true>(p, block, length);
        copy_async_commit();
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) {
            if (masked) mask(scores[m], m, tile, here, length);
            weigh(scores[m], weights[m], m);
        }
        multiply_values<Tile>(output, weights, ways.values());
        return more;
    }

    // All blocks of keys, of which there is one at least. The loop inside, without masks and borders, is the one that
    // counts.
    ATTN_DEVICE void attend(const Place& place) {
        Run run;
        if (!Runs<Tile>{p, place}.first(run)) return;
        const Ways<Tile> ways(p, place, p.heads_per_kv);
        ways.load_queries(p, p.query, place);
        ways.template load_keys<true>(p, run.top, key_length(p.mask, place.batch, p.seq_k));
        copy_async_commit();
        int block = run.top;
        do {
            if (!run.masked) {
#pragma unroll 1
                for (; block > run.bottom; --block) step_inside(ways, block);
            }
        } while (step(ways, block, run));
        // The last group is empty.
        copy_async_wait<0>();
    }

    ATTN_DEVICE void run() {
        Run first;
        const bool any = Runs<Tile>{p, place()}.first(first);
        // A tile that needs no keys still writes its zeros, unless a state is carried on.
        if (carries() && !any) return;
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) begin_rows(rows[m], output[m]);
        if (carries()) {
            const Place tile = place();
#pragma unroll
            for (int m = 0; m < Tile::strips; ++m) load_state<Tile>(p, tile, first_row(tile, m), rows[m], output[m]);
        }
        attend(place());
        const Place tile = place();
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) {
            const int row = first_row(tile, m);
            join_sums(rows[m]);
            if (carries()) {
                store_state<Tile>(p, tile, row, rows[m], output[m]);
            } else {
                store_lse<Tile>(p, tile, row, rows[m]);
                store_output<Tile>(p, tile, row, rows[m], output[m]);
            }
        }
    }
};

template <class Tile>
ATTN_KERNEL(Tile::threads, Tile::blocks)
forward(ATTN_GRID_CONSTANT const Problem p) {
    Forward<Tile> tile{p};
    tile.run();
}

}  // namespace attn::flash::sm80
