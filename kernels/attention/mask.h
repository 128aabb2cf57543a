// Which keys a query attends, as every attention kernel asks it.
//
// Key lengths and the band are arithmetic: kernels know by themselves which blocks of keys they leave, and where inside
// of one. Segments and a dense mask can leave anything. For these a kernel of its own (cover.h) says beforehand of each
// tile of queries and each block of keys whether it is to be skipped, done without looking at the mask, or pair by pair.
#pragma once
#include "attn/abi.h"
#include "attn/device.h"

namespace attn {

// What a mask leaves of a tile of queries and a block of keys: nothing, everything, or something else.
enum class Cover : uint8_t { Skip = 0, Full = 1, Partial = 2 };

// Whether a mask has a cover.
ATTN_HOST_DEVICE bool is_irregular(const AttnMask& mask) {
    return mask.query_segments != nullptr || mask.dense != nullptr;
}

// How many of a batch row's keys count.
ATTN_DEVICE int key_length(const AttnMask& mask, int batch, int seq_k) {
    if (mask.key_lengths == nullptr) return seq_k;
    // Device memory is not ours to trust.
    const int asked = mask.key_lengths[batch];
    return asked < 0 ? 0 : asked < seq_k ? asked : seq_k;
}

// What segments and the dense mask say to one query of one head.
struct MaskRow {
    // Null: none.
    const int32_t* key_segments;
    const uint8_t* dense;
    int64_t dense_stride;
    int32_t segment;

    // Of a query below seq_q.
    ATTN_DEVICE static MaskRow of(const AttnMask& mask, int batch, int head, int seq_q, int seq_k, int query) {
        MaskRow row = {nullptr, nullptr, mask.dense_strides[3], 0};
        if (mask.query_segments != nullptr) {
            row.segment = mask.query_segments[static_cast<int64_t>(batch) * seq_q + query];
            row.key_segments = mask.key_segments + static_cast<int64_t>(batch) * seq_k;
        }
        if (mask.dense != nullptr) {
            row.dense = mask.dense + batch * mask.dense_strides[0] + head * mask.dense_strides[1] +
                        query * mask.dense_strides[2];
        }
        return row;
    }

    // Whether they let it attend a key below seq_k.
    ATTN_DEVICE bool allows(int key) const {
        if (key_segments != nullptr && !allows_segment(key)) return false;
        return dense == nullptr || allows_dense(key);
    }
    // The same of one kind of mask, which is there.
    ATTN_DEVICE bool allows_segment(int key) const { return key_segments[key] == segment; }
    ATTN_DEVICE bool allows_dense(int key) const { return dense[key * dense_stride] != 0; }
};

// How tiles of queries and blocks of keys are counted in a cover.
struct CoverShape {
    int heads, row_blocks, key_blocks;

    ATTN_HOST_DEVICE static CoverShape of(const AttnMask& mask, int seq_q, int seq_k, int rows, int keys) {
        return {mask.dense_heads > 1 ? mask.dense_heads : 1, (seq_q + rows - 1) / rows, (seq_k + keys - 1) / keys};
    }

    // The covers of all blocks of keys of a tile, in order. They are enum Cover.
    ATTN_DEVICE const uint8_t* of_tile(const uint8_t* cover, int batch, int head, int row_block) const {
        const int64_t plane = static_cast<int64_t>(batch) * heads + (heads > 1 ? head : 0);
        return cover + (plane * row_blocks + row_block) * key_blocks;
    }
};

}  // namespace attn
