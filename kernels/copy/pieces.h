// From AttnCopy, as the caller describes it, to the pieces that the kernel moves. Host code.
#pragma once
#include <cstdint>

#include "box.h"

namespace attn {

// Elements of at most 16 bytes.
inline bool item_is_supported(uint64_t item) { return item >= 1 && item <= 16 && (item & (item - 1)) == 0; }

inline bool is_empty(const AttnCopy& copy) {
    return copy.extent[0] == 0 || copy.extent[1] == 0 || copy.extent[2] == 0 || copy.extent[3] == 0;
}

// The elements of all axes but one (-1: of all), or fast_division_limit if they are as many or more.
inline uint64_t elements_without(const CopyBox& box, int axis) {
    uint64_t elements = 1;
    for (int i = 0; i < 4; ++i) {
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
    if (elements_without(box, -1) < fast_division_limit) return take(piece_of(box));

    int outer = 3;
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
    count_in_vectors(box, width);
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
