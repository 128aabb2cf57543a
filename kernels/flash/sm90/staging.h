// The way of a tile's rows out through shared memory.
#pragma once
#include "../epilogue.h"
#include "tile.h"

namespace attn::flash::sm90 {

// Divides, rounds and lays a warpgroup's 64 rows into shared memory, as the copy engine wants to find them.
// `output_base` is where the tile's first row of the first slab goes.
template <class Tile, int N>
ATTN_DEVICE void stage_output(SharedAddress output_base, int group, const RowPair& rows, float (&output)[N]) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) factor[r] = rows.sum[r] == 0.0f ? 0.0f : 1.0f / rows.sum[r];
    rescale(output, factor);
    const int lane = thread_index() & 31, warp = thread_index() >> 5 & 3;
    // Pieces of 16 bytes change places in a row of a slab: bits of their number and of the 128-byte line they are in.
    constexpr int pieces = Tile::row_bytes / 16;
    // Each store takes four 8 x 8 matrices: rows 0 to 7 and 8 to 15 of 8 columns, then of the next 8.
    const int row = 64 * group + 16 * warp + (lane & 15), odd_columns = lane >> 4;
#pragma unroll
    for (int i = 0; i < N / 8; ++i) {
        const int slab = 2 * i / pieces, piece = (2 * i + odd_columns) % pieces;
        const int swizzled = piece ^ (row * Tile::row_bytes / 128 % pieces);
        const SharedAddress to = output_base + (slab * Tile::rows + row) * Tile::row_bytes + (swizzled << 4);
        using Element = typename Tile::Element;
        const float* d = output + 8 * i;
        store_matrix_x4(to, pack2<Element>(d[0], d[1]), pack2<Element>(d[2], d[3]), pack2<Element>(d[4], d[5]),
                        pack2<Element>(d[6], d[7]));
    }
}

}  // namespace attn::flash::sm90
