// What the kernels that round to 8 bits have in common.
#pragma once
#include <cmath>
#include <cstring>

#include "shard.h"

namespace attn::sage {

constexpr int quantise_threads = 256;

ATTN_DEVICE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

ATTN_DEVICE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Magnitudes are compared as bits: so a NaN is the largest, and is not lost.
ATTN_DEVICE uint32_t magnitude(float value) { return bits_of(value) & 0x7fffffffu; }
ATTN_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// The largest magnitude among lanes that differ in the bits of `Lanes - 1`.
template <int Lanes>
ATTN_DEVICE uint32_t largest_of(uint32_t bits) {
#pragma unroll
    for (int apart = 1; apart < Lanes; apart *= 2) {
        bits = larger(bits, value_of_lane(bits, (thread_index() & 31) ^ apart));
    }
    return bits;
}

// The scale under which the largest magnitude becomes `most`. Not zero, and its inverse finite, also if all are zero:
// magnitudes below 2^-50 count as that. So is a product of two scales, with which scores of -inf are multiplied.
ATTN_DEVICE float scale_of(uint32_t largest, float most) {
    constexpr uint32_t least = (127u - 50u) << 23;
    return float_of(larger(largest, least)) / most;
}

// The two elements of a word.
template <class T>
ATTN_DEVICE void widen_pair(uint32_t pair, float& low, float& high) {
    low = attn::widen<T>(static_cast<uint16_t>(pair));
    high = attn::widen<T>(static_cast<uint16_t>(pair >> 16));
}

// Elements of 16 bits as they stand in memory, from a multiple of 16 bytes on.
template <int Count>
struct Elements {
    uint32_t words[Count / 2];

    ATTN_DEVICE void load(const void* from) {
#pragma unroll
        for (int i = 0; i < Count / 8; ++i) {
            uint32_t(&piece)[4] = *reinterpret_cast<uint32_t(*)[4]>(words + 4 * i);
            load_global_16(static_cast<const uint8_t*>(from) + 16 * i, piece);
        }
    }

    // If not, they are zeros.
    ATTN_DEVICE void keep_if(bool holds) {
#pragma unroll
        for (int i = 0; i < Count / 2; ++i) words[i] = holds ? words[i] : 0;
    }

    template <class T>
    ATTN_DEVICE void widen(float (&values)[Count]) const {
#pragma unroll
        for (int i = 0; i < Count / 2; ++i) widen_pair<T>(words[i], values[2 * i], values[2 * i + 1]);
    }
};

// Floats from a multiple of 16 bytes on.
template <int Count>
ATTN_DEVICE void load_floats(const float* from, float (&values)[Count]) {
#pragma unroll
    for (int i = 0; i < Count / 4; ++i) {
        uint32_t words[4];
        load_global_16(from + 4 * i, words);
#pragma unroll
        for (int j = 0; j < 4; ++j) values[4 * i + j] = float_of(words[j]);
    }
}

// Sixteen numbers times `inverse`, as 16 bytes.
ATTN_DEVICE void store_rounded(int8_t* to, const float (&values)[16], float inverse) {
    uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float* v = values + 4 * i;
        packed[i] = pack4<S8>(v[0] * inverse, v[1] * inverse, v[2] * inverse, v[3] * inverse);
    }
    store_global_16(to, packed);
}

// A row of a tensor of 16-bit elements.
ATTN_DEVICE const uint16_t* row_of(const AttnTensor& tensor, int batch, int row, int head) {
    return static_cast<const uint16_t*>(tensor.base) + batch * tensor.batch_stride + row * tensor.seq_stride +
           head * tensor.head_stride;
}

// A token that can be read: one beyond the length is the last, one before the first is that. So loads need no branch between
// them, and many are under way at a time.
ATTN_DEVICE int readable(int token, int length) { return token < 0 ? 0 : token < length ? token : length - 1; }

// One batch row of one head of keys.
struct KeyHead {
    int batch, head, number;

    ATTN_DEVICE static KeyHead of(const AttnAttention& call, int number) {
        return {number / call.kv_heads, number % call.kv_heads, number};
    }
};

}  // namespace attn::sage
