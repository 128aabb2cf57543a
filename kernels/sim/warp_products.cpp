#include "warp_products.h"

#include <cstring>

#include "attn_sim/numbers.h"
#include "cta.h"
#include "tile_product.h"

namespace attn::sim {

namespace {

constexpr int side = 16;

// The two elements of a register.
struct Floats {
    float low, high;
};

Floats floats_of(Element element, uint32_t pair) {
    const auto low = static_cast<uint16_t>(pair), high = static_cast<uint16_t>(pair >> 16);
    if (element == Element::Bf16) return {bf16_to_float(low), bf16_to_float(high)};
    return {f16_to_float(low), f16_to_float(high)};
}

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
                const Floats pair = floats_of(strips.element, lanes[lane].b[i]);
                const int k = lane % 4 * 2 + i % 2 * 8, column = lane / 4 + i / 2 * 8;
                b_[k * side + column] = pair.low;
                b_[(k + 1) * side + column] = pair.high;
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
    const int argument = 64 * columns.count + 32 * columns.transposed + 16 * static_cast<int>(strips.element) + strips.count;
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
            uint32_t pairs[4];
            std::memcpy(pairs, cta_.memory.at(rows[lane]), 16);
            const int matrix = lane / 8, k = matrix % 2 * 8, column = block * side + matrix / 2 * 8, row = lane % 8;
            float* to = columns.transposed ? b_ + (k + row) * columns.count + column : b_ + k * columns.count + column + row;
            const int step = columns.transposed ? 1 : columns.count;
            for (int i = 0; i < 4; ++i) {
                const Floats pair = floats_of(element, pairs[i]);
                to[2 * i * step] = pair.low;
                to[(2 * i + 1) * step] = pair.high;
            }
        }
    }
}

// b_ is there.
__attribute__((optimize("O3"))) void WarpProducts::multiply_strip(const Lane* lanes, Element element, int strip, int columns) {
    const auto row_of = [](int lane, int i) { return lane / 4 + i % 2 * 8; };
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            const Floats pair = floats_of(element, lanes[lane].a[strip][i]);
            float* to = a_ + row_of(lane, i) * side + lane % 4 * 2 + i / 2 * 8;
            to[0] = pair.low;
            to[1] = pair.high;
        }
        const float* from = lanes[lane].sums[strip];
        for (int i = 0; i < columns / 4; ++i) {
            std::memcpy(sums_ + row_of(lane, i) * columns + lane % 4 * 2 + i / 2 * 8, from + 2 * i, 8);
        }
    }
    add_tile_product(sums_, a_, b_, side, columns, 16);
    for (int lane = 0; lane < 32; ++lane) {
        float* to = lanes[lane].sums[strip];
        for (int i = 0; i < columns / 4; ++i) {
            std::memcpy(to + 2 * i, sums_ + row_of(lane, i) * columns + lane % 4 * 2 + i / 2 * 8, 8);
        }
    }
}

}  // namespace attn::sim
