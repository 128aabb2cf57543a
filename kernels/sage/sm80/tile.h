// The numbers of the kernel for every GPU since Ampere. It multiplies queries and keys in 8 bits, and weights and values in
// the 16 that they have: cards before compute capability 8.9 know no floats of 8 bits. So it is flash's kernel but for the
// first product.
#pragma once
#include "../../flash/sm80/tile.h"
#include "../problem.h"

namespace attn::sage::sm80 {

// Queries and keys are described as if two numbers of 8 bits were an element of 16.
struct Problem : sage::Problem, flash::sm80::Tensors {};

// Rows of queries or keys of 8 bits, as flash's loader sees them.
template <int HeadDim, int Threads, int Strips, int Rows>
struct Bytes {
    static constexpr int strips = Strips, keys = Rows, rows = Rows, threads = Threads;
    static constexpr int row_bytes = HeadDim, pieces = row_bytes / 16;
    static constexpr int query_bytes = Rows * row_bytes, block_bytes = query_bytes;
    static constexpr bool packed = false;
};

// As flash's, whose numbers are those of the values.
template <class Element, int HeadDim, int Warps, int Strips, int Keys>
struct Tile : flash::sm80::Tile<Element, HeadDim, Warps, Strips, Keys> {
    using Base = flash::sm80::Tile<Element, HeadDim, Warps, Strips, Keys>;
    using QueryRows = Bytes<HeadDim, Base::threads, Strips, Base::rows>;
    using KeyRows = Bytes<HeadDim, Base::threads, Strips, Keys>;
    static constexpr bool packed = false;
    // (scripts/lib/warp_gates.py computes the same.)
    static constexpr int shared_bytes = Base::alignment + QueryRows::query_bytes + KeyRows::block_bytes + Base::block_bytes;
    static_assert(127 * 127 * HeadDim < 1 << 22, "products are turned into floats by an addition");
    static_assert(block_keys % Keys == 0, "a block's keys have their scales together");
};

}  // namespace attn::sage::sm80
