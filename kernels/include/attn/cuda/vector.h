// Arithmetic and memory accesses of one thread or warp.
#pragma once
#include "attn/cuda/thread.h"

namespace attn {

// Element types. Sixteen bits in memory, floats in registers.
struct Bf16 {};
struct F16 {};

template <class T>
ATTN_DEVICE uint32_t pack2(float lo, float hi);

// Two floats rounded to nearest, ties to even; `lo` in the lower half.
template <>
ATTN_DEVICE uint32_t pack2<Bf16>(float lo, float hi) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(hi), "f"(lo));
    return pair;
}
template <>
ATTN_DEVICE uint32_t pack2<F16>(float lo, float hi) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(hi), "f"(lo));
    return pair;
}

template <class T>
ATTN_DEVICE void unpack2(uint32_t pair, float& lo, float& hi);

// The contrary of pack2, exact.
template <>
ATTN_DEVICE void unpack2<Bf16>(uint32_t pair, float& lo, float& hi) {
    lo = __uint_as_float(pair << 16);
    hi = __uint_as_float(pair & 0xffff0000u);
}
template <>
ATTN_DEVICE void unpack2<F16>(uint32_t pair, float& lo, float& hi) {
    asm("{\n"
        ".reg .b16 lower, upper;\n"
        "mov.b32 {lower, upper}, %2;\n"
        "cvt.f32.f16 %0, lower;\n"
        "cvt.f32.f16 %1, upper;\n"
        "}"
        : "=f"(lo), "=f"(hi)
        : "r"(pair));
}

// The same value, of which the compiler knows nothing: what follows from it is computed anew, not kept.
ATTN_DEVICE int opaque(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

// 2^x, to about 2 units in the last place; results below the normal range are zero.
ATTN_DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

ATTN_DEVICE float natural_log(float x) { return logf(x); }

// 1 / sqrt(x), to about 2 units in the last place.
ATTN_DEVICE float reciprocal_root(float x) { return rsqrtf(x); }

// The value of the lane whose number differs by `mask`. All lanes of the warp take part.
ATTN_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// The value of another lane. All lanes of the warp take part.
ATTN_DEVICE uint32_t value_of_lane(uint32_t value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// For which lanes it holds, a bit for each. All lanes of the warp take part.
ATTN_DEVICE uint32_t ballot(bool holds) { return __ballot_sync(0xffffffffu, holds); }

ATTN_DEVICE void load_global_16(const void* from, uint32_t (&value)[4]) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value[0]), "=r"(value[1]), "=r"(value[2]), "=r"(value[3])
                 : "l"(from));
}

ATTN_DEVICE void store_global_16(void* to, const uint32_t (&value)[4]) {
    asm volatile("st.global.L1::no_allocate.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value[0]), "r"(value[1]),
                 "r"(value[2]), "r"(value[3])
                 : "memory");
}

// One to eight bytes.
template <class Word>
ATTN_DEVICE void store_global(Word* to, Word value) {
    *to = value;
}

}  // namespace attn
