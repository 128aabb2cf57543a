// What a call asks for, cut into tiles: which tile comes when, and which blocks of keys it needs.
#pragma once
#include "../attention/mask.h"

namespace attn::flash {

struct Problem {
    int batch, heads, heads_per_kv, seq_q, seq_k;
    // A kernel that packs, always or where there are few queries, takes query heads that share their keys for one head: row r
    // of it is query r / group of head r % group of the group. Then `heads` are those of keys. Elsewhere `group` is 1.
    // `rows`: seq_q * group.
    int group, rows;
    AttnMask mask;
    // softmax is taken in powers of two: scale * log2(e).
    float scale_log2;
    AttnRows lse, state_max, state_sum;
    AttnTensor state_output;
    // The order of tiles.
    int tiles, row_blocks, section;
    bool last_rows_first;
};

// One tile: a block of queries of one head.
struct Place {
    int row_block, head, batch;
};

// The query that a row belongs to.
template <class Tile>
ATTN_DEVICE int query_of(const Problem& p, int row) {
    return Tile::packed ? static_cast<int>(static_cast<uint32_t>(row) / static_cast<uint32_t>(p.group)) : row;
}

// The tile that this block of threads takes in round `round`, or none (false).
//
// Tiles are sorted: those of a section of heads, whose keys and values fit the L2 cache together, before the next
// section; inside a section the longest first, so that a short one ends each. Rounds are dealt out there and back
// again, so that nobody gets the longest of each.
template <class Tile>
ATTN_DEVICE bool place_of(const Problem& p, int round, Place& place) {
    const int grid = grid_size(), block = block_index();
    const int turn = Tile::banded && (round & 1) ? grid - 1 - block : block;
    const int64_t number = static_cast<int64_t>(round) * grid + turn;
    if (number >= p.tiles) return false;
    const int per_section = p.section * p.row_blocks;
    const int section = static_cast<int>(number) / per_section, inside = static_cast<int>(number) % per_section;
    const int first = section * p.section, all = p.heads * p.batch;
    const int width = all - first < p.section ? all - first : p.section;
    const int rank = inside / width, lane = first + inside % width;
    place.row_block = p.last_rows_first ? p.row_blocks - 1 - rank : rank;
    place.head = lane % p.heads;
    place.batch = lane / p.heads;
    return true;
}

// The rounds in which a block of threads has a tile. With rounds dealt there and back, the last one may skip it.
ATTN_DEVICE int rounds_of(const Problem& p) {
    return p.tiles / grid_size() + (p.tiles % grid_size() != 0 ? 1 : 0);
}

// The blocks of keys that a tile needs, [bottom, top]; none if bottom > top. Blocks from `upper_masked` on reach keys
// above the band or the key length, blocks below `lower_masked` reach keys under the band.
struct KeyBlocks {
    int length, bottom, top, upper_masked, lower_masked;
};

// `first_row` and `last_row`: the first and the last of the tile's queries.
template <class Tile>
ATTN_DEVICE KeyBlocks key_blocks(const Problem& p, int batch, int first_row, int last_row) {
    KeyBlocks blocks;
    const int length = key_length(p.mask, batch, p.seq_k);
    blocks.length = length;
    if constexpr (Tile::banded) {
        const int end = last_row + p.mask.band_hi + 1 < length ? last_row + p.mask.band_hi + 1 : length;
        const int start = first_row + p.mask.band_lo > 0 ? first_row + p.mask.band_lo : 0;
        const int free_end = first_row + p.mask.band_hi + 1 < length ? first_row + p.mask.band_hi + 1 : length;
        const int free_start = last_row + p.mask.band_lo > 0 ? last_row + p.mask.band_lo : 0;
        blocks.bottom = start / Tile::keys;
        blocks.top = end > start ? (end - 1) / Tile::keys : blocks.bottom - 1;
        blocks.upper_masked = free_end > 0 ? free_end / Tile::keys : 0;
        blocks.lower_masked = (free_start + Tile::keys - 1) / Tile::keys;
    } else {
        blocks.bottom = 0;
        blocks.top = (length + Tile::keys - 1) / Tile::keys - 1;
        blocks.upper_masked = length / Tile::keys;
        blocks.lower_masked = 0;
    }
    return blocks;
}

template <class Tile>
ATTN_DEVICE KeyBlocks key_blocks(const Problem& p, const Place& place) {
    const int first_row = place.row_block * Tile::rows;
    const int last_row = (first_row + Tile::rows < p.seq_q ? first_row + Tile::rows : p.seq_q) - 1;
    return key_blocks<Tile>(p, place.batch, first_row, last_row);
}

// Whether there is anything to do: a tile that needs no keys still writes its zeros, unless a state is carried on.
template <class Tile>
ATTN_DEVICE bool is_idle(const KeyBlocks& blocks) {
    return Tile::carried && blocks.bottom > blocks.top;
}

}  // namespace attn::flash
