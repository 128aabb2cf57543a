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
        // [k][column].
        float columns[side * side];
        for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 4; ++i) {
                const Floats pair = floats_of(strips.element, lanes[lane].b[i]);
                const int k = lane % 4 * 2 + i % 2 * 8, column = lane / 4 + i / 2 * 8;
                columns[k * side + column] = pair.low;
                columns[(k + 1) * side + column] = pair.high;
            }
        }
        for (int strip = 0; strip < strips.count; ++strip) {
            multiply_strip(lanes, strips.element, strip, columns);
        }
    });
}

void WarpProducts::multiply_strip(const Lane* lanes, Element element, int strip, const float* b) {
    // [row][k] and [row][column].
    float a[side * side], sums[side * side];
    const auto row_of = [](int lane, int i) { return lane / 4 + i % 2 * 8; };
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            const Floats pair = floats_of(element, lanes[lane].a[strip][i]);
            float* to = a + row_of(lane, i) * side + lane % 4 * 2 + i / 2 * 8;
            to[0] = pair.low;
            to[1] = pair.high;
            std::memcpy(sums + row_of(lane, i) * side + lane % 4 * 2 + i / 2 * 8, lanes[lane].sums[strip] + 2 * i, 8);
        }
    }
    add_tile_product(sums, a, b, side, side);
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            std::memcpy(lanes[lane].sums[strip] + 2 * i, sums + row_of(lane, i) * side + lane % 4 * 2 + i / 2 * 8, 8);
        }
    }
}

}  // namespace attn::sim
