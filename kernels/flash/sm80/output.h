// The way of a tile's rows out.
#pragma once
#include "../epilogue.h"
#include "tile.h"

namespace attn::flash::sm80 {

// Four neighbouring lanes have four words each: word i of lane t becomes word t of lane i.
ATTN_DEVICE void transpose_quad(uint32_t (&words)[4]) {
    const int lane = thread_index() & 31;
#pragma unroll
    for (int apart = 1; apart <= 2; apart *= 2) {
        const bool upper = (lane & apart) != 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if ((i & apart) != 0) continue;
            const uint32_t got = value_of_lane(upper ? words[i] : words[i + apart], lane ^ apart);
            words[i] = upper ? got : words[i];
            words[i + apart] = upper ? words[i + apart] : got;
        }
    }
}

// Rounds and stores the thread's two rows. Four lanes share a row: among them they turn 32 columns round, so that each has
// eight that stand together.
template <class Tile, int N>
ATTN_DEVICE void store_rounded(const flash::Problem& p, const AttnTensor& out, const Place& place, int row,
                               const float (&output)[N]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        uint16_t* to = static_cast<uint16_t*>(out.base) + place.batch * out.batch_stride +
                       query_of<Tile>(p, at) * out.seq_stride + head_of<Tile>(p, place, at) * out.head_stride +
                       8 * (thread_index() & 3);
#pragma unroll
        for (int column = 0; column < Tile::head_dim; column += 32) {
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* pair = output + column / 2 + 4 * i + 2 * r;
                words[i] = pack2<typename Tile::Element>(pair[0], pair[1]);
            }
            transpose_quad(words);
            if (at < p.rows) store_global_16(to + column, words);
        }
    }
}

// Divides before.
template <class Tile, int N>
ATTN_DEVICE void store_output(const Problem& p, const Place& place, int row, const RowPair& rows,
                              float (&output)[N]) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) factor[r] = rows.sum[r] == 0.0f ? 0.0f : 1.0f / rows.sum[r];
    rescale(output, factor);
    store_rounded<Tile>(p, p.out, place, row, output);
}

}  // namespace attn::flash::sm80
