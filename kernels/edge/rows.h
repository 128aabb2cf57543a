// What the host hands to the edge kernel: rows to be normalised and rotated, and a batch of such pieces as one parameter.
#pragma once
#include <cstdint>

#include "../copy/fast_division.h"

namespace attn {

// [batch, seq, heads, head_dim]. Strides count bytes.
struct RowPiece {
    const char* source;
    char* destination;
    // Null: all weights are 1.
    const char* weight;
    // Null: nothing is rotated.
    const char* cos;
    const char* sin;
    // Batch, seq, head.
    int64_t source_stride[3], destination_stride[3];
    int64_t weight_stride;
    // Batch, seq.
    int64_t cos_stride[2], sin_stride[2];
    // How many units there are: a token, and `heads_per_unit` of its heads. Below 2^31.
    uint32_t units;
    FastDivision groups, seq;
    uint32_t heads;
    // Lanes that share a row, a power of two, and those of them that have a chunk of it.
    uint32_t lanes_log2, chunks;
    // Chunks whose channels are rotated.
    uint32_t rotated_chunks;
    // Whether pairs are halves apart, else neighbours.
    uint32_t halves;
    uint32_t norm;
    float eps, inverse_dim;
};

constexpr int edge_threads = 256;
// As many as the registers of a multiprocessor allow at 64 for each thread.
constexpr int edge_blocks = 4;
// Heads of a token that a thread loads before it stores the first: they share their angles.
constexpr int heads_per_unit = 4;
// Elements that a thread has of a row: 16 bytes.
constexpr int row_chunk = 8;

// Units of one piece that a block works on at a time.
ATTN_HOST_DEVICE uint32_t units_per_tile(const RowPiece& piece) { return edge_threads >> piece.lanes_log2; }

ATTN_HOST_DEVICE uint32_t tiles_of(const RowPiece& piece) {
    return (piece.units + units_per_tile(piece) - 1) / units_per_tile(piece);
}

// `first_tile[i]` is how many tiles stand before piece i; `first_tile[count]` is how many there are.
template <int Capacity>
struct RowBatch {
    uint32_t count;
    uint32_t first_tile[Capacity + 1];
    RowPiece piece[Capacity];
};

// Two sizes of the same parameter, so that small batches pass few bytes.
constexpr int small_row_batch = 8;
constexpr int large_row_batch = 100;
static_assert(sizeof(RowBatch<large_row_batch>) <= 32764, "a launch takes at most 32764 bytes of parameters");

}  // namespace attn
