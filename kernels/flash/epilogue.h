// Where a tile's rows begin and end: the carried state, the output, the log-sum-exp.
#pragma once
#include "softmax.h"

namespace attn::flash {

// 1 / log2(e).
constexpr float ln2 = 0.69314718055994530942f;

// Which row of a tensor a row of a tile is. (Kernels may have places, and ways to count rows, of their own.)
struct RowIndex {
    int batch, seq, head;
};

ATTN_DEVICE RowIndex row_index(const Place& place, int row) { return {place.batch, row, place.head}; }

ATTN_DEVICE float& row_of(const AttnRows& rows, const RowIndex& row) {
    return rows.base[row.batch * rows.batch_stride + row.seq * rows.seq_stride + row.head * rows.head_stride];
}

// The first element of this thread's columns in a row of the state's output.
ATTN_DEVICE float* state_row(const Problem& p, const RowIndex& row) {
    const AttnTensor& t = p.state_output;
    return static_cast<float*>(t.base) + row.batch * t.batch_stride + row.seq * t.seq_stride +
           row.head * t.head_stride + 2 * (thread_index() & 3);
}

struct alignas(8) Pair {
    float first, second;
};

// Starts from nothing.
template <int N>
ATTN_DEVICE void begin_rows(RowPair& rows, float (&output)[N]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        rows.max[r] = rows.shift[r] = minus_infinity();
        rows.sum[r] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) output[i] = 0.0f;
}

// Starts from a state. The state's maximum is kept as `shift`, so that no rounding comes between calls; the largest
// product, which follows from it, need not be exact.
template <class Where, int N>
ATTN_DEVICE void load_state(const Problem& p, const Where& place, int row, RowPair& rows, float (&output)[N]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        if (at >= p.seq_q) continue;
        const RowIndex index = row_index(place, at);
        const float shift = row_of(p.state_max, index);
        if (shift == minus_infinity()) continue;
        rows.shift[r] = shift;
        rows.max[r] = shift / p.scale_log2;
        // Four threads share the row: one of them goes on with the sum.
        if ((thread_index() & 3) == 0) rows.sum[r] = row_of(p.state_sum, index);
        const float* from = state_row(p, index);
#pragma unroll
        for (int i = 0; i < N / 4; ++i) {
            const Pair pair = *reinterpret_cast<const Pair*>(from + 8 * i);
            output[4 * i + 2 * r] = pair.first;
            output[4 * i + 2 * r + 1] = pair.second;
        }
    }
    // Lanes that had no row, or an empty one, are here before the others: without this the compiler takes the warp as
    // apart for good, and computes for each lane what is the same for all.
    warp_sync();
}

template <class Where, int N>
ATTN_DEVICE void store_state(const Problem& p, const Where& place, int row, const RowPair& rows,
                             const float (&output)[N]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        if (at >= p.seq_q) continue;
        const RowIndex index = row_index(place, at);
        if ((thread_index() & 3) == 0) {
            row_of(p.state_max, index) = rows.shift[r];
            row_of(p.state_sum, index) = rows.sum[r];
        }
        float* to = state_row(p, index);
#pragma unroll
        for (int i = 0; i < N / 4; ++i) {
            *reinterpret_cast<Pair*>(to + 8 * i) = Pair{output[4 * i + 2 * r], output[4 * i + 2 * r + 1]};
        }
    }
    warp_sync();
}

// Natural log-sum-exp; -inf for a row that has attended nothing.
template <class Where>
ATTN_DEVICE void store_lse(const Problem& p, const Where& place, int row, const RowPair& rows) {
    if (p.lse.base == nullptr || (thread_index() & 3) != 0) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        if (at >= p.seq_q) continue;
        const RowIndex index = row_index(place, at);
        const bool nothing = rows.sum[r] == 0.0f;
        row_of(p.lse, index) = nothing ? minus_infinity() : fmaf(rows.shift[r], ln2, natural_log(rows.sum[r]));
    }
}

}  // namespace attn::flash
