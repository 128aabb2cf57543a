// What mma instructions of a warp say, apart from their registers.
#pragma once
#include <cstdint>

#include "wgmma.h"

namespace attn::sim {

// Two instructions m16n8k16 for each strip of 16 rows: 16 x 16 sums of products of 16 elements.
struct Strips {
    Element element;
    int count;
};

// Of the current thread: eight accumulators of each strip, four words of A of each, four words of B.
void multiply_strips(const Strips& strips, float* const* sums, const uint32_t (*a)[4], const uint32_t (&b)[4]);

}  // namespace attn::sim
