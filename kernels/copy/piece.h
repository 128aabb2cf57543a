// What the host hands to the copy kernel: boxes of vectors, and a batch of them as one kernel parameter.
#pragma once
#include <cstdint>

#include "fast_division.h"

namespace attn {

// A box of vectors of 1 << width_log2 bytes. Axis 0 is the innermost; strides count bytes.
struct Piece {
    const char* source;
    char* destination;
    uint64_t source_stride[4], destination_stride[4];
    // By the extents of axes 0 to 2. The outermost coordinate is what remains.
    FastDivision extent[3];
    // Below 2^31.
    uint32_t vectors;
    uint32_t width_log2;
};

constexpr int copy_threads = 256;
constexpr int vectors_per_thread = 4;
// Consecutive vectors of one piece that a block moves at a time.
constexpr int tile_vectors = copy_threads * vectors_per_thread;
// As many as the registers of a multiprocessor allow at 40 for each thread.
constexpr int blocks_per_multiprocessor = 6;

ATTN_HOST_DEVICE uint32_t tiles_of(const Piece& piece) { return (piece.vectors + tile_vectors - 1) / tile_vectors; }

// `first_tile[i]` is how many tiles stand before piece i; `first_tile[count]` is how many there are. Only the first
// `count` pieces are meaningful.
template <int Capacity>
struct Batch {
    uint32_t count;
    uint32_t first_tile[Capacity + 1];
    Piece piece[Capacity];
};

// Two sizes of the same parameter, so that small batches pass few bytes.
constexpr int small_batch = 16;
constexpr int large_batch = 200;
static_assert(sizeof(Batch<large_batch>) <= 32764, "a launch takes at most 32764 bytes of parameters");

}  // namespace attn
