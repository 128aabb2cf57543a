// The numbers of the kernel for Hopper: 128 queries by 128 keys of 8 bits.
#pragma once
#include "../../flash/sm90/tile.h"
#include "../shapes.h"

namespace attn::sage::sm90 {

template <int HeadDim>
struct Tile {
    static constexpr int head_dim = HeadDim, rows = 128, keys = block_keys, stages = 4;
    // What flash fixes when it is compiled, here a call decides: the loops are the same, and there are fewer kernels. The
    // band is always heeded; one that cuts nothing off leaves masks to the last block alone.
    static constexpr bool banded = true, carried = false, packed = false;

    // Each consumer warpgroup has 64 rows; one more warpgroup drives the copy engine.
    static constexpr int groups = rows / 64, threads = 128 * (groups + 1);

    // A row of queries or keys is a line of the swizzle, 64 or 128 bytes; so is, with its 128 tokens, a channel of values.
    static constexpr int row_bytes = HeadDim, channel_bytes = keys;
    static constexpr int query_bytes = rows * HeadDim, block_bytes = keys * HeadDim;
    // The output has 16 bits an element: slabs of 64 columns, 128 bytes a row.
    static constexpr int slabs = HeadDim / 64, slab_row_bytes = 128;
    static constexpr int output_bytes = rows * HeadDim * 2;

    // (scripts/lib/gates.py computes the same.)
    static constexpr int alignment = 1024, small_bytes = 256, scale_bytes = 16 * 128 * groups;
    static constexpr int shared_bytes =
        alignment + query_bytes + 2 * stages * block_bytes + output_bytes + scale_bytes + small_bytes;

    static constexpr int producer_registers = 40, consumer_registers = 232;
    static constexpr int launch_registers = 65536 / threads / 8 * 8;

    static_assert(HeadDim == 64 || HeadDim == 128, "a row is one line of a swizzle");
    static_assert(groups == 2, "registers are shared out for two consumer warpgroups");
    static_assert(128 * (producer_registers + groups * consumer_registers) <= threads * launch_registers,
                  "more registers than there are");
    static_assert(shared_bytes <= flash::sm90::most_shared_bytes, "more shared memory than a block can have");
};

// Where things lie in shared memory.
template <class Tile>
struct Shared {
    SharedAddress query, key, value, output, scale, query_full, query_empty, key_full, key_empty, value_full, value_empty,
        scratch;

    ATTN_DEVICE explicit Shared(SharedAddress base) {
        query = (base + Tile::alignment - 1) & ~static_cast<SharedAddress>(Tile::alignment - 1);
        key = query + Tile::query_bytes;
        value = key + Tile::stages * Tile::block_bytes;
        output = value + Tile::stages * Tile::block_bytes;
        scale = output + Tile::output_bytes;
        query_full = scale + Tile::scale_bytes;
        query_empty = query_full + 8;
        key_full = query_empty + 8;
        key_empty = key_full + 8 * Tile::stages;
        value_full = key_empty + 8 * Tile::stages;
        value_empty = value_full + 8 * Tile::stages;
        scratch = value_empty + 8 * Tile::stages;
    }
};

// Where block number `count` of all that have gone through a ring of stages stands, and the parity of its phase.
template <class Tile>
struct Turn {
    static_assert(Tile::stages == 4, "the lowest two bits of a count are its stage, the next one its parity");
    int count = 0;

    ATTN_DEVICE int stage() const { return count & 3; }
    ATTN_DEVICE uint32_t parity() const { return static_cast<uint32_t>(count) >> 2 & 1; }
};

}  // namespace attn::sage::sm90
