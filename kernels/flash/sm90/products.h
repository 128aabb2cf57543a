// The two products of attention on the tensor cores.
//
// Both take tensors from shared memory just as the copy engine has laid them: slabs of columns whose rows are as long
// as its swizzle, in which 8 rows are one unit. A descriptor (PTX ISA, "matrix descriptor") tells where such a matrix
// starts, how far apart its units are, and which swizzle it is under.
#pragma once
#include "tile.h"

namespace attn::flash::sm90 {

// Offsets in a descriptor count 16 bytes.
ATTN_DEVICE uint64_t described(uint32_t bytes) { return (bytes & 0x3FFFF) >> 4; }

// `leading`: from one slab of columns to the next, where the columns are the contiguous axis that the product does not
// sum over. From one unit of 8 rows to the next it is as far as a unit is long.
template <class Tile>
ATTN_DEVICE uint64_t descriptor(SharedAddress start, uint32_t leading) {
    constexpr uint32_t unit_bytes = 8 * Tile::row_bytes;
    constexpr uint64_t swizzle = Tile::row_bytes == 128 ? 1 : 2;
    static_assert(Tile::row_bytes == 128 || Tile::row_bytes == 64, "swizzles of 128 and 64 bytes have these numbers");
    return described(start) | described(leading) << 16 | described(unit_bytes) << 32 | swizzle << 62;
}

// Elements that one instruction sums over, and the bytes that they take in a row.
constexpr int depth = 16, depth_bytes = 2 * depth;

// scores[64][keys] = Q K^T: both with the summed axis, head_dim, contiguous.
template <class Tile>
ATTN_DEVICE void multiply_keys(float (&scores)[Tile::keys / 2], SharedAddress query, SharedAddress key) {
    const uint64_t a = descriptor<Tile>(query, 16), b = descriptor<Tile>(key, 16);
    constexpr int depths_per_slab = Tile::row_bytes / depth_bytes;
    constexpr int query_slab = Tile::rows * Tile::row_bytes, key_slab = Tile::keys * Tile::row_bytes;
    registers_fence(scores);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < Tile::head_dim / depth; ++k) {
        const int slab = k / depths_per_slab, inside = k % depths_per_slab * depth_bytes;
        Wgmma<typename Tile::Element, Tile::keys, 0>::ss(scores, a + described(slab * query_slab + inside),
                                                         b + described(slab * key_slab + inside), k != 0);
    }
    wgmma_commit();
}

// output[64][head_dim] += P V: P from registers, V with head_dim contiguous, which is not the summed axis.
template <class Tile>
ATTN_DEVICE void multiply_values(float (&output)[Tile::head_dim / 2], const uint32_t (&weights)[Tile::keys / 4],
                                 SharedAddress value) {
    const uint64_t b = descriptor<Tile>(value, Tile::keys * Tile::row_bytes);
    registers_fence(output);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < Tile::keys / depth; ++k) {
        Wgmma<typename Tile::Element, Tile::head_dim, 1>::rs(output, weights[4 * k], weights[4 * k + 1],
                                                             weights[4 * k + 2], weights[4 * k + 3],
                                                             b + described(k * depth * Tile::row_bytes), true);
    }
    wgmma_commit();
}

}  // namespace attn::flash::sm90
