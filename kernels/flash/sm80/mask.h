// What masks leave of a block of products, pair by pair.
#pragma once
#include "problem.h"

namespace attn::flash::sm80 {

// Products of keys that their query does not attend become -inf. `row` is the thread's first row of these 16.
template <class Tile, int N>
ATTN_DEVICE void mask_block(float (&scores)[N], const Problem& p, const GroupPlace& place, int length, int row,
                            int block) {
    const int column = block * Tile::keys + 2 * (thread_index() & 3);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int position = position_of(p.group, row + 8 * r);
        // Columns of this thread are counted from `column`.
        const int above = position + p.band_hi + 1 - column;
        const int end = above < length - column ? above : length - column;
        mask_row<true>(scores, r, position + p.band_lo - column, end);
        if (!is_irregular(p.mask)) continue;
        // Rows beyond the last one are nobody's.
        const int query = position < p.seq_q ? position : p.seq_q - 1;
        const MaskRow mask = MaskRow::of(p.mask, place.batch, place.head, p.seq_q, p.seq_k, query);
        uint32_t allowed = 0;
        // Two bits for every eight columns. (Not unrolled: what it reads is far away, and it would be long.)
#pragma unroll 1
        for (int i = 0; i < N / 2; ++i) {
            const int at = i / 2 * 8 + i % 2;
            if (column + at < length && mask.allows(column + at)) allowed |= 1u << i;
        }
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            if ((allowed >> i & 1) == 0) scores[i / 2 * 4 + 2 * r + i % 2] = minus_infinity();
        }
    }
}

}  // namespace attn::flash::sm80
