// The online softmax of a thread's two rows, on whole products; flash/softmax.h says what stands where.
#pragma once
#include "../flash/softmax.h"
#include "problem.h"

namespace attn::sage {

// Weights are powers of two up to 2^8: e4m3 has as many places for what is below as it can then, but for one bit, and a
// state, in which the largest weight is 1, is got by moving exponents, without rounding.
constexpr float weight_exponent = 8.0f, largest_weight = 256.0f;

struct Rows {
    // The largest product so far, in powers of two; products are those with keys less their mean.
    float max[2];
    // Sum of the weights that this thread has seen.
    float sum[2];
    // What the output has to be multiplied with before the values of the last block are added.
    float correction[2];
};

ATTN_DEVICE void begin(Rows& rows) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        rows.max[r] = flash::minus_infinity();
        rows.sum[r] = rows.correction[r] = 0.0f;
    }
}

// Takes a block of products into the running softmax. They become weights, 2^(product * factor - max + 8), where `factor` is
// made of the scales of query and keys; their own correction is `correction`.
template <int N>
ATTN_DEVICE void softmax_block(float (&scores)[N], Rows& rows, float (&correction)[2], const float (&factor)[2]) {
    float shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float top = flash::minus_infinity();
#pragma unroll
        for (int i = 2 * r; i < N; i += 4) top = fmaxf(top, fmaxf(scores[i], scores[i + 1]));
        // Threads of a row have scales of their own: only what these make of the products can be compared.
        top = fmaxf(rows.max[r], top * factor[r]);
        top = fmaxf(top, shuffle_xor(top, 1));
        top = fmaxf(top, shuffle_xor(top, 2));
        // A row that has met nothing yet: -inf - -inf would be no number.
        const float relative_to = top == flash::minus_infinity() ? 0.0f : top;
        correction[r] = exp2_approx(rows.max[r] - relative_to);
        rows.max[r] = top;
        rows.sum[r] *= correction[r];
        shift[r] = weight_exponent - relative_to;
    }
#pragma unroll
    for (int i = 0; i < N; i += 4) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float& a = scores[i + 2 * r];
            float& b = scores[i + 2 * r + 1];
            a = exp2_approx(fmaf(a, factor[r], shift[r]));
            b = exp2_approx(fmaf(b, factor[r], shift[r]));
            rows.sum[r] += a + b;
        }
    }
}

// The A operand of the product with the values: four neighbours along k are two of a thread's pairs, since values stand in
// the order of shapes.h.
template <int N>
ATTN_DEVICE void to_operand(const float (&weights)[N], uint32_t (&operand)[N / 4]) {
#pragma unroll
    for (int i = 0; i < N / 8; ++i) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float* w = weights + 8 * i + 2 * r;
            operand[2 * i + r] = pack4<E4m3>(w[0], w[1], w[4], w[5]);
        }
    }
}

// Adds the values of a block. The tensor cores keep fewer bits of a sum of e4m3 than a float has, so each block has
// sums of its own, which are added here.
template <int N>
ATTN_DEVICE void accumulate(float (&output)[N], const float (&products)[N], const float (&correction)[2]) {
#pragma unroll
    for (int i = 0; i < N; ++i) output[i] = fmaf(output[i], correction[i / 2 % 2], products[i]);
}

}  // namespace attn::sage
