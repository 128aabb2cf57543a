// The numbers of one flash kernel, fixed when it is compiled.
#pragma once
#include "attn/device.h"

namespace attn::flash::sm90 {

// How a consumer warpgroup works. Simple: scores, softmax, output, one after the other; other warpgroups fill the gaps.
// Overlapped: while the tensor cores make the scores of one block of keys and add the values of the block before, the
// warpgroup takes the softmax of the scores as soon as they are there; warpgroups take turns at the tensor cores
// (Shah et al. 2024, FlashAttention-3, sections 3.1 and 3.2).
enum class Form { Simple, Overlapped };

// Shared memory that a block of Hopper can have.
constexpr int most_shared_bytes = 232448;

// `Rows` queries by `Keys` keys of `HeadDim` elements. `Banded`: the call has a band; otherwise every key counts up to
// the key length. `Carried`: the call goes on from a state and leaves one.
template <class Element_, int HeadDim, int Rows, int Keys, Form Form_, bool Banded, bool Carried>
struct Tile {
    using Element = Element_;
    static constexpr int head_dim = HeadDim, rows = Rows, keys = Keys, stages = 2;
    static constexpr bool overlapped = Form_ == Form::Overlapped, banded = Banded, carried = Carried;
    static constexpr bool packed = false;

    // Each consumer warpgroup has 64 rows; one more warpgroup drives the copy engine.
    static constexpr int groups = Rows / 64, threads = 128 * (groups + 1);
    // At head_dim 256 FlashAttention-3 leaves them to themselves: one's products are long beside the other's softmax.
    static constexpr bool takes_turns = overlapped && groups > 1 && HeadDim <= 128;

    // Tensors stand in shared memory as slabs of 64 columns, 128 bytes a row, as the copy engine lays them.
    static constexpr int slabs = HeadDim / 64;
    static constexpr int row_bytes = 128;
    static constexpr int query_bytes = Rows * HeadDim * 2, block_bytes = Keys * HeadDim * 2;

    // Tiles of the output get memory of their own where there is room, so that the next queries need not wait for them.
    // (scripts/lib/gates.py computes the same.)
    static constexpr int alignment = 1024, small_bytes = 256;
    static constexpr int least_bytes = alignment + query_bytes + 2 * stages * block_bytes + small_bytes;
    static constexpr bool own_output = !Carried && least_bytes + query_bytes <= most_shared_bytes;
    static constexpr int shared_bytes = least_bytes + (own_output ? query_bytes : 0);

    // Registers of a thread of each kind. What a launch of so many threads starts with lies between, and is all that
    // there is to share out: a warpgroup that asks for more waits for ever.
    static constexpr int producer_registers = groups == 2 ? 24 : 32, consumer_registers = groups == 2 ? 240 : 160;
    static constexpr int launch_registers = 65536 / threads / 8 * 8;

    static_assert(HeadDim % 64 == 0 && HeadDim <= 256, "rows are made of whole slabs");
    static_assert(groups == 2 || groups == 3, "registers are shared out for two or three consumer warpgroups");
    static_assert(128 * (producer_registers + groups * consumer_registers) <= threads * launch_registers,
                  "more registers than there are");
    static_assert(Keys % 16 == 0 && Keys <= 256, "keys come in steps of the tensor cores");
    static_assert(shared_bytes <= most_shared_bytes, "more shared memory than a block can have");
};

// Where things lie in shared memory.
template <class Tile>
struct Shared {
    SharedAddress query, key, value, output, query_full, query_empty, key_full, key_empty, value_full, value_empty,
        padding_full, scratch;

    ATTN_DEVICE explicit Shared(SharedAddress base) {
        query = (base + Tile::alignment - 1) & ~static_cast<SharedAddress>(Tile::alignment - 1);
        key = query + Tile::query_bytes;
        value = key + Tile::stages * Tile::block_bytes;
        const SharedAddress after_values = value + Tile::stages * Tile::block_bytes;
        output = Tile::own_output ? after_values : query;
        query_full = after_values + (Tile::own_output ? Tile::query_bytes : 0);
        query_empty = query_full + 8;
        key_full = query_empty + 8;
        key_empty = key_full + 8 * Tile::stages;
        value_full = key_empty + 8 * Tile::stages;
        value_empty = value_full + 8 * Tile::stages;
        padding_full = value_empty + 8 * Tile::stages;
        scratch = padding_full + 8;
    }
};

// Where block number `count` of all that have gone through a ring of stages stands, and the parity of its phase.
template <class Tile>
struct Turn {
    static_assert(Tile::stages == 2, "the lowest bit of a count is its stage, the next one its parity");
    int count = 0;

    ATTN_DEVICE int stage() const { return count & 1; }
    ATTN_DEVICE uint32_t parity() const { return static_cast<uint32_t>(count) >> 1 & 1; }
};

}  // namespace attn::flash::sm90
