// Segments and dense masks, pair by pair, for the accumulators of the tensor cores (softmax.h says what stands where).
#pragma once
#include "softmax.h"

namespace attn::flash {

// A thread's keys of a block are columns 8 i and 8 i + 1, for each i, counted from its first one; these two have the bits
// 2 i and 2 i + 1 of a word. The bits of its keys before column `end`.
ATTN_DEVICE uint32_t bits_before(int end) {
    if (end <= 0) return 0;
    const int bits = 2 * (end >> 3) + ((end & 7) < 2 ? end & 7 : 2);
    return bits >= 32 ? ~0u : (1u << bits) - 1;
}

// Which keys of a block a thread's two rows may attend, by the whole mask: a bit for each in allowed[r].
//
// Bits, so that a mask can be read before the products are made: it takes two registers beside them, and neither loads
// nor branches between a product's issue and its wait, which the compiler would take for a reason to wait at once.
//
// Rows beyond the last one may have any bits: they are not stored.
template <class Tile>
ATTN_DEVICE void read_pairs(uint32_t (&allowed)[2], const Problem& p, const Place& place, int row, int block) {
    static_assert(Tile::keys <= 128, "a row's keys of a thread have a bit each in one word");
    const int column = block * Tile::keys + 2 * (thread_index() & 3);
    const int length = key_length(p.mask, place.batch, p.seq_k);
    MaskRow masks[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r, query = at < p.seq_q ? at : p.seq_q - 1;
        const int above = query + p.mask.band_hi + 1, end = above < length ? above : length;
        allowed[r] = bits_before(end - column) & ~bits_before(query + p.mask.band_lo - column);
        masks[r] = MaskRow::of(p.mask, place.batch, place.head, p.seq_q, p.seq_k, query);
    }
    // One kind of mask after the other, so that many loads are under way at a time: nothing branches between them. For
    // keys beyond the last one they read that one's mask.
    const auto forbid = [&](const auto& allows) {
#pragma unroll 4
        for (int bit = 0; bit < Tile::keys / 4; ++bit) {
            const int at = column + 8 * (bit >> 1) + (bit & 1), key = at < p.seq_k ? at : p.seq_k - 1;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (!allows(masks[r], key)) allowed[r] &= ~(1u << bit);
            }
        }
    };
    if (p.mask.query_segments != nullptr) forbid([](const MaskRow& mask, int key) { return mask.allows_segment(key); });
    if (p.mask.dense != nullptr) forbid([](const MaskRow& mask, int key) { return mask.allows_dense(key); });
}

// Products of pairs that are not allowed become -inf.
template <int N>
ATTN_DEVICE void mask_pairs(float (&scores)[N], const uint32_t (&allowed)[2]) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                if ((allowed[r] >> (2 * i + e) & 1) == 0) scores[4 * i + 2 * r + e] = minus_infinity();
            }
        }
    }
}

}  // namespace attn::flash
