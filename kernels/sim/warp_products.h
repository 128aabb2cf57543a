// mma.sync: products of a warp, from registers to registers.
#pragma once
#include <cstdint>
#include <vector>

#include "attn_sim/mma.h"

namespace attn::sim {

struct Cta;

class WarpProducts {
  public:
    explicit WarpProducts(Cta& cta) : cta_(cta) {}
    void reset();

    // By the current thread; each returns when all 32 lanes have called it.
    void multiply(const Strips& strips, float* const* sums, const uint32_t (*a)[4], const uint32_t (&b)[4]);
    void multiply_shared(const Strips& strips, const SharedColumns& columns, float* const* sums, const uint32_t (*a)[4],
                         const uint32_t* rows);

  private:
    // Where a lane's registers are: it stands still while the warp multiplies.
    struct Lane {
        float* const* sums;
        const uint32_t (*a)[4];
        // Registers of B, or the rows at which it lies.
        const uint32_t* b;
    };

    void load_columns(const Lane* lanes, Element element, const SharedColumns& columns);
    void multiply_strip(const Lane* lanes, Element element, int strip, int columns);

    Cta& cta_;
    std::vector<Lane> lanes_;
    // Of the product under way: [depth][columns], and a strip, [16][depth] and [16][columns].
    float b_[32 * 256], a_[16 * 32], sums_[16 * 256];
};

}  // namespace attn::sim
