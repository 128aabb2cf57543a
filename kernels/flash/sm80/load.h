// How the threads of a block bring rows into shared memory: each its own pieces, by copies that go on without it.
#pragma once
#include "../epilogue.h"
#include "tile.h"

namespace attn::flash::sm80 {

template <class Tile>
struct Loader {
    // Threads that share a row, the rows from one of a thread's to the next, and its pieces of each row.
    static constexpr int sharers = Tile::pieces % 16 == 0 ? 16 : Tile::pieces % 8 == 0 ? 8 : 4;
    static constexpr int step = Tile::threads / sharers, columns = Tile::pieces / sharers;
    static_assert(step % 8 == 0 && sharers > Places<Tile>::mask / 2, "a thread's pieces turn alike");
    static_assert(Tile::keys % step == 0 && Tile::rows % step == 0, "threads share out whole rows");

    static ATTN_DEVICE int first_row() { return thread_index() / sharers; }
    static ATTN_DEVICE int first_piece() { return thread_index() % sharers; }

    // This thread's first piece of a tensor's first row, in shared memory and in a tensor's row.
    static ATTN_DEVICE SharedAddress place(SharedAddress tensor) {
        const int thread = opaque(thread_index());
        return tensor + Places<Tile>::of(thread / sharers, thread % sharers);
    }
    static ATTN_DEVICE const uint8_t* piece(const AttnTensor& tensor, int batch, int seq, int head) {
        return static_cast<const uint8_t*>(tensor.base) +
               2 * (batch * tensor.batch_stride + seq * tensor.seq_stride + head * tensor.head_stride) +
               16 * first_piece();
    }

    // A block of keys or values. `Bounded`: of which only the first `kept` rows count; whatever stands in the others,
    // zeros arrive.
    template <bool Bounded>
    static ATTN_DEVICE void load_block(SharedAddress tensor, const uint8_t* from, int64_t row_stride, int kept) {
        const SharedAddress to = place(tensor);
#pragma unroll
        for (int row = 0; row < Tile::keys; row += step) {
#pragma unroll
            for (int column = 0; column < columns; ++column) {
                const SharedAddress at = to + row * Tile::row_bytes + column * sharers * 16;
                if constexpr (Bounded) {
                    copy_async_16(at, from + column * sharers * 16, first_row() + row < kept ? 16 : 0);
                } else {
                    copy_async_16(at, from + column * sharers * 16);
                }
            }
            from += 2 * step * row_stride;
        }
    }

    // The queries of a tile; zeros for rows that there are not.
    static ATTN_DEVICE void load_queries(SharedAddress shared, const flash::Problem& p, const AttnTensor& query,
                                         const Place& place) {
        const SharedAddress to = Loader::place(shared);
#pragma unroll 1
        for (int row = 0; row < Tile::rows; row += step) {
            const int at = place.row_block * Tile::rows + first_row() + row;
            const uint8_t* from = piece(query, place.batch, query_of<Tile>(p, at), head_of<Tile>(p, place, at));
#pragma unroll
            for (int column = 0; column < columns; ++column) {
                copy_async_16(to + row * Tile::row_bytes + column * sharers * 16, from + column * sharers * 16,
                              at < p.rows ? 16 : 0);
            }
        }
    }
};

}  // namespace attn::flash::sm80
