#include "warp_products.h"

#include <cstring>

#include "cta.h"
#include "elements.h"
#include "tile_product.h"

namespace attn::sim {

namespace {

constexpr int side = 16;

}  // namespace

void WarpProducts::reset() { lanes_.resize(cta_.threads); }

void WarpProducts::multiply(const Strips& strips, float* const* sums, const uint32_t (*a)[4], const uint32_t (&b)[4]) {
    static const char meeting[] = "mma";
    const int me = cta_.scheduler.current();
    lanes_[me] = {sums, a, b};
    // All lanes say the same.
    const int argument = 16 * static_cast<int>(strips.element) + strips.count;
    cta_.warps.together(meeting, argument, [&] {
        const Lane* lanes = lanes_.data() + me / 32 * 32;
        for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 4; ++i) {
                const int depth = depth_of(strips.element);
                const int k = lane % 4 * (depth / 8) + i % 2 * (depth / 2), column = lane / 4 + i / 2 * 8;
                uint8_t bytes[4];
                std::memcpy(bytes, lanes[lane].b + i, 4);
                widen(strips.element, bytes, 4, b_ + k * side + column, side);
            }
        }
        for (int strip = 0; strip < strips.count; ++strip) {
            multiply_strip(lanes, strips.element, strip, side);
        }
    });
}

void WarpProducts::multiply_shared(const Strips& strips, const SharedColumns& columns, float* const* sums,
                                   const uint32_t (*a)[4], const uint32_t* rows) {
    static const char meeting[] = "mma_shared";
    const int me = cta_.scheduler.current();
    lanes_[me] = {sums, a, rows};
    const int argument = 128 * columns.count + 64 * columns.transposed + 16 * static_cast<int>(strips.element) + strips.count;
    cta_.warps.together(meeting, argument, [&] {
        const Lane* lanes = lanes_.data() + me / 32 * 32;
        load_columns(lanes, strips.element, columns);
        for (int strip = 0; strip < strips.count; ++strip) {
            multiply_strip(lanes, strips.element, strip, columns.count);
        }
    });
}

// As by load_matrix_x4: matrices 0 and 1 are the upper and lower half of eight columns, 2 and 3 of the next eight. Lane l gives
// row l % 8 of matrix l / 8: a column's elements, or those of eight columns if they are transposed on their way.
void WarpProducts::load_columns(const Lane* lanes, Element element, const SharedColumns& columns) {
    for (int block = 0; block < columns.count / side; ++block) {
        SharedAddress rows[32];
        for (int lane = 0; lane < 32; ++lane) {
            rows[lane] = lanes[lane].b[block];
        }
        cta_.warps.check_matrices("mma_shared", rows, columns.transposed);
        for (int lane = 0; lane < 32; ++lane) {
            const int matrix = lane / 8, k = matrix % 2 * (depth_of(element) / 2), column = block * side + matrix / 2 * 8;
            const int row = lane % 8;
            float* to = columns.transposed ? b_ + (k + row) * columns.count + column : b_ + k * columns.count + column + row;
            widen(element, cta_.memory.at(rows[lane]), 16, to, columns.transposed ? 1 : columns.count);
        }
    }
}

// b_ is there.
__attribute__((optimize("O3"))) void WarpProducts::multiply_strip(const Lane* lanes, Element element, int strip, int columns) {
    const auto row_of = [](int lane, int i) { return lane / 4 + i % 2 * 8; };
    const int depth = depth_of(element);
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            uint8_t bytes[4];
            std::memcpy(bytes, &lanes[lane].a[strip][i], 4);
            widen(element, bytes, 4, a_ + row_of(lane, i) * depth + lane % 4 * (depth / 8) + i / 2 * (depth / 2), 1);
        }
        const float* from = lanes[lane].sums[strip];
        for (int i = 0; i < columns / 4; ++i) {
            std::memcpy(sums_ + row_of(lane, i) * columns + lane % 4 * 2 + i / 2 * 8, from + 2 * i, 8);
        }
    }
    if (element == Element::S8) to_floats(sums_, side * columns);
    add_tile_product(sums_, a_, b_, side, columns, depth);
    if (element == Element::S8) to_integers(sums_, side * columns);
    for (int lane = 0; lane < 32; ++lane) {
        float* to = lanes[lane].sums[strip];
        for (int i = 0; i < columns / 4; ++i) {
            std::memcpy(to + 2 * i, sums_ + row_of(lane, i) * columns + lane % 4 * 2 + i / 2 * 8, 8);
        }
    }
}

}  // namespace attn::sim
