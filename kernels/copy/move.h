// The work of a block that copies: tiles of pieces, every grid_size()-th, which is tile_vectors consecutive vectors of
// one piece, neighbouring threads on neighbouring vectors.
#pragma once
#include <cstdint>

#include "attn/device.h"
#include "piece.h"

namespace attn {

// What a thread moves at a time: a word, or four of them.
template <class Word>
struct Vector {
    Word word;
    ATTN_DEVICE void load(const char* p) { word = *reinterpret_cast<const Word*>(p); }
    ATTN_DEVICE void store(char* p) const { store_global(reinterpret_cast<Word*>(p), word); }
};

struct Words4 {};

template <>
struct Vector<Words4> {
    uint32_t word[4];
    ATTN_DEVICE void load(const char* p) { load_global_16(p, word); }
    ATTN_DEVICE void store(char* p) const { store_global_16(p, word); }
};

// Moves this thread's vectors of a tile, `first` and every copy_threads-th after it. All loads are on their way before
// the first store, which is why no store hangs on a condition: the compiler would move the last loads behind it. Where
// the piece ends before the tile does, the thread moves its first vector again.
template <class Word>
ATTN_DEVICE void move(const Piece& piece, uint32_t first) {
    Vector<Word> vector[vectors_per_thread];
    char* destination[vectors_per_thread];
#pragma unroll
    for (int i = 0; i < vectors_per_thread; ++i) {
        const uint32_t index = first + i * copy_threads < piece.vectors ? first + i * copy_threads : first;
        const uint32_t i1 = quotient(index, piece.extent[0]);
        const uint32_t i2 = quotient(i1, piece.extent[1]);
        const uint32_t i3 = quotient(i2, piece.extent[2]);
        const uint32_t x0 = index - i1 * piece.extent[0].divisor;
        const uint32_t x1 = i1 - i2 * piece.extent[1].divisor;
        const uint32_t x2 = i2 - i3 * piece.extent[2].divisor;
        vector[i].load(piece.source + x0 * piece.source_stride[0] + x1 * piece.source_stride[1] +
                       x2 * piece.source_stride[2] + i3 * piece.source_stride[3]);
        destination[i] = piece.destination + x0 * piece.destination_stride[0] + x1 * piece.destination_stride[1] +
                         x2 * piece.destination_stride[2] + i3 * piece.destination_stride[3];
    }
#pragma unroll
    for (int i = 0; i < vectors_per_thread; ++i) vector[i].store(destination[i]);
}

// Moves the block's tiles of a batch, by copy_threads threads. Nobody else writes what is read, or touches what is
// written, until the kernel has ended or its threads have met.
template <class Pieces>
ATTN_DEVICE void move_tiles(const Pieces& batch) {
    const uint32_t tiles = batch.first_tile[batch.count];
    uint32_t at = 0;
    for (uint32_t tile = block_index(); tile < tiles; tile += grid_size()) {
        // The last piece that begins at or before the tile. A block's tiles only ever go up.
        uint32_t end = batch.count;
        while (end - at > 1) {
            const uint32_t middle = (at + end) / 2;
            if (batch.first_tile[middle] <= tile) {
                at = middle;
            } else {
                end = middle;
            }
        }
        const Piece& piece = batch.piece[at];
        const uint32_t first = (tile - batch.first_tile[at]) * tile_vectors + thread_index();
        if (first >= piece.vectors) continue;
        switch (piece.width_log2) {
            case 4: move<Words4>(piece, first); break;
            case 3: move<uint64_t>(piece, first); break;
            case 2: move<uint32_t>(piece, first); break;
            case 1: move<uint16_t>(piece, first); break;
            default: move<uint8_t>(piece, first); break;
        }
    }
}

}  // namespace attn
