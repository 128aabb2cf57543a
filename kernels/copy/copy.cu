// attn_copy: a batch of strided copies in one launch.
//
// Grid: persistent, at most blocks_per_multiprocessor blocks on each multiprocessor. Block: copy_threads threads, which
// do what move.h says. No shared memory; the pieces are in the kernel's parameters, which are constant memory.
#include <cstdint>

#include "attn/abi.h"
#include "attn/device.h"
#include "attn/host.h"
#include "move.h"
#include "pieces.h"

namespace attn {
namespace {

template <int Capacity>
ATTN_KERNEL(copy_threads, blocks_per_multiprocessor) copy_kernel(ATTN_GRID_CONSTANT const Batch<Capacity> batch) {
    move_tiles(batch);
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
        batch_.piece[batch_.count] = piece;
        batch_.first_tile[batch_.count + 1] = batch_.first_tile[batch_.count] + tiles_of(piece);
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
