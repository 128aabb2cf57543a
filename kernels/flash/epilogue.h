// Where a tile's rows begin and end: the carried state, the output, the log-sum-exp.
#pragma once
#include "softmax.h"

namespace attn::flash {

// 1 / log2(e).
constexpr float ln2 = 0.69314718055994530942f;

// The query head of a row of a tile.
template <class Tile>
ATTN_DEVICE int head_of(const Problem& p, const Place& place, int row) {
    return Tile::packed ? place.head * p.group + row - query_of<Tile>(p, row) * p.group : place.head;
}

template <class Tile>
ATTN_DEVICE float& row_of(const AttnRows& rows, const Problem& p, const Place& place, int row) {
    return rows.base[place.batch * rows.batch_stride + query_of<Tile>(p, row) * rows.seq_stride +
                     head_of<Tile>(p, place, row) * rows.head_stride];
}

// The first element of this thread's columns in a row of the state's output.
template <class Tile>
ATTN_DEVICE float* state_row(const Problem& p, const Place& place, int row) {
    const AttnTensor& t = p.state_output;
    return static_cast<float*>(t.base) + place.batch * t.batch_stride + query_of<Tile>(p, row) * t.seq_stride +
           head_of<Tile>(p, place, row) * t.head_stride + 2 * (thread_index() & 3);
}

struct alignas(8) Pair {
    float first, second;
};

// Starts from nothing.
template <int N>
ATTN_DEVICE void begin_rows(RowPair& rows, float (&output)[N]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        rows.shift[r] = minus_infinity();
        rows.sum[r] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) output[i] = 0.0f;
}

// Starts from a state, whose maximum is the rows' shift: no rounding comes between calls.
template <class Tile, int N>
ATTN_DEVICE void load_state(const Problem& p, const Place& place, int row, RowPair& rows, float (&output)[N]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        if (at >= p.rows) continue;
        const float shift = row_of<Tile>(p.state_max, p, place, at);
        const float sum = row_of<Tile>(p.state_sum, p, place, at);
        // Products that are no number leave a maximum of -inf too, and a sum that is none.
        if (shift == minus_infinity() && sum == 0.0f) continue;
        rows.shift[r] = shift;
        // Four threads share the row: one of them goes on with the sum.
        if ((thread_index() & 3) == 0) rows.sum[r] = sum;
        const float* from = state_row<Tile>(p, place, at);
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

template <class Tile, int N>
ATTN_DEVICE void store_state(const Problem& p, const Place& place, int row, const RowPair& rows,
                             const float (&output)[N]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        if (at >= p.rows) continue;
        if ((thread_index() & 3) == 0) {
            row_of<Tile>(p.state_max, p, place, at) = rows.shift[r];
            row_of<Tile>(p.state_sum, p, place, at) = rows.sum[r];
        }
        float* to = state_row<Tile>(p, place, at);
#pragma unroll
        for (int i = 0; i < N / 4; ++i) {
            *reinterpret_cast<Pair*>(to + 8 * i) = Pair{output[4 * i + 2 * r], output[4 * i + 2 * r + 1]};
        }
    }
    warp_sync();
}

// Natural log-sum-exp; -inf for a row that has attended nothing.
template <class Tile>
ATTN_DEVICE void store_lse(const Problem& p, const Place& place, int row, const RowPair& rows) {
    if (p.lse.base == nullptr || (thread_index() & 3) != 0) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        if (at >= p.rows) continue;
        const bool nothing = rows.sum[r] == 0.0f;
        row_of<Tile>(p.lse, p, place, at) =
            nothing ? minus_infinity() : fmaf(rows.shift[r], ln2, natural_log(rows.sum[r]));
    }
}

}  // namespace attn::flash
