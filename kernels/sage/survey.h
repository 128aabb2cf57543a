// What has to be known of all tokens before any can be rounded: the mean key, and each channel's largest value.
//
// survey: one block of threads for each piece of 256 tokens of each head. A thread has 8 channels of every so manieth
// token; threads of a warp, and then warps, add up what they have in a fixed order. So the sums do not depend on which
// runs first.
// settle: one block for each head adds up the pieces, or what the ranks that share a sequence came to, a thread for each
// channel and for each of the two.
// Tokens beyond a key length are not read; values are not read at all if nobody wants them in 8 bits.
#pragma once
#include "rounding.h"

namespace attn::sage {

template <int HeadDim>
struct Survey {
    static constexpr int lanes = HeadDim / 8, rows = quantise_threads / lanes, warps = quantise_threads / 32;
    // Tokens of a thread whose loads are under way together.
    static constexpr int together = 4;
    static constexpr int warp_bytes = 2 * HeadDim * 4, shared_bytes = warps * warp_bytes + 16;
};

template <class T, int HeadDim>
ATTN_KERNEL(quantise_threads, 3) survey(ATTN_GRID_CONSTANT const Shard p) {
    using Plan = Survey<HeadDim>;
    const AttnAttention& call = p.attention;
    const int pieces = pieces_of(call.seq_k), piece = block_index() % pieces;
    const KeyHead head = KeyHead::of(call, block_index() / pieces);
    const int first = piece * piece_keys, length = p.length(head.batch);
    if (first >= length) return;

    const int lane = thread_index() % Plan::lanes, row = thread_index() / Plan::lanes;
    const bool with_values = p.with_values;
    float sum[8] = {};
    uint32_t largest[8] = {};
#pragma unroll 1
    for (int done = 0; done < piece_keys; done += Plan::together * Plan::rows) {
        Elements<8> key[Plan::together], value[Plan::together];
#pragma unroll
        for (int i = 0; i < Plan::together; ++i) {
            const int token = readable(first + done + row + i * Plan::rows, length);
            key[i].load(row_of(call.key, head.batch, token, head.head) + 8 * lane);
            if (with_values) value[i].load(row_of(call.value, head.batch, token, head.head) + 8 * lane);
        }
#pragma unroll
        for (int i = 0; i < Plan::together; ++i) {
            const bool counts = first + done + row + i * Plan::rows < length;
            float keys[8], values[8];
            key[i].keep_if(counts);
            value[i].keep_if(counts && with_values);
            key[i].template widen<T>(keys);
            value[i].template widen<T>(values);
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                sum[e] += keys[e];
                largest[e] = larger(largest[e], magnitude(values[e]));
            }
        }
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
#pragma unroll
        for (int apart = Plan::lanes; apart < 32; apart *= 2) {
            sum[e] += shuffle_xor(sum[e], apart);
            largest[e] = larger(largest[e], value_of_lane(largest[e], (thread_index() & 31) ^ apart));
        }
    }

    // [warp][sums, largest][head_dim].
    const SharedAddress shared = (shared_base() + 15) & ~SharedAddress(15);
    if ((thread_index() & 31) < Plan::lanes) {
        const SharedAddress to = shared + thread_index() / 32 * Plan::warp_bytes + 32 * lane;
        store_shared_16(to, bits_of(sum[0]), bits_of(sum[1]), bits_of(sum[2]), bits_of(sum[3]));
        store_shared_16(to + 16, bits_of(sum[4]), bits_of(sum[5]), bits_of(sum[6]), bits_of(sum[7]));
        const SharedAddress beside = to + HeadDim * 4;
        store_shared_16(beside, largest[0], largest[1], largest[2], largest[3]);
        store_shared_16(beside + 16, largest[4], largest[5], largest[6], largest[7]);
    }
    block_sync();
    // A thread has four channels of one of the two.
    if (thread_index() >= 2 * HeadDim / 4) return;
    const bool sums = thread_index() < HeadDim / 4;
    uint32_t total[4];
    load_shared_16(shared + 16 * thread_index(), total);
#pragma unroll
    for (int warp = 1; warp < Plan::warps; ++warp) {
        uint32_t words[4];
        load_shared_16(shared + warp * Plan::warp_bytes + 16 * thread_index(), words);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            total[e] = sums ? bits_of(float_of(total[e]) + float_of(words[e])) : larger(total[e], words[e]);
        }
    }
    store_global_16(p.tensors.partial + static_cast<int64_t>(block_index()) * 2 * HeadDim + 4 * thread_index(), total);
}

// What is added up: [heads][count][2][head_dim].
struct Entries {
    const float* from;
    int32_t count;
    // Pieces of this rank's tokens, as many as there are tokens for; else what each rank came to.
    bool are_pieces;
    // Whether these are all there are: then they become means and scales, else sums.
    bool are_all;
};

template <int HeadDim>
ATTN_KERNEL(2 * HeadDim, 1) settle(ATTN_GRID_CONSTANT const Shard p, ATTN_GRID_CONSTANT const Entries entries) {
    const KeyHead head = KeyHead::of(p.attention, block_index());
    const int used = entries.are_pieces ? pieces_of(p.length(head.batch)) : entries.count;
    const int64_t width = 2 * HeadDim;
    const float* from = entries.from + head.number * entries.count * width + thread_index();
    const int64_t at = static_cast<int64_t>(head.number) * HeadDim + thread_index() % HeadDim;
    if (thread_index() < HeadDim) {
        float sum = 0.0f;
        for (int entry = 0; entry < used; ++entry) sum += from[entry * width];
        const int length = p.whole_length(head.batch);
        if (!entries.are_all) {
            p.sums[head.number * width + thread_index()] = sum;
        } else {
            p.tensors.key_mean[at] = length > 0 ? sum / static_cast<float>(length) : 0.0f;
        }
    } else if (p.with_values) {
        uint32_t largest = 0;
        for (int entry = 0; entry < used; ++entry) largest = larger(largest, bits_of(from[entry * width]));
        if (!entries.are_all) {
            p.sums[head.number * width + thread_index()] = float_of(largest);
        } else {
            p.tensors.value_scale[at] = scale_of(largest, most_e4m3);
        }
    }
}

}  // namespace attn::sage
