// Queries to 8 bits: a scale for each, and its product with the mean key, by which the log-sum-exp is put right.
//
// Several lanes share a row, of which each has 16 elements; a thread has two rows, so that the loads of both are under way
// together.
#pragma once
#include "rounding.h"

namespace attn::sage {

template <int HeadDim>
struct QueryPlan {
    static constexpr int lanes = HeadDim / 16, rows = quantise_threads / lanes, rounds = 2;
    static constexpr int rows_of_block = rows * rounds;
};

template <class T, int HeadDim>
ATTN_KERNEL(quantise_threads, 3) quantise_queries(ATTN_GRID_CONSTANT const Shard p) {
    using Plan = QueryPlan<HeadDim>;
    constexpr float log2e = 1.44269504088896340736f;
    const AttnAttention& call = p.attention;
    const float scale_log2 = call.scale * log2e;
    const int all = call.batch * call.heads * call.seq_q;
    const int lane = thread_index() % Plan::lanes;
    const int first = block_index() * Plan::rows_of_block + thread_index() / Plan::lanes;

    Elements<16> query[Plan::rounds];
    int mean[Plan::rounds];
#pragma unroll
    for (int i = 0; i < Plan::rounds; ++i) {
        // Rows beyond the last are done as the last one is, and not stored.
        const int number = first + i * Plan::rows < all ? first + i * Plan::rows : all - 1;
        const int row = number % call.seq_q, above = number / call.seq_q;
        const int head = above % call.heads, batch = above / call.heads;
        query[i].load(row_of(call.query, batch, row, head) + 16 * lane);
        mean[i] = batch * call.kv_heads + head / (call.heads / call.kv_heads);
    }
#pragma unroll
    for (int i = 0; i < Plan::rounds; ++i) {
        float values[16], means[16];
        query[i].template widen<T>(values);
        load_floats(p.tensors.key_mean + static_cast<int64_t>(mean[i]) * HeadDim + 16 * lane, means);
        uint32_t largest = 0;
        float product = 0.0f;
#pragma unroll
        for (int e = 0; e < 16; ++e) {
            largest = larger(largest, magnitude(values[e]));
            product = fmaf(values[e], means[e], product);
        }
        largest = largest_of<Plan::lanes>(largest);
#pragma unroll
        for (int apart = 1; apart < Plan::lanes; apart *= 2) product += shuffle_xor(product, apart);

        const int number = first + i * Plan::rows;
        if (number < all) {
            const float scale = scale_of(largest, most_s8);
            store_rounded(p.tensors.query + static_cast<int64_t>(number) * HeadDim + 16 * lane, values, 1.0f / scale);
            if (lane == 0) {
                // The product with a key's scale has to stay above zero: what a mask forbids is -inf times it.
                constexpr uint32_t least = (127u - 63u) << 23;
                p.tensors.query_scale[number] = float_of(larger(bits_of(scale * scale_log2), least));
                if (p.tensors.query_mean != nullptr) p.tensors.query_mean[number] = product * scale_log2;
            }
        }
        warp_sync();
    }
}

}  // namespace attn::sage
