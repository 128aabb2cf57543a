// A consumer: one warpgroup, 64 rows of queries.
#pragma once
#include "../pairs.h"
#include "order.h"
#include "products.h"
#include "staging.h"

namespace attn::flash::sm90 {

template <class Tile>
struct Consumer {
    const Problem& p;
    const Shared<Tile>& shared;
    const TensorMap& out;
    // Which warpgroup, counted among the consumers.
    const int group;

    // Blocks of keys whose scores are made. Their values are added in the same step, or in the next if overlapped.
    Turn<Tile> turn = {};
    RowPair rows;
    float output[Tile::head_dim / 2];
    // The exponentials of the block before, as an operand.
    uint32_t weights[Tile::keys / 4];

    using Scores = float[Tile::keys / 2];

    // One thread of the warpgroup speaks for it. (Not a variable: it would take a register in the hot loop.)
    ATTN_DEVICE static bool speaks() { return (thread_index() & 127) == 0; }
    ATTN_DEVICE int first_row(const Place& place) const {
        const int lane = thread_index() & 31, warp = thread_index() >> 5 & 3;
        return place.row_block * Tile::rows + 64 * group + 16 * warp + (lane >> 2);
    }

    // Named barriers: 1 to 3 give the turn at the tensor cores, 4 to 6 join a warpgroup, 7 joins all consumers.
    ATTN_DEVICE void await_turn() {
        if constexpr (Tile::takes_turns) named_sync(1 + group, 256);
    }
    ATTN_DEVICE void pass_turn() {
        if constexpr (Tile::takes_turns) named_arrive(1 + (group + 1) % Tile::groups, 256);
    }
    ATTN_DEVICE void join_group() { named_sync(4 + group, 128); }
    // The same, for the compiler: where lanes have read a cover, or taken different ways, it goes on computing for each
    // by itself what is the same for all, until a barrier joins them.
    ATTN_DEVICE void join_lanes() { join_group(); }
    ATTN_DEVICE void join_groups() { named_sync(7, 128 * Tile::groups); }

    ATTN_DEVICE void await_keys() const { barrier_wait(shared.key_full + 8 * turn.stage(), turn.parity()); }
    ATTN_DEVICE void release_keys() const {
        if (speaks()) barrier_arrive(shared.key_empty + 8 * turn.stage());
    }
    ATTN_DEVICE void await_values(Turn<Tile> of) const {
        barrier_wait(shared.value_full + 8 * of.stage(), of.parity());
    }
    ATTN_DEVICE void release_values(Turn<Tile> of) const {
        if (speaks()) barrier_arrive(shared.value_empty + 8 * of.stage());
    }

    // The block of keys before, whose values are still to be added.
    ATTN_DEVICE Turn<Tile> before() const { return {turn.count - 1}; }

    ATTN_DEVICE void issue_scores(Scores& scores) {
        multiply_keys<Tile>(scores, shared.query + group * 64 * Tile::row_bytes,
                            shared.key + turn.stage() * Tile::block_bytes);
    }
    ATTN_DEVICE void issue_output(Turn<Tile> of) {
        multiply_values<Tile>(output, weights, shared.value + of.stage() * Tile::block_bytes);
    }

    // Simple: a whole block. `mask` is given its scores.
    template <class Mask>
    ATTN_DEVICE void step_simple(const Mask& mask) {
        float correction[2];
        {
            Scores scores;
            await_keys();
            issue_scores(scores);
            wgmma_wait<0>();
            registers_fence(scores);
            release_keys();
            mask(scores);
            softmax_block(scores, rows, correction, p.scale_log2);
            to_operand<typename Tile::Element>(scores, weights);
        }
        rescale(output, correction);
        await_values(turn);
        issue_output(turn);
        wgmma_wait<0>();
        registers_fence(output);
        release_values(turn);
        ++turn.count;
    }

    // Overlapped: the first block's exponentials, before the loop.
    template <class Mask>
    ATTN_DEVICE void enter(const Mask& mask) {
        Scores scores;
        float correction[2];
        await_keys();
        issue_scores(scores);
        wgmma_wait<0>();
        registers_fence(scores);
        release_keys();
        mask(scores);
        softmax_block(scores, rows, correction, p.scale_log2);
        to_operand<typename Tile::Element>(scores, weights);
        if constexpr (Tile::may_carry) rescale(output, correction);
        ++turn.count;
    }

    // Overlapped: the scores and exponentials of a block, while the values of the block before are added.
    template <class Mask>
    ATTN_DEVICE void step_overlapped(const Mask& mask) {
        Scores scores;
        float correction[2];
        await_keys();
        await_turn();
        issue_scores(scores);
        await_values(before());
        issue_output(before());
        pass_turn();
        wgmma_wait<1>();
        registers_fence(scores);
        release_keys();
        mask(scores);
        softmax_block(scores, rows, correction, p.scale_log2);
        pin_before_wait(shared.scratch, rows.sum[0], rows.sum[1]);
        wgmma_wait<0>();
        registers_fence(output);
        release_values(before());
        ++turn.count;
        to_operand<typename Tile::Element>(scores, weights);
        rescale(output, correction);
    }

    // Overlapped: the last block's values, after the loop.
    ATTN_DEVICE void leave() {
        await_values(before());
        issue_output(before());
        wgmma_wait<0>();
        registers_fence(output);
        release_values(before());
    }

    template <bool Masked>
    ATTN_DEVICE void step(int block, int length, int row) {
        const auto mask = [&](Scores& scores) {
            if constexpr (Masked) mask_block<Tile>(scores, p, length, row, block);
        };
        if constexpr (Tile::overlapped) {
            step_overlapped(mask);
        } else {
            step_simple(mask);
        }
    }

    // Three loops, since a branch on the mask inside one would keep the compiler from overlapping anything: blocks at
    // the upper edge of the band, inside it, at the lower edge.
    ATTN_DEVICE void attend(const KeyBlocks& blocks, const Place& place) {
        const int row = first_row(place);
        int block = blocks.top;
        if constexpr (Tile::overlapped) {
            enter([&](Scores& scores) { mask_block<Tile>(scores, p, blocks.length, row, block); });
        } else {
            step<true>(block, blocks.length, row);
        }
        --block;
        if constexpr (Tile::banded) {
#pragma unroll 1
            for (; block >= blocks.bottom && block >= blocks.upper_masked; --block) {
                step<true>(block, blocks.length, row);
            }
            const int inside = blocks.bottom > blocks.lower_masked ? blocks.bottom : blocks.lower_masked;
#pragma unroll 1
            for (; block >= inside; --block) step<false>(block, blocks.length, row);
        }
#pragma unroll 1
        for (; block >= blocks.bottom; --block) step<Tile::banded>(block, blocks.length, row);
    }

    // Two loops, along the cover: blocks that are masked pair by pair, then those that need no mask.
    ATTN_DEVICE void attend(const CoverCounts& blocks, const Place& place) {
        int partial = blocks.partial, full = blocks.full;
        CoverWalk walk;
        uint32_t allowed[2] = {~0u, ~0u};
        // Found anew for each block: what it is made of would take registers beside the products.
        const auto read_next = [&] {
            const Place here = {opaque(place.row_block), opaque(place.head), opaque(place.batch)};
            const int block = walk.next(CoverRow::of<Tile>(p, here), Cover::Partial);
            read_pairs<Tile>(allowed, p, here, first_row(here), block);
        };
        const auto mask = [&](Scores& scores) { mask_pairs(scores, allowed); };
        if (partial > 0) read_next();
        enter(mask);
        (partial > 0 ? partial : full) -= 1;
#pragma unroll 1
        for (; partial > 0; --partial) {
            read_next();
            step_overlapped(mask);
        }
#pragma unroll 1
        for (; full > 0; --full) step_overlapped([](Scores&) {});
    }

    ATTN_DEVICE void release_query() {
        if (speaks()) barrier_arrive(shared.query_empty);
    }

    // Writes a tile's rows through shared memory and the copy engine.
    ATTN_DEVICE void write_output(const Place& place) {
        // The tile before must have left the memory, and every warp must be done with the queries that stood there.
        if (speaks()) tma_store_wait_read<0>();
        join_group();
        stage_output<Tile>(shared.output, group, rows, output);
        fence_proxy_async();
        join_group();
        if (speaks()) {
#pragma unroll
            for (int slab = 0; slab < Tile::slabs; ++slab) {
                const SharedAddress from = shared.output + (slab * Tile::rows + 64 * group) * Tile::row_bytes;
                tma_store(out, from, 0, place.row_block * Tile::rows + 64 * group, slab, place.head, place.batch);
            }
            tma_store_commit();
            if constexpr (!Tile::own_output) tma_store_wait_read<0>();
        }
    }

    // The same where rows are those of several heads: they end anywhere in a warpgroup's 64, so one thread stores those
    // of all warpgroups, in one box for each slab.
    ATTN_DEVICE void write_packed_output(const Place& place) {
        const bool stores = speaks() && group == 0;
        if (stores) tma_store_wait_read<0>();
        join_groups();
        stage_output<Tile>(shared.output, group, rows, output);
        fence_proxy_async();
        join_groups();
        if (stores) {
#pragma unroll
            for (int slab = 0; slab < Tile::slabs; ++slab) {
                tma_store(out, shared.output + slab * Tile::rows * Tile::row_bytes, slab * Tile::slab_columns, 0, 0,
                          place.head, place.batch);
            }
            tma_store_commit();
            if constexpr (!Tile::own_output) tma_store_wait_read<0>();
        }
    }

    ATTN_DEVICE void run() {
        // The first turn is the first warpgroup's.
        if constexpr (Tile::takes_turns) {
            if (group == 0) named_arrive(1, 256);
        }
        const int rounds = rounds_of(p);
        uint32_t query_parity = 0;
#pragma unroll 1
        for (int round = 0; round < rounds; ++round) {
            Place place;
            if (!place_of<Tile>(p, round, place)) continue;
            const auto blocks = blocks_of<Tile>(p, place);
            const bool any = has_any(blocks);
            if (carries<Tile>(p) && !any) continue;
            begin_rows(rows, output);
            if constexpr (Tile::may_carry) {
                if (carries<Tile>(p)) load_state<Tile>(p, place, first_row(place), rows, output);
            }
            barrier_wait(shared.query_full, query_parity);
            query_parity ^= 1;
            if constexpr (Tile::irregular) join_lanes();
            if (any) {
                attend(blocks, place);
            } else {
                // The products would have joined the warpgroup: without any, a thread that is slow to look at the
                // barrier could find it a phase further, once the queries are released, and wait for ever.
                join_group();
            }
            // Found anew, so that it takes no registers in the loops.
            place_of<Tile>(p, opaque(round), place);
            const int row = first_row(place);
            // All scores are there: nobody reads the queries any more.
            constexpr bool early = Tile::carried || Tile::own_output;
            if constexpr (early) release_query();
            if constexpr (Tile::overlapped) {
                if (any) leave();
            }
            join_sums(rows);
            if (carries<Tile>(p)) {
                store_state<Tile>(p, place, row, rows, output);
            } else {
                store_lse<Tile>(p, place, row, rows);
                if constexpr (Tile::packed) {
                    write_packed_output(place);
                } else if constexpr (!Tile::carried) {
                    write_output(place);
                }
            }
            if constexpr (!early) release_query();
            if constexpr (Tile::packed) join_lanes();
        }
        if constexpr (!Tile::carried) {
            if (speaks()) tma_store_wait_read<0>();
        }
    }
};

}  // namespace attn::flash::sm90
