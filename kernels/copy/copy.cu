// attn_copy: a batch of strided copies in one launch.
//
// Grid: persistent, at most blocks_per_multiprocessor blocks on each multiprocessor. Block: copy_threads threads. A
// block takes every grid_size()-th tile, which is tile_vectors consecutive vectors of one piece, neighbouring threads
// on neighbouring vectors. No shared memory; the pieces are in the kernel's parameters, which are constant memory.
#include <cstdint>

#include "attn/abi.h"
#include "attn/device.h"
#include "attn/host.h"
#include "pieces.h"

namespace attn {
namespace {

// As many as the registers of a multiprocessor allow at 40 for each thread.
constexpr int blocks_per_multiprocessor = 6;

// What a thread moves at a time: a word, or four of them.
template <class Word>
struct Vector {
    Word word;
    ATTN_DEVICE void load(const char* p) { word = *reinterpret_cast<const Word*>(p); }
    ATTN_DEVICE void store(char* p) const { *reinterpret_cast<Word*>(p) = word; }
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

template <int Capacity>
ATTN_KERNEL(copy_threads, blocks_per_multiprocessor) copy_kernel(ATTN_GRID_CONSTANT const Batch<Capacity> batch) {
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

template <int Capacity>
int launch_batch(const Batch<Capacity>& batch, void* stream) {
    int blocks = 0;
    if (const int status = multiprocessors(&blocks)) return status;
    blocks *= blocks_per_multiprocessor;
    const uint32_t tiles = batch.first_tile[batch.count];
    if (tiles < uint32_t(blocks)) blocks = int(tiles);
    return launch(copy_kernel<Capacity>, LaunchShape{blocks, copy_threads, 0}, stream, batch);
}

// Gathers pieces, and launches when no more fit.
class Gatherer {
  public:
    explicit Gatherer(void* stream) : stream_(stream) {
        batch_.count = 0;
        batch_.first_tile[0] = 0;
    }

    int operator()(const Piece& piece) {
        if (batch_.count == large_batch) {
            if (const int status = flush()) return status;
        }
        const uint32_t tiles = (piece.vectors + tile_vectors - 1) / tile_vectors;
        batch_.piece[batch_.count] = piece;
        batch_.first_tile[batch_.count + 1] = batch_.first_tile[batch_.count] + tiles;
        ++batch_.count;
        return ATTN_OK;
    }

    int flush() {
        if (batch_.count == 0) return ATTN_OK;
        const int status = batch_.count <= small_batch ? launch_small() : launch_batch(batch_, stream_);
        batch_.count = 0;
        return status;
    }

  private:
    int launch_small() {
        Batch<small_batch> small;
        small.count = batch_.count;
        for (uint32_t i = 0; i <= batch_.count; ++i) small.first_tile[i] = batch_.first_tile[i];
        for (uint32_t i = 0; i < batch_.count; ++i) small.piece[i] = batch_.piece[i];
        return launch_batch(small, stream_);
    }

    void* stream_;
    Batch<large_batch> batch_;
};

}  // namespace
}  // namespace attn

extern "C" int attn_copy(const AttnCopy* copies, size_t count, void* stream) {
    for (size_t i = 0; i < count; ++i) {
        if (!attn::item_is_supported(copies[i].item)) return ATTN_UNSUPPORTED;
    }
    attn::Gatherer gatherer(stream);
    for (size_t i = 0; i < count; ++i) {
        if (attn::is_empty(copies[i])) continue;
        if (const int status = attn::for_each_piece(copies[i], gatherer)) return status;
    }
    return gatherer.flush();
}
