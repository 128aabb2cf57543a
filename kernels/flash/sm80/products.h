// The two products of attention on a warp's tensor cores.
#pragma once
#include "tile.h"

namespace attn::flash::sm80 {

// Elements that one instruction sums over.
constexpr int depth = 16;

// scores[16 each][keys] = Q K^T. Operands are rows of queries, and of keys, along head_dim: of two matrices of keys the
// first two are elements 0 to 7 and 8 to 15 of eight keys, the others of the next eight.
template <class Tile>
ATTN_DEVICE void multiply_keys(float (&scores)[Tile::strips][Tile::keys / 2], const LaneRow<Tile>& query,
                               const LaneRow<Tile>& key) {
#pragma unroll
    for (int m = 0; m < Tile::strips; ++m) {
#pragma unroll
        for (int i = 0; i < Tile::keys / 2; ++i) scores[m][i] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < Tile::head_dim / depth; ++k) {
        SharedAddress queries[Tile::strips], keys[Tile::keys / 16];
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) queries[m] = query.at(2 * k, m);
#pragma unroll
        for (int n = 0; n < Tile::keys / 16; ++n) keys[n] = key.at(2 * k, n);
        uint32_t a[Tile::strips][4];
        load_matrices(queries, a);
        mma_shared<typename Tile::Element, false>(scores, a, keys);
    }
}

// output[16 each][head_dim] += P V. Rows of values are along head_dim, which is not the summed axis: they are transposed
// on their way into registers.
template <class Tile>
ATTN_DEVICE void multiply_values(float (&output)[Tile::strips][Tile::head_dim / 2],
                                 const uint32_t (&weights)[Tile::strips][Tile::keys / 4], const LaneRow<Tile>& value) {
#pragma unroll
    for (int k = 0; k < Tile::keys / depth; ++k) {
        uint32_t a[Tile::strips][4];
#pragma unroll
        for (int m = 0; m < Tile::strips; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[m][i] = weights[m][4 * k + i];
        }
        SharedAddress values[Tile::head_dim / 16];
#pragma unroll
        for (int n = 0; n < Tile::head_dim / 16; ++n) values[n] = value.at(2 * n, k);
        mma_shared<typename Tile::Element, true>(output, a, values);
    }
}

}  // namespace attn::flash::sm80
