// The online softmax of a thread's two rows (Milakov and Gimelshein 2018; Dao et al. 2022, algorithm 1), in powers of
// two, on the accumulators of the tensor cores.
//
// An accumulator of 64 x N holds, in thread t of the warpgroup, the elements of rows r and r + 8, where
// r = 16 (t / 32) + (t % 32) / 4, and of columns 8 j + 2 (t % 4) and the next, for each j: d[4 j], d[4 j + 1] in row r,
// d[4 j + 2], d[4 j + 3] in row r + 8. Four neighbouring threads share a row.
#pragma once
#include "problem.h"

namespace attn::flash {

ATTN_DEVICE float minus_infinity() { return -INFINITY; }

struct RowPair {
    // Largest product so far, times scale * log2(e): what exponents are relative to.
    float shift[2];
    // Sum of the exponentials that this thread has seen.
    float sum[2];
};

// Takes a block of products into the running softmax. They become 2^(product * scale_log2 - shift); what was summed up
// before has to be multiplied by `correction`.
template <int N>
ATTN_DEVICE void softmax_block(float (&scores)[N], RowPair& rows, float (&correction)[2], float scale_log2) {
    float shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float top = minus_infinity();
#pragma unroll
        for (int i = 2 * r; i < N; i += 4) top = fmaxf(top, fmaxf(scores[i], scores[i + 1]));
        top = fmaxf(top, shuffle_xor(top, 1));
        top = fmaxf(top, shuffle_xor(top, 2));
        const float relative_to = fmaxf(rows.shift[r], top * scale_log2);
        // A row that has met nothing yet: -inf - -inf would be no number.
        shift[r] = relative_to == minus_infinity() ? 0.0f : relative_to;
        correction[r] = exp2_approx(rows.shift[r] - shift[r]);
        rows.shift[r] = relative_to;
        rows.sum[r] *= correction[r];
    }
#pragma unroll
    for (int i = 0; i < N; i += 4) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float& a = scores[i + 2 * r];
            float& b = scores[i + 2 * r + 1];
            a = exp2_approx(fmaf(a, scale_log2, -shift[r]));
            b = exp2_approx(fmaf(b, scale_log2, -shift[r]));
            rows.sum[r] += a + b;
        }
    }
}

// Products of keys outside the band or beyond the key length become -inf. `row` is the thread's first row.
template <class Tile, int N>
ATTN_DEVICE void mask_block(float (&scores)[N], const Problem& p, int length, int row, int block) {
    const int column = block * Tile::keys + 2 * (thread_index() & 3);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        // Columns of this thread are counted from `column`.
        int end = length - column, start = 0;
        if constexpr (Tile::banded) {
            const int query = query_of<Tile>(p, row + 8 * r);
            const int above = query + p.mask.band_hi + 1 - column;
            end = above < end ? above : end;
            start = query + p.mask.band_lo - column;
        }
#pragma unroll
        for (int i = 0; i < N / 4; ++i) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int at = 8 * i + e;
                bool outside = at >= end;
                if constexpr (Tile::banded) outside = outside || at < start;
                if (outside) scores[4 * i + 2 * r + e] = minus_infinity();
            }
        }
    }
}

// The A operand of the next product: an accumulator of 64 x N, taken pair by pair, is just what the tensor cores want.
template <class Element, int N>
ATTN_DEVICE void to_operand(const float (&scores)[N], uint32_t (&operand)[N / 2]) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) operand[i] = pack2<Element>(scores[2 * i], scores[2 * i + 1]);
}

template <int N>
ATTN_DEVICE void rescale(float (&output)[N], const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        output[i] *= factor[0];
        output[i + 1] *= factor[0];
        output[i + 2] *= factor[1];
        output[i + 3] *= factor[1];
    }
}

// Adds up what the four threads of each row have summed.
ATTN_DEVICE void join_sums(RowPair& rows) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        rows.sum[r] += shuffle_xor(rows.sum[r], 1);
        rows.sum[r] += shuffle_xor(rows.sum[r], 2);
    }
}

}  // namespace attn::flash
