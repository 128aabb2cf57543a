// Which blocks of keys a tile needs, in the order in which they are taken: runs of neighbours, each from its last block down.
//
// Where a band cuts off, those at its upper edge, then those inside it, then those at its lower edge. Where segments or a
// dense mask do, all that have to be looked at pair by pair, then all that need not.
#pragma once
#include "../walk.h"
#include "tile.h"

namespace attn::flash::sm80 {

struct Run {
    int top, bottom;
    bool masked;
};

// Runs are found from the one before, and nothing else is kept: the loop over a run's blocks needs all registers.
template <class Tile>
struct Runs {
    const flash::Problem& p;
    const Place& place;

    // The first run, and the one after `run`: false if there is none.
    ATTN_DEVICE bool first(Run& run) const {
        if (is_irregular(p.mask)) return covered(run, 0, Cover::Partial, false);
        const KeyBlocks blocks = blocks_of_band();
        return banded(run, blocks, blocks.top);
    }
    ATTN_DEVICE bool next(Run& run) const {
        if (is_irregular(p.mask)) return covered(run, run.bottom, run.masked ? Cover::Partial : Cover::Full, true);
        return banded(run, blocks_of_band(), run.bottom - 1);
    }

  private:
    // The cover's blocks may be as large as several of the kernel's.
    struct Covered {
        static constexpr int rows = Tile::rows, keys = Tile::covered_keys;
    };

    ATTN_DEVICE KeyBlocks blocks_of_band() const {
        const int begin = place.row_block * Tile::rows, end = begin + Tile::rows < p.rows ? begin + Tile::rows : p.rows;
        return key_blocks<Tile>(p, place.batch, query_of<Tile>(p, begin), query_of<Tile>(p, end - 1));
    }

    ATTN_DEVICE static bool banded(Run& run, const KeyBlocks& blocks, int top) {
        if (top < blocks.bottom) return false;
        const bool above = top >= blocks.upper_masked, inside = !above && top >= blocks.lower_masked;
        const int edge = above ? blocks.upper_masked : inside ? blocks.lower_masked : blocks.bottom;
        run = {top, edge > blocks.bottom ? edge : blocks.bottom, !inside};
        return true;
    }

    // Looks from block `from` on; `again`: the run that begins there has been.
    ATTN_DEVICE bool covered(Run& run, int from, Cover cover, bool again) const {
        constexpr int each = Covered::keys / Tile::keys;
        const CoverRow row = CoverRow::of<Covered>(p, place);
        const int first = from / each;
        int window = first & ~31;
        uint32_t found = row.find(window, cover) & (~0u << (first & 31));
        // Adding the lowest bit carries through all that stand beside it.
        if (again) found &= found + (found & (~found + 1));
#pragma unroll 1
        while (found == 0) {
            window += 32;
            if (window >= row.blocks) {
                if (cover == Cover::Full) return false;
                cover = Cover::Full;
                window = 0;
            }
            found = row.find(window, cover);
        }
        const int bottom = lowest_bit(found);
        const uint32_t beyond = found + (1u << bottom);
        const int end = beyond == 0 ? 32 : lowest_bit(beyond);
        run = {(window + end) * each - 1, (window + bottom) * each, cover == Cover::Partial};
        return true;
    }
};

}  // namespace attn::flash::sm80
