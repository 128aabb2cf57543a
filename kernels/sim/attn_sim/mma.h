// What mma instructions of a warp say, apart from their registers.
#pragma once
#include <cstdint>

#include "wgmma.h"

namespace attn::sim {

// Two instructions m16n8k16, or m16n8k32 of bytes, for each strip of 16 rows: 16 x 16 sums of products of 16 or 32 elements.
// Those of S8 are the bits of int32_t.
struct Strips {
    Element element;
    int count;
};

// As many columns, a multiple of 16, of which B is in shared memory.
struct SharedColumns {
    int count;
    bool transposed;
};

// Of the current thread: rows of matrices that the warp loads, and what it gets of them.
void load_matrices(int count, const uint32_t* rows, uint32_t (*matrices)[4]);

// Of the current thread: accumulators of each strip, four words of A of each, a row for every 16 columns.
void multiply_shared(const Strips& strips, const SharedColumns& columns, float* const* sums, const uint32_t (*a)[4],
                     const uint32_t* rows);

// Of the current thread: eight accumulators of each strip, four words of A of each, four words of B.
void multiply_strips(const Strips& strips, float* const* sums, const uint32_t (*a)[4], const uint32_t (&b)[4]);

}  // namespace attn::sim
