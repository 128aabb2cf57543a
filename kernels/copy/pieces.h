// From AttnCopy, as the caller describes it, to the pieces that the kernel moves. Host code.
#pragma once
#include <cstdint>

#include "attn/abi.h"
#include "piece.h"

namespace attn {

// Strides in bytes.
struct CopyAxis {
    uint64_t extent, source_stride, destination_stride;
};

// Up to four axes, innermost first, of runs that are dense in source and destination.
struct CopyBox {
    const char* source;
    char* destination;
    uint64_t run_bytes;
    int axes;
    CopyAxis axis[4];
};

// Elements of at most 16 bytes.
inline bool item_is_supported(uint64_t item) { return item >= 1 && item <= 16 && (item & (item - 1)) == 0; }

inline bool is_empty(const AttnCopy& copy) {
    return copy.extent[0] == 0 || copy.extent[1] == 0 || copy.extent[2] == 0 || copy.extent[3] == 0;
}

// Orders the axes by where they write, so that neighbouring threads write neighbouring addresses, and makes as few
// and as long runs as the strides allow. The copy is not empty.
inline CopyBox simplify(const AttnCopy& copy) {
    CopyBox box = {static_cast<const char*>(copy.source), static_cast<char*>(copy.destination), copy.item, 0, {}};
    for (int i = 0; i < 4; ++i) {
        const CopyAxis axis = {copy.extent[i], copy.source_strides[i] * copy.item,
                               copy.destination_strides[i] * copy.item};
        // Of the elements that go to one place any may win: the first one does.
        if (axis.extent == 1 || axis.destination_stride == 0) continue;
        int at = box.axes++;
        for (; at > 0 && axis.destination_stride < box.axis[at - 1].destination_stride; --at) {
            box.axis[at] = box.axis[at - 1];
        }
        box.axis[at] = axis;
    }

    int kept = 0;
    for (int i = 0; i < box.axes; ++i) {
        const CopyAxis axis = box.axis[i];
        if (kept > 0) {
            CopyAxis& inner = box.axis[kept - 1];
            if (axis.source_stride == inner.extent * inner.source_stride &&
                axis.destination_stride == inner.extent * inner.destination_stride) {
                inner.extent *= axis.extent;
                continue;
            }
        } else if (axis.source_stride == box.run_bytes && axis.destination_stride == box.run_bytes) {
            box.run_bytes *= axis.extent;
            continue;
        }
        box.axis[kept++] = axis;
    }
    box.axes = kept;
    return box;
}

// The widest access, up to 16 bytes, that every address and every run is a multiple of.
inline uint64_t vector_bytes(const CopyBox& box) {
    uint64_t bits = 16 | reinterpret_cast<uintptr_t>(box.source) | reinterpret_cast<uintptr_t>(box.destination) |
                    box.run_bytes;
    for (int i = 0; i < box.axes; ++i) bits |= box.axis[i].source_stride | box.axis[i].destination_stride;
    return bits & (~bits + 1);
}

// The elements of all axes but one (-1: of all), or fast_division_limit if they are as many or more.
inline uint64_t elements_without(const CopyBox& box, int axis) {
    uint64_t elements = 1;
    for (int i = 0; i < box.axes; ++i) {
        if (i == axis) continue;
        if (box.axis[i].extent > (fast_division_limit - 1) / elements) return fast_division_limit;
        elements *= box.axis[i].extent;
    }
    return elements;
}

// Hands out a box whose runs are single vectors, cut along its outermost axis into pieces that the kernel can count.
// `take(const Piece&)` returns a status; the first that is not ATTN_OK ends the matter.
template <class Take>
int cut(const CopyBox& box, Take& take) {
    const uint64_t vectors = elements_without(box, -1);
    if (vectors < fast_division_limit) {
        Piece piece = {};
        piece.source = box.source;
        piece.destination = box.destination;
        piece.vectors = uint32_t(vectors);
        while ((uint64_t(1) << piece.width_log2) < box.run_bytes) ++piece.width_log2;
        for (int i = 0; i < 4; ++i) {
            const CopyAxis axis = i < box.axes ? box.axis[i] : CopyAxis{1, 0, 0};
            piece.source_stride[i] = axis.source_stride;
            piece.destination_stride[i] = axis.destination_stride;
            if (i < 3) piece.extent[i] = fast_division(uint32_t(axis.extent));
        }
        return take(piece);
    }

    int outer = box.axes - 1;
    while (box.axis[outer].extent == 1) --outer;
    const uint64_t step_at_most = (fast_division_limit - 1) / elements_without(box, outer);
    const uint64_t step = step_at_most > 0 ? step_at_most : 1;
    const CopyAxis whole = box.axis[outer];
    for (uint64_t start = 0; start < whole.extent; start += step) {
        CopyBox part = box;
        part.source += start * whole.source_stride;
        part.destination += start * whole.destination_stride;
        part.axis[outer].extent = whole.extent - start < step ? whole.extent - start : step;
        if (const int status = cut(part, take)) return status;
    }
    return ATTN_OK;
}

// Hands out the pieces of a copy that is not empty and whose item is supported.
template <class Take>
int for_each_piece(const AttnCopy& copy, Take&& take) {
    CopyBox box = simplify(copy);
    const uint64_t width = vector_bytes(box);
    if (box.run_bytes > width && box.axes < 4) {
        for (int i = box.axes++; i > 0; --i) box.axis[i] = box.axis[i - 1];
        box.axis[0] = {box.run_bytes / width, width, width};
        box.run_bytes = width;
    }
    // Runs still longer than a vector are single items that are aligned to less than their size, and there is no fifth
    // axis: a box for each vector of the item.
    for (uint64_t offset = 0; offset < box.run_bytes; offset += width) {
        CopyBox part = box;
        part.source += offset;
        part.destination += offset;
        part.run_bytes = width;
        if (const int status = cut(part, take)) return status;
    }
    return ATTN_OK;
}

}  // namespace attn
