// The blocks of keys of a tile, in runs: first those whose pairs have to be looked at one by one, then those that are
// attended as a whole. A run is all that a loop has to know.
//
// Without segments and a dense mask there are at most three: below the band's edge, above it, and between.
#pragma once
#include "../flash/walk.h"

namespace attn::sage {

// Blocks [begin, end).
struct Run {
    int begin, end;

    ATTN_DEVICE bool is_empty() const { return begin >= end; }
};

ATTN_DEVICE int smaller_of(int a, int b) { return a < b ? a : b; }
ATTN_DEVICE int larger_of(int a, int b) { return a > b ? a : b; }

// The next run of Partial or Full blocks from block `from` on; empty if there is none. By all lanes of a warp.
template <class Tile>
ATTN_DEVICE Run next_run(const flash::Problem& p, const flash::Place& place, Cover cover, int from) {
    if (is_irregular(p.mask)) {
        const flash::CoverRow row = flash::CoverRow::of<Tile>(p, place);
#pragma unroll 1
        for (int first = from; first < row.blocks; first += 32) {
            const uint32_t found = row.find(first, cover);
            if (found == 0) continue;
            const int begin = first + lowest_bit(found);
            // What follows the first of them; a run of more than 32 comes in parts.
            const uint32_t others = ~row.find(begin, cover);
            return {begin, begin + (others == 0 ? 32 : lowest_bit(others))};
        }
        return {0, 0};
    }
    const flash::KeyBlocks blocks = flash::key_blocks<Tile>(p, place);
    const int end = blocks.top + 1;
    // Blocks below `low` and from `high` on are on the edges.
    const int low = smaller_of(larger_of(blocks.bottom, blocks.lower_masked), end);
    const int high = larger_of(low, smaller_of(blocks.upper_masked, end));
    if (cover == Cover::Full) return {larger_of(from, low), high};
    const int start = larger_of(from, blocks.bottom);
    if (start < low) return {start, low};
    return {larger_of(from, high), end};
}

// Whether a tile has no blocks at all.
template <class Tile>
ATTN_DEVICE bool has_none(const flash::Problem& p, const flash::Place& place) {
    return next_run<Tile>(p, place, Cover::Partial, 0).is_empty() && next_run<Tile>(p, place, Cover::Full, 0).is_empty();
}

}  // namespace attn::sage
