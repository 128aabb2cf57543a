// What the tensor cores multiply and add up, as floats: these hold all products, and sums of integers up to 2^24.
#pragma once
#include <cstdint>
#include <cstring>

#include "attn_sim/numbers.h"
#include "attn_sim/wgmma.h"
#include "fault.h"

namespace attn::sim {

// The elements in some bytes, `step` floats apart.
inline void widen(Element element, const uint8_t* bytes, int count, float* to, int step) {
    for (int at = 0; at < count; to += step) {
        if (depth_of(element) == 16) {
            uint16_t half;
            std::memcpy(&half, bytes + at, 2);
            *to = element == Element::Bf16 ? bf16_to_float(half) : f16_to_float(half);
            at += 2;
        } else {
            *to = element == Element::S8 ? static_cast<int8_t>(bytes[at]) : e4m3_to_float(bytes[at]);
            ++at;
        }
    }
}

// Sums of integers are kept as the bits of int32_t.
inline void to_floats(float* sums, int count) {
    constexpr int32_t most_exact = 1 << 24;
    for (float* sum = sums; sum < sums + count; ++sum) {
        int32_t whole;
        std::memcpy(&whole, sum, 4);
        if (whole > most_exact || whole < -most_exact) {
            fault("a sum of integers, %d, is beyond 2^24, up to where the simulator is exact", whole);
        }
        *sum = static_cast<float>(whole);
    }
}

inline void to_integers(float* sums, int count) {
    for (float* sum = sums; sum < sums + count; ++sum) {
        const auto whole = static_cast<int32_t>(*sum);
        std::memcpy(sum, &whole, 4);
    }
}

}  // namespace attn::sim
