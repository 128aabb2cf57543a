// The numbers of one flash kernel, fixed when it is compiled, and where things lie in shared memory.
#pragma once
#include "../problem.h"

namespace attn::flash::sm80 {

struct Tensors {
    AttnTensor query, key, value, out;
};

struct Problem : flash::Problem, Tensors {};

// Each of `Warps` warps has `Strips` strips of 16 queries; keys and values come in blocks of `Keys`.
template <class Element_, int HeadDim, int Warps, int Strips, int Keys>
struct Tile {
    using Element = Element_;
    // Whose numbers queries and keys have in shared memory; another kernel's may differ from those of the values.
    using QueryRows = Tile;
    using KeyRows = Tile;
    static constexpr int head_dim = HeadDim, warps = Warps, strips = Strips, keys = Keys;
    static constexpr int threads = 32 * Warps, rows = 16 * Strips * Warps;
    // What a call asks for is asked when it runs: a call without a band has one that cuts nothing off, query heads are packed
    // where there are few queries.
    static constexpr bool banded = true, packed = true;

    // Rows stand one behind the other, in pieces of 16 bytes.
    static constexpr int row_bytes = HeadDim * 2, pieces = row_bytes / 16;
    static constexpr int query_bytes = rows * row_bytes, block_bytes = Keys * row_bytes;
    // (scripts/lib/gates.py computes the same.)
    static constexpr int alignment = 128, shared_bytes = alignment + query_bytes + 2 * block_bytes;

    // Covers have no smaller blocks.
    static constexpr int covered_keys = Keys < 64 ? 64 : Keys;

    // Blocks that a multiprocessor is to have at a time: the compiler keeps to the registers that leaves.
    static constexpr int blocks = threads == 128 && HeadDim <= 128 ? 2 : 1;

    static_assert(HeadDim % 32 == 0 && HeadDim <= 256, "rows are made of halves of a line of 128 bytes");
    static_assert(Keys == 32 || Keys == 64 || Keys == 128, "a block of a cover is a whole number of blocks");
    // What the cards of compute capability 8.6, 8.9 and 12.0 have, the least of all.
    static_assert(shared_bytes <= 101376, "more shared memory than a block can have");
};

// Pieces of a row change places with the row's number, so that the same piece of eight rows that follow each other is in
// eight different groups of banks. A row of a whole number of lines has eight places to turn through; one of half a line
// more begins in the other half of a line than its neighbour, and has four.
template <class Tile>
struct Places {
    static constexpr int mask = Tile::row_bytes % 128 == 0 ? 7 : 3;

    static ATTN_DEVICE int turn(int row) { return mask == 7 ? row & 7 : row >> 1 & 3; }

    // The place of a piece, in bytes from the start of the tensor.
    static ATTN_DEVICE int of(int row, int piece) { return row * Tile::row_bytes + ((piece ^ turn(row)) << 4); }
};

// Where a lane finds its row of a matrix: of pieces `odd`, `odd` + 2, `odd` + 4 and so on.
template <class Tile>
struct LaneRow {
    SharedAddress start;

    ATTN_DEVICE LaneRow(SharedAddress tensor, int row, int odd) : start(tensor + Places<Tile>::of(row, odd)) {}

    // Piece `even` + `odd` of the row that is 16 `blocks` further down.
    ATTN_DEVICE SharedAddress at(int even, int blocks) const {
        constexpr int mask = Places<Tile>::mask;
        return (start ^ ((even & mask) << 4)) + ((even & ~mask) << 4) + blocks * 16 * Tile::row_bytes;
    }
};

template <class Tile>
struct Shared {
    SharedAddress query, key, value;

    ATTN_DEVICE explicit Shared(SharedAddress base) {
        query = (base + Tile::alignment - 1) & ~static_cast<SharedAddress>(Tile::alignment - 1);
        key = query + Tile::QueryRows::query_bytes;
        value = key + Tile::KeyRows::block_bytes;
    }
};

}  // namespace attn::flash::sm80
