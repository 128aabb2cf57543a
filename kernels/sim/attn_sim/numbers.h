// bf16, f16 and e4m3 as their bits, converted exactly: to the nearest, ties to even, as the hardware does.
#pragma once
#include <cstdint>
#include <cstring>

namespace attn::sim {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float bf16_to_float(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

inline uint16_t bf16_from_float(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float f16_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t rest = half & 0x7fff;
    if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | rest << 13);
    // The exponents differ by 112; the multiplication is exact, subnormal numbers included.
    return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}

inline uint16_t f16_from_float(float value) {
    const uint32_t bits = bits_of(value);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return 0x7fff;
    // 65520 and above round to infinity.
    if (rest >= 0x477ff000) return sign | 0x7c00;
    // Below the smallest normal number: adding a half puts the result's units in the last place.
    if (rest < 0x38800000) return static_cast<uint16_t>(sign | (bits_of(float_of(rest) + 0.5f) - bits_of(0.5f)));
    return static_cast<uint16_t>(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13));
}

// One sign, four bits of exponent, three of mantissa; no infinity, and one NaN of each sign.
inline float e4m3_to_float(uint8_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24;
    const uint32_t rest = bits & 0x7f;
    if (rest == 0x7f) return float_of(sign | 0x7fc00000);
    // The exponents differ by 120; the multiplication is exact, subnormal numbers included.
    return float_of(sign | bits_of(float_of(rest << 20) * 0x1p120f));
}

// Whatever exceeds the largest number, 448, becomes that.
inline uint8_t e4m3_from_float(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t sign = bits >> 24 & 0x80, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return 0x7f;
    if (rest >= bits_of(448.0f)) return static_cast<uint8_t>(sign | 0x7e);
    // Below the smallest normal number: adding 2^14 puts the result's units in the last place.
    if (rest < bits_of(0x1p-6f)) {
        return static_cast<uint8_t>(sign | (bits_of(float_of(rest) + 0x1p14f) - bits_of(0x1p14f)));
    }
    return static_cast<uint8_t>(sign | ((rest - (120u << 23) + 0x7ffff + (rest >> 20 & 1)) >> 20));
}

// To the nearest, within -128 to 127; a NaN becomes 0.
inline uint8_t s8_from_float(float value) {
    if (value != value) return 0;
    const float within = value < -128.0f ? -128.0f : value > 127.0f ? 127.0f : value;
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the lowest bits.
    return static_cast<uint8_t>(bits_of(within + 12582912.0f));
}

}  // namespace attn::sim
