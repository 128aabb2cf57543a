// One strided copy, made as simple as its strides allow. The host does that for batches of copies, the device for boxes
// whose other end it learns of there.
#pragma once
#include <cstdint>

#include "attn/abi.h"
#include "piece.h"

namespace attn {

// Strides in bytes.
struct CopyAxis {
    uint64_t extent, source_stride, destination_stride;
};

// Four axes, innermost first, of runs that are dense in source and destination. Axes that are not needed have an extent
// of 1, strides of 0, and come last.
//
// Everything below is unrolled, so that on the device no axis is found by a number that is not known to the compiler:
// that would put the box into memory.
struct CopyBox {
    const char* source;
    char* destination;
    uint64_t run_bytes;
    CopyAxis axis[4];
};

// Takes an axis out; those behind it move up.
template <int At>
ATTN_HOST_DEVICE void drop_axis(CopyBox& box) {
#pragma unroll
    for (int i = At; i < 3; ++i) box.axis[i] = box.axis[i + 1];
    box.axis[3] = {1, 0, 0};
}

// Puts two axes in the order of where they write; those of one element go outwards.
ATTN_HOST_DEVICE void put_in_order(CopyAxis& inner, CopyAxis& outer) {
    const uint64_t last = ~uint64_t(0);
    const uint64_t of_inner = inner.extent == 1 ? last : inner.destination_stride;
    const uint64_t of_outer = outer.extent == 1 ? last : outer.destination_stride;
    if (of_outer < of_inner) {
        const CopyAxis moved = inner;
        inner = outer;
        outer = moved;
    }
}

// Joins axis At + 1 to axis At if the two are dense in both tensors.
template <int At>
ATTN_HOST_DEVICE void join_axes(CopyBox& box) {
    CopyAxis& inner = box.axis[At];
    const CopyAxis& axis = box.axis[At + 1];
    if (axis.extent > 1 && axis.source_stride == inner.extent * inner.source_stride &&
        axis.destination_stride == inner.extent * inner.destination_stride) {
        inner.extent *= axis.extent;
        drop_axis<At + 1>(box);
    }
}

// Orders the axes by where they write, so that neighbouring threads write neighbouring addresses, and makes as few
// and as long runs as the strides allow. The copy is not empty.
ATTN_HOST_DEVICE CopyBox simplify(const AttnCopy& copy) {
    CopyBox box = {static_cast<const char*>(copy.source), static_cast<char*>(copy.destination), copy.item, {}};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        box.axis[i] = {copy.extent[i], copy.source_strides[i] * copy.item, copy.destination_strides[i] * copy.item};
        // Of the elements that go to one place any may win: the first one does.
        if (copy.extent[i] == 1 || copy.destination_strides[i] == 0) box.axis[i] = {1, 0, 0};
    }
    put_in_order(box.axis[0], box.axis[1]);
    put_in_order(box.axis[2], box.axis[3]);
    put_in_order(box.axis[0], box.axis[2]);
    put_in_order(box.axis[1], box.axis[3]);
    put_in_order(box.axis[1], box.axis[2]);
    join_axes<0>(box);
    join_axes<0>(box);
    join_axes<0>(box);
    join_axes<1>(box);
    join_axes<1>(box);
    join_axes<2>(box);
    const CopyAxis& dense = box.axis[0];
    if (dense.extent > 1 && dense.source_stride == box.run_bytes && dense.destination_stride == box.run_bytes) {
        box.run_bytes *= dense.extent;
        drop_axis<0>(box);
    }
    return box;
}

// The widest access, up to 16 bytes, that every address and every run is a multiple of.
ATTN_HOST_DEVICE uint64_t vector_bytes(const CopyBox& box) {
    uint64_t bits = 16 | reinterpret_cast<uintptr_t>(box.source) | reinterpret_cast<uintptr_t>(box.destination) |
                    box.run_bytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) bits |= box.axis[i].source_stride | box.axis[i].destination_stride;
    return bits & (~bits + 1);
}

// Counts runs in vectors of `width` bytes, if there is an axis left to count them on.
ATTN_HOST_DEVICE void count_in_vectors(CopyBox& box, uint64_t width) {
    if (box.run_bytes == width || box.axis[3].extent != 1) return;
#pragma unroll
    for (int i = 3; i > 0; --i) box.axis[i] = box.axis[i - 1];
    box.axis[0] = {box.run_bytes / width, width, width};
    box.run_bytes = width;
}

// A box whose runs are single vectors, fewer than fast_division_limit.
ATTN_HOST_DEVICE Piece piece_of(const CopyBox& box) {
    Piece piece = {};
    piece.source = box.source;
    piece.destination = box.destination;
    piece.vectors = 1;
    piece.width_log2 = log2_above(uint32_t(box.run_bytes));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        piece.vectors *= uint32_t(box.axis[i].extent);
        piece.source_stride[i] = box.axis[i].source_stride;
        piece.destination_stride[i] = box.axis[i].destination_stride;
        if (i < 3) piece.extent[i] = fast_division(uint32_t(box.axis[i].extent));
    }
    return piece;
}

}  // namespace attn
