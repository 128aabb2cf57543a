// The flash kernel for every GPU since Ampere: online softmax over blocks of keys (Dao et al. 2022; Dao 2023,
// FlashAttention-2), with copies that go on beside the tensor cores.
//
// One block of threads for each tile, a warp for every 16 or 32 of its rows; blocks of a grid begin in order, so the longest
// tiles come first. Shared memory holds the queries and one block each of keys and of values: while the keys are multiplied,
// their values come; while the values are multiplied, the next keys.
#pragma once
#include "load.h"
#include "mask.h"
#include "output.h"
#include "products.h"

namespace attn::flash::sm80 {

template <class Tile>
struct Forward {
    const Problem& p;
    const GroupPlace& place;
    const Shared<Tile> shared;
    // Where this thread's pieces of keys and values come from, of the first row that there is, and go to.
    const uint8_t *key_from, *value_from;
    const SharedAddress key_to, value_to;
    // Where this lane finds rows of matrices.
    const LaneRow<Tile> query, key, value;

    RowPair rows[Tile::strips];
    float output[Tile::strips][Tile::head_dim / 2];

    static ATTN_DEVICE int lane() { return thread_index() & 31; }
    static ATTN_DEVICE int warp_row() { return thread_index() / 32 * 16 * Tile::strips; }

    ATTN_DEVICE Forward(const Problem& problem, const GroupPlace& tile)
        : p(problem),
          place(tile),
          shared(shared_base()),
          key_from(Loader<Tile>::piece(p.key, first_key())),
          value_from(Loader<Tile>::piece(p.value, first_key())),
          key_to(Loader<Tile>::place(shared.key)),
          value_to(Loader<Tile>::place(shared.value)),
          query(shared.query, warp_row() + lane() % 16, lane() / 16),
          key(shared.key, lane() % 8 + lane() / 16 * 8, lane() / 8 % 2),
          value(shared.value, lane() % 16, lane() / 16) {}

    ATTN_DEVICE RowIndex first_key() const {
        return {place.batch, Loader<Tile>::first_row(), place.head / p.heads_per_kv};
    }

    // The thread's first row of a strip.
    ATTN_DEVICE int first_row(int strip) const {
        return place.row_block * Tile::rows + warp_row() + 16 * strip + lane() / 4;
    }

    template <bool Bounded>
    ATTN_DEVICE void load_keys(int block, int length) const {
        const int64_t stride = p.key.seq_stride;
        Loader<Tile>::template load_block<Bounded>(key_to, key_from + 2 * Tile::keys * block * stride, stride,
                                                   length - block * Tile::keys);
    }
    template <bool Bounded>
    ATTN_DEVICE void load_values(int block, int length) const {
        const int64_t stride = p.value.seq_stride;
        Loader<Tile>::template load_block<Bounded>(value_to, value_from + 2 * Tile::keys * block * stride, stride,
                                                   length - block * Tile::keys);
    }

    // A block of keys, whose keys are on their way. `next`: the block after it, or -1. `Inner`: it is attended by
    // everybody, as is its neighbour below, which is the next.
    template <bool Inner>
    ATTN_DEVICE void step(int block, int next, bool masked, int length) {
        float scores[Tile::strips][Tile::keys / 2];
        uint32_t weights[Tile::strips][Tile::keys / 4];
        copy_async_wait<0>();
        // All threads' keys have come, and nobody reads the values before any more.
        block_sync();
        load_values<!Inner>(block, length);
        copy_async_commit();
        multiply_keys<Tile>(scores, query, key);
        copy_async_wait<0>();
        // All threads' values have come, and nobody reads the keys any more.
        block_sync();
        if constexpr (Inner) {
            load_keys<false>(block - 1, length);
        } else if (next >= 0) {
            load_keys<true>(next, length);
        }
        copy_async_commit();
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) {
            if constexpr (!Inner) {
                if (masked) mask_block<Tile>(scores[m], p, place, length, first_row(m), block);
            }
            float correction[2];
            softmax_block(scores[m], rows[m], correction, p.scale_log2);
            to_operand<typename Tile::Element>(scores[m], weights[m]);
            rescale(output[m], correction);
        }
        multiply_values<Tile>(output, weights, value);
    }

    // All blocks of keys, of which there is one at least. The loop inside, without masks and borders, is the one that
    // counts.
    ATTN_DEVICE void attend(Walk<Tile>& walk, Run run) {
        const int length = walk.blocks.length;
        Loader<Tile>::load_queries(shared.query, p, place);
        load_keys<true>(run.first, length);
        copy_async_commit();
        int block = run.first;
#pragma unroll 1
        for (;;) {
            if (!run.masked) {
#pragma unroll 1
                for (; block > run.last; --block) step<true>(block, block - 1, false, length);
            }
            const bool masked = run.masked;
            int next = block - 1;
            if (block == run.last) next = walk.next(run) ? run.first : -1;
            step<false>(block, next, masked, length);
            if (next < 0) break;
            block = next;
        }
        // The last group is empty.
        copy_async_wait<0>();
    }

    ATTN_DEVICE void run() {
        Walk<Tile> walk(p, place);
        Run first;
        const bool any = walk.next(first), carried = p.state_max.base != nullptr;
        // A tile that needs no keys still writes its zeros, unless a state is carried on.
        if (carried && !any) return;
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) {
            begin_rows(rows[m], output[m]);
            if (carried) load_state(p, place, first_row(m), rows[m], output[m]);
        }
        if (any) attend(walk, first);
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) {
            join_sums(rows[m]);
            if (carried) {
                store_state(p, place, first_row(m), rows[m], output[m]);
            } else {
                store_lse(p, place, first_row(m), rows[m]);
                store_output<Tile>(p, place, first_row(m), rows[m], output[m]);
            }
        }
    }
};

template <class Tile>
ATTN_KERNEL(Tile::threads, Tile::blocks)
forward(ATTN_GRID_CONSTANT const Problem p) {
    GroupPlace place;
    if (!place_of<Tile>(p, 0, place)) return;
    place.group = p.group;
    Forward<Tile> tile(p, place);
    tile.run();
}

}  // namespace attn::flash::sm80
