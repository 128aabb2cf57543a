// Where a tile's rows end: the output, the log-sum-exp, or the carried state.
//
// Rows know products with keys less their mean. What is told to others is relative to the products themselves: a query's
// product with the mean is added to its maximum. So each call may take a mean of its own.
#pragma once
#include "../flash/epilogue.h"
#include "softmax.h"

namespace attn::sage {

// Adds up what the four threads of each row have summed.
ATTN_DEVICE void join_sums(Rows& rows) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        rows.sum[r] += shuffle_xor(rows.sum[r], 1);
        rows.sum[r] += shuffle_xor(rows.sum[r], 2);
    }
}

// Something that has a float for each query: [batch, heads, seq_q].
ATTN_DEVICE float of_query(const flash::Problem& p, const float* queries, const flash::Place& place, int row) {
    return queries[(static_cast<int64_t>(place.batch) * p.heads + place.head) * p.seq_q + row];
}

// What each of this thread's columns is multiplied with: two neighbours of each eight.
ATTN_DEVICE const float* value_scales(const Problem& p, const flash::Place& place, int head_dim) {
    const int64_t head = static_cast<int64_t>(place.batch) * p.kv_heads + place.head / p.tiles.heads_per_kv;
    return p.value_scale + head * head_dim + 2 * (thread_index() & 3);
}

// `Scaled`: values are in 8 bits.
template <bool Scaled>
ATTN_DEVICE flash::Pair value_scale(const float* scales, int i) {
    if constexpr (!Scaled) return {1.0f, 1.0f};
    return *reinterpret_cast<const flash::Pair*>(scales + 8 * i);
}

// The largest product of a row, true.
ATTN_DEVICE float true_max(const Problem& p, const flash::Place& place, int row, float max) {
    return max + of_query(p.tiles, p.query_mean, place, row);
}

ATTN_DEVICE float* row_of(const AttnRows& rows, const flash::Place& place, int row) {
    return rows.base + place.batch * rows.batch_stride + row * rows.seq_stride + place.head * rows.head_stride;
}

// Natural log-sum-exp; -inf for a row that has attended nothing.
ATTN_DEVICE void store_lse(const Problem& p, const flash::Place& place, int row, const Rows& rows) {
    if (p.tiles.lse.base == nullptr || (thread_index() & 3) != 0) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        if (at >= p.tiles.seq_q) continue;
        const bool nothing = rows.sum[r] == 0.0f;
        const float max = true_max(p, place, at, rows.max[r]);
        *row_of(p.tiles.lse, place, at) =
            nothing ? flash::minus_infinity() : fmaf(max, flash::ln2, natural_log(rows.sum[r] / largest_weight));
    }
}

// Divides and puts the values' scales back. A row that has attended nothing is zero whatever these are.
template <bool Scaled, int N>
ATTN_DEVICE void finish_output(const Problem& p, const flash::Place& place, const Rows& rows, float (&output)[N]) {
    const float* scales = Scaled ? value_scales(p, place, 2 * N) : nullptr;
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) inverse[r] = 1.0f / rows.sum[r];
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
        const flash::Pair scale = value_scale<Scaled>(scales, i);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const bool nothing = rows.sum[r] == 0.0f;
            float* o = output + 4 * i + 2 * r;
            o[0] = nothing ? 0.0f : o[0] * inverse[r] * scale.first;
            o[1] = nothing ? 0.0f : o[1] * inverse[r] * scale.second;
        }
    }
}

// The first element of this thread's columns in a row of the state's output.
ATTN_DEVICE float* state_row(const AttnTensor& output, const flash::Place& place, int row) {
    return static_cast<float*>(output.base) + place.batch * output.batch_stride + row * output.seq_stride +
           place.head * output.head_stride + 2 * (thread_index() & 3);
}

// Adds what this call has summed to the state: both become relative to the larger maximum. A row that has attended
// nothing here leaves its state alone.
template <bool Scaled, int N>
ATTN_DEVICE void join_state(const Problem& p, const flash::Place& place, int row, const Rows& rows,
                            const float (&output)[N]) {
    const flash::Problem& tiles = p.tiles;
    float before[2] = {};
    bool is_first[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (row + 8 * r >= tiles.seq_q) continue;
        before[r] = *row_of(tiles.state_max, place, row + 8 * r);
        // Products that are no number leave a maximum of -inf too, and a sum that is none.
        is_first[r] = before[r] == flash::minus_infinity() && *row_of(tiles.state_sum, place, row + 8 * r) == 0.0f;
    }
    // All four threads of a row have read what it had before one of them writes it.
    warp_sync();
    const float* scales = Scaled ? value_scales(p, place, 2 * N) : nullptr;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        if (at >= tiles.seq_q || rows.sum[r] == 0.0f) continue;
        const float here = true_max(p, place, at, rows.max[r]);
        const bool first = is_first[r];
        const float max = first ? here : fmaxf(before[r], here);
        const float keep = first ? 0.0f : exp2_approx(before[r] - max);
        const float add = exp2_approx(here - max) / largest_weight;
        float* to = state_row(tiles.state_output, place, at);
#pragma unroll
        for (int i = 0; i < N / 4; ++i) {
            const flash::Pair scale = value_scale<Scaled>(scales, i);
            flash::Pair* pair = reinterpret_cast<flash::Pair*>(to + 8 * i);
            // What stands in the output of a row that has attended nothing is not read.
            flash::Pair sum = {0.0f, 0.0f};
            if (!first) sum = {pair->first * keep, pair->second * keep};
            *pair = {fmaf(output[4 * i + 2 * r] * scale.first, add, sum.first),
                     fmaf(output[4 * i + 2 * r + 1] * scale.second, add, sum.second)};
        }
        if ((thread_index() & 3) == 0) {
            float* sum = row_of(tiles.state_sum, place, at);
            *sum = fmaf(rows.sum[r], add, first ? 0.0f : *sum * keep);
            *row_of(tiles.state_max, place, at) = max;
        }
    }
    warp_sync();
}

}  // namespace attn::sage
