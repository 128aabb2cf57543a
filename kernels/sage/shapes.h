// What attention in 8 bits is made of, and where its parts lie (J. Zhang et al. 2024, SageAttention, arXiv:2410.02367;
// SageAttention2, arXiv:2411.10958).
//
// Softmax does not change when the same is taken from all products of a query. So keys are rounded less their mean:
// what keys have in common, often much more than what tells them apart, takes no bits. The log-sum-exp does change, by the
// product of query and mean.
//
// Scales are as fine as the tensor cores' accumulators let them be for nothing: a thread holds two rows, and of each eight
// columns two neighbours. A query has a scale of its own, keys one for each such pair of columns in a block of 128, a
// channel of the values one.
//
// Values are transposed, since operands of 8 bits must have the summed axis contiguous. Of each 16 tokens they stand in
// the order 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15: a thread's weights as they come out of the first product are then
// an operand of the second one, without a word between threads.
#pragma once
#include "../attention/mask.h"

namespace attn::sage {

// Keys of a block, and of a piece of which sums are taken.
constexpr int block_keys = 128, piece_keys = 256;
// Scales of a block of keys.
constexpr int key_groups = 4;
// The largest numbers of both types.
constexpr float most_s8 = 127.0f, most_e4m3 = 448.0f;

ATTN_HOST_DEVICE int blocks_of(int keys) { return (keys + block_keys - 1) / block_keys; }
ATTN_HOST_DEVICE int pieces_of(int keys) { return (keys + piece_keys - 1) / piece_keys; }

// The token whose values stand at a place of 16.
ATTN_HOST_DEVICE constexpr int token_at(int place) { return place / 4 * 2 + place % 2 + place % 4 / 2 * 8; }

static_assert(token_at(2) == 8 && token_at(3) == 9 && token_at(4) == 2 && token_at(14) == 14, "the order above");

}  // namespace attn::sage
