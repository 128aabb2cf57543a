// The numbers of one flash kernel, fixed when it is compiled.
#pragma once
#include "../../attention/cover.h"

namespace attn::flash::sm90 {

// How a consumer warpgroup works. Simple: scores, softmax, output, one after the other; other warpgroups fill the gaps.
// Overlapped: while the tensor cores make the scores of one block of keys and add the values of the block before, the
// warpgroup takes the softmax of the scores as soon as they are there; warpgroups take turns at the tensor cores
// (Shah et al. 2024, FlashAttention-3, sections 3.1 and 3.2).
enum class Form { Simple, Overlapped };

// What a kernel is for. Each but Full heeds the band.
enum class Kind {
    // Every key counts up to the key length.
    Full,
    Banded,
    // Goes on from a state and leaves one.
    Carried,
    // Segments and dense masks: follows their cover. Goes on from a state if the call has one.
    Irregular,
    // Few queries: the query heads that share their keys stand in one tile. Goes on from a state if the call has one.
    Packed,
};

// Shared memory that a block of Hopper can have.
constexpr int most_shared_bytes = 232448;

// `Rows` queries by `Keys` keys of `HeadDim` elements.
template <class Element_, int HeadDim, int Rows, int Keys, Form Form_, Kind Kind_>
struct Tile {
    using Element = Element_;
    static constexpr int head_dim = HeadDim, rows = Rows, keys = Keys, stages = 2;
    static constexpr bool overlapped = Form_ == Form::Overlapped, banded = Kind_ != Kind::Full;
    static constexpr bool carried = Kind_ == Kind::Carried, irregular = Kind_ == Kind::Irregular;
    static constexpr bool packed = Kind_ == Kind::Packed;
    // Whether there may be a state.
    static constexpr bool may_carry = carried || irregular || packed;

    // Each consumer warpgroup has 64 rows; one more warpgroup drives the copy engine.
    static constexpr int groups = Rows / 64, threads = 128 * (groups + 1);
    // At head_dim 256 FlashAttention-3 leaves them to themselves: one's products are long beside the other's softmax.
    static constexpr bool takes_turns = overlapped && groups > 1 && HeadDim <= 128;

    // Tensors stand in shared memory as slabs of columns, as the copy engine lays them: 64 columns under its swizzle of
    // 128 bytes, or 32 under that of 64 where 64 do not divide a row. In both a slab's row is as long as the swizzle.
    static constexpr int slab_columns = HeadDim % 64 == 0 ? 64 : 32, slabs = HeadDim / slab_columns;
    static constexpr int row_bytes = 2 * slab_columns;
    static constexpr int query_bytes = Rows * HeadDim * 2, block_bytes = Keys * HeadDim * 2;

    // Tiles of the output get memory of their own where there is room, so that the next queries need not wait for them.
    // (scripts/lib/gates.py computes the same.)
    static constexpr int alignment = 1024, small_bytes = 256;
    static constexpr int least_bytes = alignment + query_bytes + 2 * stages * block_bytes + small_bytes;
    static constexpr bool own_output = !carried && least_bytes + query_bytes <= most_shared_bytes;
    static constexpr int shared_bytes = least_bytes + (own_output ? query_bytes : 0);

    // Registers of a thread of each kind. What a launch of so many threads starts with lies between, and is all that
    // there is to share out: a warpgroup that asks for more waits for ever.
    // A producer that walks along a cover has more to keep.
    static constexpr int producer_registers = groups == 3 ? 32 : irregular ? 40 : 24;
    static constexpr int consumer_registers = groups == 3 ? 160 : irregular ? 232 : 240;
    static constexpr int launch_registers = 65536 / threads / 8 * 8;

    static_assert(HeadDim % slab_columns == 0 && HeadDim <= 256, "rows are made of whole slabs");
    static_assert(query_bytes % alignment == 0 && block_bytes % alignment == 0, "swizzles start at aligned addresses");
    static_assert(groups == 2 || groups == 3, "registers are shared out for two or three consumer warpgroups");
    static_assert(128 * (producer_registers + groups * consumer_registers) <= threads * launch_registers,
                  "more registers than there are");
    static_assert(Keys % 16 == 0 && Keys <= 256, "keys come in steps of the tensor cores");
    static_assert(!irregular || (Rows >= least_cover_rows && Keys >= least_cover_keys), "covers have no room for more");
    static_assert(!(irregular || packed) || overlapped, "these kinds have one form");
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
