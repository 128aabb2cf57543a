// Where a thread's part in a tile's queries, keys and values is.
#pragma once
#include "load.h"

namespace attn::flash::sm80 {

template <class Tile>
struct Ways {
    using Queries = typename Tile::QueryRows;
    using Keys = typename Tile::KeyRows;

    const Shared<Tile> shared;
    // Where its pieces of keys and values come from, of the first block.
    const uint8_t *key_from, *value_from;

    ATTN_DEVICE Ways(const Tensors& call, const Place& place, int heads_per_kv)
        : shared(shared_base()),
          key_from(first_piece<Keys>(call.key, place, place.head / heads_per_kv)),
          value_from(first_piece<Tile>(call.value, place, place.head / heads_per_kv)) {}

    template <class Rows>
    ATTN_DEVICE static const uint8_t* first_piece(const AttnTensor& tensor, const Place& place, int head) {
        return Loader<Rows>::piece(tensor, place.batch, Loader<Rows>::first_row(), head);
    }

    // Where its lane finds rows of matrices: found anew for each block, or the compiler would keep the address of every
    // piece.
    ATTN_DEVICE LaneRow<Queries> queries() const {
        const int thread = opaque(thread_index()), lane = thread & 31;
        return {shared.query, thread / 32 * 16 * Tile::strips + lane % 16, lane / 16};
    }
    ATTN_DEVICE LaneRow<Keys> keys() const {
        const int lane = opaque(thread_index()) & 31;
        return {shared.key, lane % 8 + lane / 16 * 8, lane / 8 % 2};
    }
    ATTN_DEVICE LaneRow<Tile> values() const {
        const int lane = opaque(thread_index()) & 31;
        return {shared.value, lane % 16, lane / 16};
    }

    ATTN_DEVICE void load_queries(const flash::Problem& p, const AttnTensor& query, const Place& place) const {
        Loader<Queries>::load_queries(shared.query, p, query, place);
    }
    template <bool Bounded>
    ATTN_DEVICE void load_keys(const Tensors& call, int block, int length) const {
        const int64_t stride = call.key.seq_stride;
        Loader<Keys>::template load_block<Bounded>(shared.key, key_from + 2 * Tile::keys * block * stride, stride,
                                                   length - block * Tile::keys);
    }
    template <bool Bounded>
    ATTN_DEVICE void load_values(const Tensors& call, int block, int length) const {
        const int64_t stride = call.value.seq_stride;
        Loader<Tile>::template load_block<Bounded>(shared.value, value_from + 2 * Tile::keys * block * stride, stride,
                                                   length - block * Tile::keys);
    }
};

}  // namespace attn::flash::sm80
