// Keys less their mean to 8 bits. One block of threads for each block of 128 keys of each head: it reads them once, keeps
// them in registers, finds the four scales, and rounds.
#pragma once
#include "rounding.h"

namespace attn::sage {

template <int HeadDim>
struct KeyPlan {
    // Lanes of a row, and of two neighbouring rows, which have one scale.
    static constexpr int lanes = HeadDim / 16, pair_lanes = 2 * lanes, pairs = quantise_threads / pair_lanes;
    static constexpr int rows = 2 * pairs, rounds = block_keys / rows;
    static constexpr int shared_bytes = pairs * 16 + 16;
    static_assert(pairs % key_groups == 0, "a thread's rows all have the same scale");
};

template <class T, int HeadDim>
ATTN_KERNEL(quantise_threads, 2) quantise_keys(ATTN_GRID_CONSTANT const AttnSage p) {
    using Plan = KeyPlan<HeadDim>;
    const AttnAttention& call = p.attention;
    const int blocks = blocks_of(call.seq_k), block = block_index() % blocks;
    const KeyHead head = KeyHead::of(call, block_index() / blocks);
    const int length = head.length(call);
    if (block * block_keys >= length) return;

    const int lane = thread_index() % Plan::lanes, pair = thread_index() / Plan::pair_lanes;
    const int first = block * block_keys + thread_index() / Plan::lanes;
    float means[16];
    load_floats(p.tensors.key_mean + static_cast<int64_t>(head.number) * HeadDim + 16 * lane, means);
    Elements<16> key[Plan::rounds];
#pragma unroll
    for (int i = 0; i < Plan::rounds; ++i) {
        const int token = readable(first + i * Plan::rows, length);
        key[i].load(row_of(call.key, head.batch, token, head.head) + 16 * lane);
    }
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < Plan::rounds; ++i) {
        const bool counts = first + i * Plan::rows < length;
        float values[16];
        key[i].template widen<T>(values);
#pragma unroll
        for (int e = 0; e < 16; ++e) largest = larger(largest, counts ? magnitude(values[e] - means[e]) : 0);
    }
    largest = largest_of<Plan::pair_lanes>(largest);

    // Pairs of rows that are a multiple of four pairs apart have the same scale.
    const SharedAddress shared = (shared_base() + 15) & ~SharedAddress(15);
    if (thread_index() % Plan::pair_lanes == 0) store_shared_16(shared + 16 * pair, largest, 0, 0, 0);
    block_sync();
    const int group = pair % key_groups;
#pragma unroll
    for (int other = 0; other < Plan::pairs; other += key_groups) {
        uint32_t words[4];
        load_shared_16(shared + 16 * (group + other), words);
        largest = larger(largest, words[0]);
    }
    const float scale = scale_of(largest, most_s8), inverse = 1.0f / scale;
    if (pair < key_groups && thread_index() % Plan::pair_lanes == 0) {
        p.tensors.key_scale[static_cast<int64_t>(block_index()) * key_groups + group] = scale;
    }
#pragma unroll
    for (int i = 0; i < Plan::rounds; ++i) {
        const int token = first + i * Plan::rows;
        if (token >= length) continue;
        float values[16];
        key[i].template widen<T>(values);
#pragma unroll
        for (int e = 0; e < 16; ++e) values[e] -= means[e];
        const int64_t row = static_cast<int64_t>(head.number) * call.seq_k + token;
        store_rounded(p.tensors.key + row * HeadDim + 16 * lane, values, inverse);
    }
}

}  // namespace attn::sage
