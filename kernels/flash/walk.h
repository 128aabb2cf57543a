// The way through a tile's blocks of keys under segments and dense masks, by their cover (attention/cover.h).
//
// Whoever takes part in a tile walks by itself: the cover is there before the kernel starts, and all find the same
// blocks in the same order. First come those that are Partial, then those that are Full, each from the first key on.
#pragma once
#include "problem.h"

namespace attn::flash {

// The cover of a tile.
struct CoverRow {
    const uint8_t* covers;
    int blocks;

    template <class Tile>
    ATTN_DEVICE static CoverRow of(const Problem& p, const Place& place) {
        const CoverShape shape = CoverShape::of(p.mask, p.seq_q, p.seq_k, Tile::rows, Tile::keys);
        return {shape.of_tile(p.mask.cover, place.batch, place.head, place.row_block), shape.key_blocks};
    }

    // Which of the 32 blocks from `first` on have this cover, a bit for each. By all lanes of a warp.
    ATTN_DEVICE uint32_t find(int first, Cover cover) const {
        const int block = first + (thread_index() & 31);
        return ballot(block < blocks && covers[block] == static_cast<uint8_t>(cover));
    }
};

// How many blocks of each kind a tile has. By all lanes of a warp.
struct CoverCounts {
    int partial = 0, full = 0;

    ATTN_DEVICE static CoverCounts of(const CoverRow& row) {
        CoverCounts counts;
#pragma unroll 1
        for (int first = 0; first < row.blocks; first += 32) {
            counts.partial += count_bits(row.find(first, Cover::Partial));
            counts.full += count_bits(row.find(first, Cover::Full));
        }
        return counts;
    }
};

// The blocks of one kind, one after the other. All lanes of a warp walk together.
struct CoverWalk {
    // Of the 32 blocks from `first` on, those that are still to come.
    int first = -32;
    uint32_t found = 0;

    // The next block, or -1 if there is none.
    ATTN_DEVICE int next(const CoverRow& row, Cover cover) {
#pragma unroll 1
        while (found == 0) {
            if (first + 32 >= row.blocks) return -1;
            first += 32;
            found = row.find(first, cover);
        }
        const int bit = lowest_bit(found);
        found &= found - 1;
        return first + bit;
    }
};

}  // namespace attn::flash
