// Keys less their mean to 8 bits. One block of threads for each block of 128 keys of each head: it reads them once, keeps
// them in registers, finds the four scales, and rounds.
//
// Where ranks share a sequence, a block may lie on several: each tells the others beforehand how large the keys of its first
// and of its last block are (edge_maxima), so that all round by the same scales.
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

// What a thread has of a block of keys: 16 elements of every so manieth.
template <class T, int HeadDim>
struct KeyBlock {
    using Plan = KeyPlan<HeadDim>;
    int lane, pair;
    // This rank's number of the thread's first key, below 0 if others have it; and how many keys count.
    int first, length;
    float means[16];
    Elements<16> key[Plan::rounds];

    ATTN_DEVICE int token(int round) const { return first + round * Plan::rows; }
    ATTN_DEVICE bool has(int round) const { return token(round) >= 0 && token(round) < length; }
    // The scale that the thread's keys have, of the block's four.
    ATTN_DEVICE int group() const { return pair % key_groups; }
    // Whether the thread is the one to speak for its group.
    ATTN_DEVICE bool speaks() const { return pair < key_groups && thread_index() % Plan::pair_lanes == 0; }

    // `length` is above 0.
    ATTN_DEVICE void load(const Shard& p, const KeyHead& head, int block, int all) {
        lane = thread_index() % Plan::lanes;
        pair = thread_index() / Plan::pair_lanes;
        first = block * block_keys + thread_index() / Plan::lanes - p.first;
        length = all;
        load_floats(p.tensors.key_mean + static_cast<int64_t>(head.number) * HeadDim + 16 * lane, means);
#pragma unroll
        for (int i = 0; i < Plan::rounds; ++i) {
            key[i].load(row_of(p.attention.key, head.batch, readable(token(i), length), head.head) + 16 * lane);
        }
    }

    // Less the mean.
    ATTN_DEVICE void centred(int round, float (&values)[16]) const {
        key[round].template widen<T>(values);
#pragma unroll
        for (int e = 0; e < 16; ++e) values[e] -= means[e];
    }

    // The largest magnitude of the thread's group in the block.
    ATTN_DEVICE uint32_t largest_of_group() const {
        uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < Plan::rounds; ++i) {
            float values[16];
            centred(i, values);
#pragma unroll
            for (int e = 0; e < 16; ++e) largest = larger(largest, has(i) ? magnitude(values[e]) : 0);
        }
        largest = largest_of<Plan::pair_lanes>(largest);
        // Pairs of rows that are a multiple of four pairs apart have the same scale.
        const SharedAddress shared = (shared_base() + 15) & ~SharedAddress(15);
        if (thread_index() % Plan::pair_lanes == 0) store_shared_16(shared + 16 * pair, largest, 0, 0, 0);
        block_sync();
#pragma unroll
        for (int other = 0; other < Plan::pairs; other += key_groups) {
            uint32_t words[4];
            load_shared_16(shared + 16 * (group() + other), words);
            largest = larger(largest, words[0]);
        }
        return largest;
    }
};

// Of the first and of the last block that this rank has keys of, for each group.
template <class T, int HeadDim>
ATTN_KERNEL(quantise_threads, 2) edge_maxima(ATTN_GRID_CONSTANT const Shard p) {
    const int edge = block_index() % 2;
    const KeyHead head = KeyHead::of(p.attention, block_index() / 2);
    float* to = p.maxima + static_cast<int64_t>(block_index()) * key_groups;
    const int length = p.length(head.batch);
    if (length == 0) {
        if (thread_index() < key_groups) to[thread_index()] = 0.0f;
        return;
    }
    KeyBlock<T, HeadDim> keys;
    keys.load(p, head, p.first_block() + (edge == 0 ? 0 : p.blocks() - 1), length);
    const uint32_t largest = keys.largest_of_group();
    if (keys.speaks()) to[keys.group()] = float_of(largest);
}

// What all ranks have found for a group of a block.
ATTN_DEVICE uint32_t largest_of_ranks(const Shard& p, const KeyHead& head, int block, int group) {
    uint32_t largest = 0;
    for (int rank = 0; rank < p.shards; ++rank) {
        const int start = p.start(rank), end = p.start(rank + 1);
        if (start == end) continue;
        const float* found = p.maxima + (static_cast<int64_t>(head.number) * p.shards + rank) * 2 * key_groups + group;
        if (start / block_keys == block) largest = larger(largest, bits_of(found[0]));
        if ((end - 1) / block_keys == block) largest = larger(largest, bits_of(found[key_groups]));
    }
    return largest;
}

template <class T, int HeadDim>
ATTN_KERNEL(quantise_threads, 2) quantise_keys(ATTN_GRID_CONSTANT const Shard p) {
    using Plan = KeyPlan<HeadDim>;
    const int blocks = p.blocks(), block = p.first_block() + block_index() % blocks;
    const KeyHead head = KeyHead::of(p.attention, block_index() / blocks);
    const int length = p.length(head.batch);
    // A block that began on the rank before is this one's in part, however many keys count here: with none there is no
    // last one to read in the place of those beyond.
    if (length == 0 || block * block_keys - p.first >= length) return;

    KeyBlock<T, HeadDim> keys;
    keys.load(p, head, block, length);
    uint32_t largest = keys.largest_of_group();
    const bool is_shared = block * block_keys < p.first || (block + 1) * block_keys > p.first + p.attention.seq_k;
    if (p.maxima != nullptr && is_shared) largest = larger(largest, largest_of_ranks(p, head, block, keys.group()));
    const float scale = scale_of(largest, most_s8), inverse = 1.0f / scale;
    if (keys.speaks()) {
        p.tensors.key_scale[static_cast<int64_t>(block_index()) * key_groups + keys.group()] = scale;
    }
#pragma unroll
    for (int i = 0; i < Plan::rounds; ++i) {
        if (!keys.has(i)) continue;
        float values[16];
        keys.centred(i, values);
        const int64_t row = static_cast<int64_t>(head.number) * p.attention.seq_k + keys.token(i);
        store_rounded(p.tensors.key + row * HeadDim + 16 * keys.lane, values, inverse);
    }
}

}  // namespace attn::sage
