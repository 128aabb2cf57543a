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

    // By the current thread; returns when all 32 lanes have called it.
    void multiply(const Strips& strips, float* const* sums, const uint32_t (*a)[4], const uint32_t (&b)[4]);

  private:
    // Where a lane's registers are: it stands still while the warp multiplies.
    struct Lane {
        float* const* sums;
        const uint32_t (*a)[4];
        const uint32_t* b;
    };

    static void multiply_strip(const Lane* lanes, Element element, int strip, const float* b);

    Cta& cta_;
    std::vector<Lane> lanes_;
};

}  // namespace attn::sim
