// Segments and dense masks, pair by pair, on the accumulators of the tensor cores (softmax.h says what stands where).
#pragma once
#include "softmax.h"

namespace attn::flash {

// What segments and the dense mask say to a thread's two rows.
struct PairMask {
    MaskRow rows[2];

    // `row` is the thread's first. Rows beyond the last query are not stored: they may have its mask.
    ATTN_DEVICE static PairMask of(const Problem& p, const Place& place, int row) {
        const auto mask = [&](int at) {
            const int query = at < p.seq_q ? at : p.seq_q - 1;
            return MaskRow::of(p.mask, place.batch, place.head, p.seq_q, p.seq_k, query);
        };
        return {{mask(row), mask(row + 8)}};
    }
};

// Products of keys that segments or the dense mask forbid become -inf. Those of keys from seq_k on have to be already:
// the mask that is read for them is another key's.
//
// One kind of mask after the other, so that many loads are under way at a time: nothing branches between them.
template <class Tile, int N>
ATTN_DEVICE void mask_pairs(float (&scores)[N], const Problem& p, const PairMask& mask, int block) {
    const int column = block * Tile::keys + 2 * (thread_index() & 3);
    const auto key = [&](int i, int e) {
        const int at = column + 8 * i + e;
        return at < p.seq_k ? at : p.seq_k - 1;
    };
    if (p.mask.query_segments != nullptr) {
#pragma unroll
        for (int i = 0; i < N / 4; ++i) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int at = key(i, e);
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    if (!mask.rows[r].allows_segment(at)) scores[4 * i + 2 * r + e] = minus_infinity();
                }
            }
        }
    }
    if (p.mask.dense != nullptr) {
#pragma unroll
        for (int i = 0; i < N / 4; ++i) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int at = key(i, e);
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    if (!mask.rows[r].allows_dense(at)) scores[4 * i + 2 * r + e] = minus_infinity();
                }
            }
        }
    }
}

}  // namespace attn::flash
