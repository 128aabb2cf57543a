// Attention with queries and keys in 8 bits for every GPU since Ampere. One block of threads for each tile; copies, shared
// memory and the order of blocks are flash's (flash/sm80/forward.h).
#pragma once
#include <cstring>

#include "../../flash/pairs.h"
#include "../../flash/sm80/output.h"
#include "../../flash/sm80/products.h"
#include "../../flash/sm80/runs.h"
#include "../../flash/sm80/ways.h"
#include "../epilogue.h"
#include "tile.h"

namespace attn::sage::sm80 {

using flash::Place;
using flash::sm80::LaneRow;
using flash::sm80::Run;
using flash::sm80::Runs;
using flash::sm80::Ways;

// scores[16 each][keys] = Q K^T in whole numbers: as flash's product, 32 bytes of a row at a time.
template <class Tile>
ATTN_DEVICE void multiply_keys(int32_t (&scores)[Tile::strips][Tile::keys / 2],
                               const LaneRow<typename Tile::QueryRows>& query,
                               const LaneRow<typename Tile::KeyRows>& key) {
#pragma unroll
    for (int m = 0; m < Tile::strips; ++m) {
#pragma unroll
        for (int i = 0; i < Tile::keys / 2; ++i) scores[m][i] = 0;
    }
#pragma unroll
    for (int k = 0; k < Tile::head_dim / 32; ++k) {
        SharedAddress queries[Tile::strips], keys[Tile::keys / 16];
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) queries[m] = query.at(2 * k, m);
#pragma unroll
        for (int n = 0; n < Tile::keys / 16; ++n) keys[n] = key.at(2 * k, n);
        uint32_t a[Tile::strips][4];
        load_matrices(queries, a);
        mma_shared_s8(scores, a, keys);
    }
}

// A whole number below 2^22 as a float, exactly: in a float of 1.5 * 2^23 the last place is worth 1. Two additions take less
// time than a conversion, of which Ampere begins as few at a time as exponentials.
ATTN_DEVICE float float_of(int32_t whole) {
    const int32_t bits = whole + 0x4B400000;
    float sum;
    memcpy(&sum, &bits, 4);
    return sum - 12582912.0f;
}

template <class Tile>
struct Forward {
    const Problem& p;

    Rows rows[Tile::strips];
    // The queries' scales.
    float scale[Tile::strips][2];
    float output[Tile::strips][Tile::head_dim / 2];

    static ATTN_DEVICE int lane() { return thread_index() & 31; }
    static ATTN_DEVICE int warp_row() { return thread_index() / 32 * 16 * Tile::strips; }
    static ATTN_DEVICE int first_row(const Place& place, int strip) {
        return place.row_block * Tile::rows + warp_row() + 16 * strip + lane() / 4;
    }

    // The tile, found anew wherever it is needed, so that it takes no registers in the loop.
    ATTN_DEVICE Place place() const {
        Place place = {};
        flash::place_of<Tile>(p.tiles, opaque(0), place);
        return place;
    }

    // Where the scales of this thread's columns stand, of the head's first block.
    ATTN_DEVICE int key_scales(const Place& place) const {
        const int head = place.batch * p.kv_heads + place.head / p.tiles.heads_per_kv;
        return head * blocks_of(p.tiles.seq_k) * key_groups + (thread_index() & 3);
    }

    // Takes the softmax of a strip's products into its output so far, and makes an operand of it.
    template <bool Masked>
    ATTN_DEVICE void weigh(const int32_t (&products)[Tile::keys / 2], uint32_t (&weights)[Tile::keys / 4], int strip,
                           float key_scale, const Place& place, int block) {
        float scores[Tile::keys / 2], correction[2];
#pragma unroll
        for (int i = 0; i < Tile::keys / 2; ++i) scores[i] = float_of(products[i]);
        if constexpr (Masked) {
            uint32_t allowed[2];
            flash::read_pairs<Tile>(allowed, p.tiles, place, first_row(place, strip), block);
            flash::mask_pairs(scores, allowed);
        }
        const float factor[2] = {scale[strip][0] * key_scale, scale[strip][1] * key_scale};
        softmax_block(scores, rows[strip], correction, factor);
        flash::to_operand<typename Tile::Element>(scores, weights);
        flash::rescale(output[strip], correction);
    }

    // A block of keys, which are on their way; `next` is the one whose keys are to come, or -1. `Masked`: its pairs have to be
    // looked at, or the borders of it or of the next; of `length` keys.
    template <bool Masked>
    ATTN_DEVICE void step(const Ways<Tile>& ways, int scales, int block, int next, int length, bool masked) {
        int32_t products[Tile::strips][Tile::keys / 2];
        uint32_t weights[Tile::strips][Tile::keys / 4];
        const float key_scale = p.key_scale[scales + block * Tile::keys / block_keys * key_groups];
        copy_async_wait<0>();
        // All threads' keys have come, and nobody reads the values before any more.
        block_sync();
        ways.template load_values<Masked>(p, block, length);
        copy_async_commit();
        multiply_keys<Tile>(products, ways.queries(), ways.keys());
        copy_async_wait<0>();
        // All threads' values have come, and nobody reads the keys any more.
        block_sync();
        if (!Masked || next >= 0) ways.template load_keys<Masked>(p, next, length);
        copy_async_commit();
        const Place tile = Masked ? place() : Place{};
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) {
            if (Masked && masked) {
                weigh<true>(products[m], weights[m], m, key_scale, tile, block);
            } else {
                weigh<false>(products[m], weights[m], m, key_scale, tile, block);
            }
        }
        flash::sm80::multiply_values<Tile>(output, weights, ways.values());
    }

    // All blocks of keys from a first run on. The loop inside, without masks and borders, is the one that counts.
    ATTN_DEVICE void attend(Run run) {
        const Place begin = place();
        const Ways<Tile> ways(p, begin, p.tiles.heads_per_kv);
        const int scales = key_scales(begin);
        ways.load_queries(p.tiles, p.query, begin);
        ways.template load_keys<true>(p, run.top, key_length(p.tiles.mask, begin.batch, p.tiles.seq_k));
        copy_async_commit();
        bool more = true;
        int block = run.top;
        while (more) {
            if (!run.masked) {
#pragma unroll 1
                for (; block > run.bottom; --block) step<false>(ways, scales, block, block - 1, 0, false);
            }
            const Place tile = place();
            const int here = block;
            const bool masked = run.masked;
            if (block > run.bottom) {
                --block;
            } else {
                more = Runs<Tile>{p.tiles, tile}.next(run);
                block = run.top;
            }
            step<true>(ways, scales, here, more ? block : -1, key_length(p.tiles.mask, tile.batch, p.tiles.seq_k),
                       masked);
        }
        // The last group is empty.
        copy_async_wait<0>();
    }

    ATTN_DEVICE void run() {
        Run first;
        bool any;
        {
            const Place tile = place();
            any = Runs<Tile>{p.tiles, tile}.first(first);
            // A tile that needs no keys still writes its zeros, unless a state is carried on.
            if (p.carried && !any) return;
#pragma unroll
            for (int m = 0; m < Tile::strips; ++m) {
                begin(rows[m]);
#pragma unroll
                for (int i = 0; i < Tile::head_dim / 2; ++i) output[m][i] = 0.0f;
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const int at = first_row(tile, m) + 8 * r;
                    scale[m][r] = at < p.tiles.seq_q ? of_query(p.tiles, p.query_scale, tile, at) : 1.0f;
                }
            }
        }
        if (any) attend(first);
        const Place tile = place();
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) {
            const int row = first_row(tile, m);
            join_sums(rows[m]);
            if (p.carried) {
                join_state<false>(p, tile, row, rows[m], output[m]);
            } else {
                store_lse(p, tile, row, rows[m]);
                finish_output<false>(p, tile, rows[m], output[m]);
                flash::sm80::store_rounded<Tile>(p.tiles, p.out, tile, row, output[m]);
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

}  // namespace attn::sage::sm80
