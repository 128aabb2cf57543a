// A consumer: one warpgroup, 64 rows of queries. It works as flash's overlapped one does: while the tensor cores make the
// scores of one block of keys and add the values of the block before, it takes the softmax of what is there.
#pragma once
#include "../../flash/pairs.h"
#include "../epilogue.h"
#include "../runs.h"
#include "products.h"

namespace attn::sage::sm90 {

template <class Tile>
struct Consumer {
    const Problem& p;
    const Shared<Tile>& shared;
    const TensorMap& out;
    // Which warpgroup, counted among the consumers.
    const int group;

    // Blocks of keys whose scores are made; their values are added in the next step.
    Turn<Tile> turn = {};
    Rows rows;
    float output[Tile::head_dim / 2];
    // The weights of the block before, as an operand.
    uint32_t weights[Tile::keys / 8];

    using Scores = float[Tile::keys / 2];
    using Products = float[Tile::head_dim / 2];

    // One thread of the warpgroup speaks for it. (Not a variable: it would take a register in the hot loop.)
    ATTN_DEVICE static bool speaks() { return (thread_index() & 127) == 0; }
    ATTN_DEVICE int first_row(const flash::Place& place) const {
        const int lane = thread_index() & 31, warp = thread_index() >> 5 & 3;
        return place.row_block * Tile::rows + 64 * group + 16 * warp + (lane >> 2);
    }

    // Named barriers: 1 and 2 give the turn at the tensor cores, 3 and 4 join a warpgroup.
    ATTN_DEVICE void await_turn() { named_sync(1 + group, 256); }
    ATTN_DEVICE void pass_turn() { named_arrive(2 - group, 256); }
    ATTN_DEVICE void join_group() { named_sync(3 + group, 128); }

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
    ATTN_DEVICE void release_query() {
        if (speaks()) barrier_arrive(shared.query_empty);
    }

    // The block of keys before, whose values are still to be added.
    ATTN_DEVICE Turn<Tile> before() const { return {turn.count - 1}; }

    // Where this thread's scale of a head's first block stands.
    ATTN_DEVICE int key_scales(const flash::Place& place) const {
        const int head = place.head / p.tiles.heads_per_kv;
        return (place.batch * p.kv_heads + head) * blocks_of(p.tiles.seq_k) * key_groups + (thread_index() & 3);
    }

    // The scales of a thread's two queries, and where its keys' scales begin, stand in shared memory of its own: all
    // registers are taken. (Sixteen bytes for each thread, as the simulator watches them.)
    ATTN_DEVICE SharedAddress own_scales() const { return shared.scale + 16 * (thread_index() - 128); }
    ATTN_DEVICE void keep_scales(const flash::Place& place) const {
        uint32_t bits[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int at = first_row(place) + 8 * r;
            const float scale = at < p.tiles.seq_q ? of_query(p.tiles, p.query_scale, place, at) : 1.0f;
            memcpy(bits + r, &scale, 4);
        }
        store_shared_8(own_scales(), bits[0], bits[1]);
        store_shared_8(own_scales() + 8, static_cast<uint32_t>(key_scales(place)), 0);
    }
    // What the products of a block of keys are multiplied with.
    ATTN_DEVICE void load_factors(float (&factor)[2], int block) const {
        uint32_t bits[2], keys[2];
        load_shared_8(own_scales(), bits);
        load_shared_8(own_scales() + 8, keys);
        memcpy(factor, bits, 8);
        const float key_scale = p.key_scale[static_cast<int>(keys[0]) + block * key_groups];
        factor[0] *= key_scale;
        factor[1] *= key_scale;
    }

    ATTN_DEVICE void issue_scores(int32_t (&scores)[Tile::keys / 2]) {
        multiply_keys<Tile>(scores, shared.query + group * 64 * Tile::row_bytes,
                            shared.key + turn.stage() * Tile::block_bytes);
    }
    ATTN_DEVICE void issue_products(Products& products, Turn<Tile> of) {
        multiply_values<Tile>(products, weights, shared.value + of.stage() * Tile::block_bytes);
    }

    ATTN_DEVICE static void widen(const int32_t (&whole)[Tile::keys / 2], Scores& scores) {
#pragma unroll
        for (int i = 0; i < Tile::keys / 2; ++i) scores[i] = static_cast<float>(whole[i]);
    }

    // Products of keys that are not attended become -inf.
    ATTN_DEVICE void mask(Scores& scores, const flash::Place& place, int block) {
        uint32_t allowed[2];
        // What follows from the row is found anew each time: there are no registers to keep it in.
        flash::read_pairs<Tile>(allowed, p.tiles, place, opaque(first_row(place)), block);
        flash::mask_pairs(scores, allowed);
    }

    // The first block's weights, before the loops.
    ATTN_DEVICE void enter(int block, const flash::Place& place) {
        float factor[2];
        load_factors(factor, block);
        int32_t whole[Tile::keys / 2];
        Scores scores;
        await_keys();
        issue_scores(whole);
        wgmma_wait<0>();
        registers_fence(whole);
        release_keys();
        widen(whole, scores);
        mask(scores, place, block);
        softmax_block(scores, rows, rows.correction, factor);
        to_operand(scores, weights);
        ++turn.count;
    }

    // The weights of a block, while the values of the block before are added. Where pairs are looked at one by one there
    // are no registers for both: the values come first.
    template <bool Masked>
    ATTN_DEVICE void step(int block, const flash::Place& place) {
        float factor[2];
        load_factors(factor, block);
        int32_t whole[Tile::keys / 2];
        Products products;
        await_keys();
        await_turn();
        issue_scores(whole);
        await_values(before());
        issue_products(products, before());
        pass_turn();
        Scores scores;
        float correction[2];
        if constexpr (Masked) {
            wgmma_wait<0>();
            registers_fence(whole);
            registers_fence(products);
            release_keys();
            release_values(before());
            accumulate(output, products, rows.correction);
            widen(whole, scores);
            mask(scores, place, block);
            softmax_block(scores, rows, correction, factor);
        } else {
            wgmma_wait<1>();
            registers_fence(whole);
            release_keys();
            widen(whole, scores);
            softmax_block(scores, rows, correction, factor);
            pin_before_wait(shared.scratch, rows.sum[0], rows.sum[1]);
            wgmma_wait<0>();
            registers_fence(products);
            release_values(before());
            accumulate(output, products, rows.correction);
        }
        rows.correction[0] = correction[0];
        rows.correction[1] = correction[1];
        ++turn.count;
        to_operand(scores, weights);
    }

    // The last block's values, after the loops.
    ATTN_DEVICE void leave() {
        Products products;
        await_values(before());
        issue_products(products, before());
        wgmma_wait<0>();
        registers_fence(products);
        release_values(before());
        accumulate(output, products, rows.correction);
    }

    // All scores of a tile. False if it has no blocks.
    ATTN_DEVICE bool attend(const flash::Place& place) {
        Run run = next_run<Tile>(p.tiles, place, Cover::Partial, 0);
        const bool masked = !run.is_empty();
        if (!masked) run = next_run<Tile>(p.tiles, place, Cover::Full, 0);
        if (run.is_empty()) return false;
        enter(run.begin, place);
        ++run.begin;
        if (masked) {
#pragma unroll 1
            do {
#pragma unroll 1
                for (int block = run.begin; block < run.end; ++block) step<true>(block, place);
                run = next_run<Tile>(p.tiles, place, Cover::Partial, run.end);
            } while (!run.is_empty());
            run = next_run<Tile>(p.tiles, place, Cover::Full, 0);
            if (run.is_empty()) return true;
        }
#pragma unroll 1
        do {
#pragma unroll 1
            for (int block = run.begin; block < run.end; ++block) step<false>(block, place);
            run = next_run<Tile>(p.tiles, place, Cover::Full, run.end);
        } while (!run.is_empty());
        return true;
    }

    // Lays the warpgroup's 64 rows into shared memory, rounded, as the copy engine wants to find them.
    template <class Element>
    ATTN_DEVICE void stage_output() {
        const int lane = thread_index() & 31, warp = thread_index() >> 5 & 3;
        // Each store takes four 8 x 8 matrices: rows 0 to 7 and 8 to 15 of 8 columns, then of the next 8.
        const int row = 64 * group + 16 * warp + (lane & 15), odd_columns = lane >> 4;
#pragma unroll
        for (int i = 0; i < Tile::head_dim / 16; ++i) {
            const int slab = i / 4, piece = (2 * i + odd_columns) % 8;
            const SharedAddress to =
                shared.output + (slab * Tile::rows + row) * Tile::slab_row_bytes + ((piece ^ (row & 7)) << 4);
            const float* d = output + 8 * i;
            store_matrix_x4(to, pack2<Element>(d[0], d[1]), pack2<Element>(d[2], d[3]), pack2<Element>(d[4], d[5]),
                            pack2<Element>(d[6], d[7]));
        }
    }

    // Writes a tile's rows through shared memory and the copy engine.
    ATTN_DEVICE void write_output(const flash::Place& place) {
        // The tile before must have left the memory.
        if (speaks()) tma_store_wait_read<0>();
        join_group();
        if (p.type == ATTN_BF16) {
            stage_output<Bf16>();
        } else {
            stage_output<F16>();
        }
        fence_proxy_async();
        join_group();
        if (speaks()) {
#pragma unroll
            for (int slab = 0; slab < Tile::slabs; ++slab) {
                const SharedAddress from = shared.output + (slab * Tile::rows + 64 * group) * Tile::slab_row_bytes;
                tma_store(out, from, 0, place.row_block * Tile::rows + 64 * group, slab, place.head, place.batch);
            }
            tma_store_commit();
        }
    }

    // One tile. `round` as in `run`.
    ATTN_DEVICE void take_tile(int round, flash::Place place) {
        begin(rows);
#pragma unroll
        for (int i = 0; i < Tile::head_dim / 2; ++i) output[i] = 0.0f;
        keep_scales(place);
        barrier_wait(shared.query_full, static_cast<uint32_t>(round & 1));
        const bool any = attend(place);
        // Without any product to join the warpgroup, a thread that is slow to look at the barrier could find it a phase
        // further, once the queries are released, and wait for ever.
        if (!any) join_group();
        // All scores are there: nobody reads the queries any more.
        release_query();
        if (any) leave();
        join_sums(rows);
        // Found anew, so that it takes no registers in the loops.
        flash::place_of<Tile>(p.tiles, opaque(round) / 2, place);
        if (p.carried) {
            join_state<true>(p, place, first_row(place), rows, output);
        } else {
            store_lse(p, place, first_row(place), rows);
            finish_output<true>(p, place, rows, output);
            write_output(place);
        }
    }

    ATTN_DEVICE void run() {
        // The first turn is the first warpgroup's.
        if (group == 0) named_arrive(1, 256);
        // Twice the round, and the parity of the phase in which its queries come: one register, and there is none to spare.
        int round = 0;
#pragma unroll 1
        for (; round / 2 < flash::rounds_of(p.tiles); round += 2) {
            flash::Place place;
            if (!flash::place_of<Tile>(p.tiles, round / 2, place)) continue;
            if (p.carried && has_none<Tile>(p.tiles, place)) continue;
            take_tile(round, place);
            round ^= 1;
        }
        if (speaks()) tma_store_wait_read<0>();
    }
};

}  // namespace attn::sage::sm90
