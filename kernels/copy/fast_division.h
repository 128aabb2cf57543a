// Division by a number that is known before the launch: one multiplication and one shift.
#pragma once
#include <cstdint>

#include "attn/device.h"

namespace attn {

// Numbers divided, and divisors, stay below this.
constexpr uint64_t fast_division_limit = uint64_t(1) << 31;

// With l = ceil(log2 divisor) and multiplier = ceil(2^(31+l) / divisor), which fits 32 bits, the quotient of any number
// below 2^31 is number * multiplier >> (31 + l) (Granlund and Montgomery, "Division by invariant integers using
// multiplication", theorem 4.2).
struct FastDivision {
    uint32_t divisor, multiplier, shift;
};

// ceil(log2 number), for numbers from 1 to 2^31.
ATTN_HOST_DEVICE uint32_t log2_above(uint32_t number) {
    uint32_t log2 = 0;
    while ((uint64_t(1) << log2) < number) ++log2;
    return log2;
}

ATTN_HOST_DEVICE FastDivision fast_division(uint32_t divisor) {
    const uint32_t shift = log2_above(divisor);
    const uint64_t scaled = uint64_t(1) << (31 + shift);
    return {divisor, uint32_t((scaled + divisor - 1) / divisor), shift};
}

// The doubled number makes the product's upper word the one that is wanted, also for a divisor of 1.
ATTN_DEVICE uint32_t quotient(uint32_t number, const FastDivision& by) {
    return uint32_t(uint64_t(number << 1) * by.multiplier >> 32) >> by.shift;
}

}  // namespace attn
