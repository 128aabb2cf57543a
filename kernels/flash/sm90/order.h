// Which blocks of keys a tile needs, and in which order: what the producer brings one by one, and the consumers count.
#pragma once
#include "../walk.h"
#include "tile.h"

namespace attn::flash::sm90 {

// Whether this call goes on from a state.
template <class Tile>
ATTN_DEVICE bool carries(const Problem& p) {
    return Tile::carried || (Tile::may_carry && p.state_max.base != nullptr);
}

// From the last block down, so that the masked ones of a causal band come first.
struct Downwards {
    int block, bottom;

    // The next block, or -1 if there is none.
    ATTN_DEVICE int next() { return block >= bottom ? block-- : -1; }
};

// Along the cover: the blocks to be masked pair by pair, then those that need no mask. So the consumers' second loop is
// as free of branches as if there were no mask.
struct PartialThenFull {
    CoverRow row;
    Cover cover = Cover::Partial;
    CoverWalk walk = {};

    ATTN_DEVICE int next() {
        int block = walk.next(row, cover);
        if (block < 0 && cover == Cover::Partial) {
            cover = Cover::Full;
            walk = {};
            block = walk.next(row, cover);
        }
        return block;
    }
};

template <class Tile>
ATTN_DEVICE auto order_of(const Problem& p, const Place& place) {
    if constexpr (Tile::irregular) {
        return PartialThenFull{CoverRow::of<Tile>(p, place)};
    } else {
        const KeyBlocks blocks = key_blocks<Tile>(p, place);
        return Downwards{blocks.top, blocks.bottom};
    }
}

template <class Tile>
ATTN_DEVICE auto blocks_of(const Problem& p, const Place& place) {
    if constexpr (Tile::irregular) {
        return CoverCounts::of(CoverRow::of<Tile>(p, place));
    } else {
        return key_blocks<Tile>(p, place);
    }
}

ATTN_DEVICE bool has_any(const KeyBlocks& blocks) { return blocks.bottom <= blocks.top; }
ATTN_DEVICE bool has_any(const CoverCounts& blocks) { return blocks.partial + blocks.full > 0; }

}  // namespace attn::flash::sm90
