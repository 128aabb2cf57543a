// Whose keys are rounded: all, or one rank's of a sequence that ranks share.
//
// The mean key, the values' scales and blocks of keys are those of the whole sequence, whoever holds what of it.
#pragma once
#include "../attention/mask.h"
#include "shapes.h"

namespace attn::sage {

// What the kernels that round are given. As AttnSageShard, flat.
struct Shard {
    AttnAttention attention;
    AttnSageTensors tensors;
    uint8_t* value_rows;
    float *sums, *maxima;
    int32_t shards, shard, joint, tokens;
    // The number of this rank's first key, and how many all ranks have.
    int32_t first, keys;
    // Whether values are rounded too.
    bool with_values;

    // A rank's keys begin here, and end where those of the next one begin. The first rank has the joint tokens, besides
    // its share of the others: as long as any, or longer by one.
    ATTN_HOST_DEVICE int start(int rank) const {
        const int each = tokens / shards, longer = tokens % shards;
        return rank == 0 ? 0 : joint + rank * each + (rank < longer ? rank : longer);
    }

    // How many of all keys count in a batch row.
    ATTN_DEVICE int whole_length(int batch) const { return key_length(attention.mask, batch, keys); }
    // How many of this rank's.
    ATTN_DEVICE int length(int batch) const {
        const int length = whole_length(batch) - first;
        return length < 0 ? 0 : length < attention.seq_k ? length : attention.seq_k;
    }

    // The first block of keys that this rank has some of, and how many it has some of.
    ATTN_HOST_DEVICE int first_block() const { return first / block_keys; }
    ATTN_HOST_DEVICE int blocks() const {
        return attention.seq_k == 0 ? 0 : blocks_of(first + attention.seq_k) - first_block();
    }

    static Shard of(const AttnSageShard& call) {
        Shard shard = {call.sage.attention, call.sage.tensors, call.value_rows, call.sums, call.maxima, call.shards,
                       call.shard, call.joint, call.tokens, 0, call.joint + call.tokens, true};
        shard.first = shard.start(call.shard);
        return shard;
    }

    // One that has everything.
    static Shard whole(const AttnSage& call) {
        const int keys = call.attention.seq_k;
        return {call.attention, call.tensors, nullptr, nullptr, nullptr, 1, 0, 0, keys, 0, keys,
                call.tensors.value != nullptr};
    }
};

}  // namespace attn::sage
