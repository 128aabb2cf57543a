// The two products on the tensor cores: whole numbers, then e4m3. Both operands of 8 bits have the summed axis contiguous:
// queries and keys as they are, values transposed.
#pragma once
#include "../../flash/sm90/products.h"
#include "tile.h"

namespace attn::sage::sm90 {

// Elements that one instruction sums over, which are as many bytes.
constexpr int depth = 32;

// Of a matrix whose rows are lines of a swizzle of `Line` bytes; eight rows are a unit.
template <int Line>
ATTN_DEVICE uint64_t descriptor(SharedAddress start) {
    static_assert(Line == 64 || Line == 128, "the swizzles that rows of queries, keys and values have");
    constexpr uint64_t swizzle = Line == 128 ? 1ull << 62 : 2ull << 62;
    return flash::sm90::described(start) | flash::sm90::described(16) << 16 | flash::sm90::described(8 * Line) << 32 |
           swizzle;
}

// scores[64][keys] = Q K^T.
template <class Tile>
ATTN_DEVICE void multiply_keys(int32_t (&scores)[Tile::keys / 2], SharedAddress query, SharedAddress key) {
    const uint64_t a = descriptor<Tile::row_bytes>(query), b = descriptor<Tile::row_bytes>(key);
    registers_fence(scores);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < Tile::head_dim / depth; ++k) {
        Wgmma8<S8, Tile::keys>::ss(scores, a + flash::sm90::described(k * depth), b + flash::sm90::described(k * depth),
                                   k != 0);
    }
    wgmma_commit();
}

// products[64][head_dim] = P V: P from registers.
template <class Tile>
ATTN_DEVICE void multiply_values(float (&products)[Tile::head_dim / 2], const uint32_t (&weights)[Tile::keys / 8],
                                 SharedAddress value) {
    const uint64_t b = descriptor<Tile::channel_bytes>(value);
    registers_fence(products);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < Tile::keys / depth; ++k) {
        Wgmma8<E4m3, Tile::head_dim>::rs(products, weights[4 * k], weights[4 * k + 1], weights[4 * k + 2],
                                         weights[4 * k + 3], b + flash::sm90::described(k * depth), k != 0);
    }
    wgmma_commit();
}

}  // namespace attn::sage::sm90
