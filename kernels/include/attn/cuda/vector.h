// Arithmetic and memory accesses of one thread or warp.
#pragma once
#include "attn/cuda/thread.h"

namespace attn {

// Element types. In registers all are floats; in memory they are `Stored`.
struct Bf16 {};
struct F16 {};
struct F32 {};

template <class T>
struct StoredAs {
    using Type = uint16_t;
};
template <>
struct StoredAs<F32> {
    using Type = float;
};
template <class T>
using Stored = typename StoredAs<T>::Type;

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

// One element, exactly.
template <class T>
ATTN_DEVICE float widen(Stored<T> stored);
template <>
ATTN_DEVICE float widen<Bf16>(uint16_t stored) {
    return __uint_as_float(static_cast<uint32_t>(stored) << 16);
}
template <>
ATTN_DEVICE float widen<F16>(uint16_t stored) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(stored));
    return value;
}
template <>
ATTN_DEVICE float widen<F32>(float stored) {
    return stored;
}

// One element, rounded to nearest, ties to even.
template <class T>
ATTN_DEVICE Stored<T> narrow(float value) {
    return static_cast<uint16_t>(pack2<T>(value, 0.0f));
}
template <>
ATTN_DEVICE float narrow<F32>(float value) {
    return value;
}

// Element types of 8 bits: integers, and floats with 4 bits of exponent and 3 of mantissa, which end at 448.
struct S8 {};
struct E4m3 {};

// Four floats rounded to nearest, ties to even, and to the largest number of the type where they exceed it; `a` in the
// lowest byte. A NaN is 0 as S8.
template <class T>
ATTN_DEVICE uint32_t pack4(float a, float b, float c, float d);

template <>
ATTN_DEVICE uint32_t pack4<S8>(float a, float b, float c, float d) {
    uint32_t packed;
    asm("{\n"
        ".reg .s32 a, b, c, d;\n"
        "cvt.rni.s32.f32 a, %1;\n"
        "cvt.rni.s32.f32 b, %2;\n"
        "cvt.rni.s32.f32 c, %3;\n"
        "cvt.rni.s32.f32 d, %4;\n"
        "cvt.pack.sat.s8.s32.b32 d, d, c, 0;\n"
        "cvt.pack.sat.s8.s32.b32 %0, b, a, d;\n"
        "}\n"
        : "=r"(packed)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return packed;
}
template <>
ATTN_DEVICE uint32_t pack4<E4m3>(float a, float b, float c, float d) {
    uint32_t packed;
    asm("{\n"
        ".reg .b16 low, high;\n"
        "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
        "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
        "mov.b32 %0, {low, high};\n"
        "}\n"
        : "=r"(packed)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return packed;
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

ATTN_DEVICE float float_of_lane(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// How many bits are set.
ATTN_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }

// The number of the lowest bit that is set; there is one.
ATTN_DEVICE int lowest_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

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
