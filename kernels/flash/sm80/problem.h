// What a call asks for, and the blocks of keys of a tile in the order in which they are taken.
#pragma once
#include "../../attention/mask.h"
#include "../../copy/fast_division.h"
#include "../epilogue.h"

namespace attn::flash::sm80 {

// The rows of a tile are queries of one head. Or, if there are few queries, those of all heads that share a key head, side
// by side: `group` heads for each position (and `heads`, `seq_q`, `heads_per_kv` are those of a call whose queries they
// are). Without that a group has one head.
struct Problem : flash::Problem {
    AttnTensor query, key, value, out;
    AttnMask mask;
    CoverShape cover;
    FastDivision group;
};

// A tile of such rows.
struct GroupPlace : Place {
    FastDivision group;
};

ATTN_DEVICE int position_of(const FastDivision& group, int row) {
    return static_cast<int>(quotient(static_cast<uint32_t>(row), group));
}

ATTN_DEVICE RowIndex row_index(const GroupPlace& place, int row) {
    const int position = position_of(place.group, row), heads = static_cast<int>(place.group.divisor);
    return {place.batch, position, place.head * heads + row - position * heads};
}

// Neighbouring blocks of keys, from `first` down to `last`.
struct Run {
    int first, last;
    bool masked;
};

// Runs of blocks, in order: where a band cuts off, those at its upper edge, inside it, at its lower edge. Where segments
// or a dense mask do, those that have to be looked at pair by pair, then those that need not.
template <class Tile>
struct Walk {
    const Problem& p;
    KeyBlocks blocks;
    // Null: the mask is a band. Else the covers of this tile's blocks, and which are being visited.
    const uint8_t* covers;
    Cover visited = Cover::Partial;
    int block;

    ATTN_DEVICE Walk(const Problem& problem, const GroupPlace& place) : p(problem), covers(nullptr) {
        const int first_row = place.row_block * Tile::rows;
        const int last_row = (first_row + Tile::rows < p.seq_q ? first_row + Tile::rows : p.seq_q) - 1;
        blocks = key_blocks<Tile>(p, place.batch, position_of(p.group, first_row), position_of(p.group, last_row));
        if (is_irregular(p.mask)) covers = p.cover.of_tile(p.mask.cover, place.batch, place.head, place.row_block);
        block = blocks.top;
    }

    // False if there is no other.
    ATTN_DEVICE bool next(Run& run) {
        if (covers != nullptr) return next_covered(run);
        if (block < blocks.bottom) return false;
        run.first = block;
        run.masked = block >= blocks.upper_masked || block < blocks.lower_masked;
        const int edge = block >= blocks.upper_masked   ? blocks.upper_masked
                         : block >= blocks.lower_masked ? blocks.lower_masked
                                                        : blocks.bottom;
        run.last = edge > blocks.bottom ? edge : blocks.bottom;
        block = run.last - 1;
        return true;
    }

    ATTN_DEVICE bool is_visited(int at) const { return covers[at] == static_cast<uint8_t>(visited); }

    ATTN_DEVICE bool next_covered(Run& run) {
        for (;;) {
            while (block >= blocks.bottom && !is_visited(block)) --block;
            if (block >= blocks.bottom) break;
            if (visited == Cover::Full) return false;
            visited = Cover::Full;
            block = blocks.top;
        }
        run.first = block;
        run.masked = visited == Cover::Partial;
        while (block > blocks.bottom && is_visited(block - 1)) --block;
        run.last = block--;
        return true;
    }
};

}  // namespace attn::flash::sm80
