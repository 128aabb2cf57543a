// A small generator of random numbers: the same seed gives the same launch.
#pragma once
#include <cstdint>

namespace attn::sim {

class Random {
  public:
    explicit Random(uint64_t seed = 0) : state_(seed) {}

    // splitmix64.
    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }

    uint64_t below(uint64_t bound) { return next() % bound; }

  private:
    uint64_t state_;
};

}  // namespace attn::sim
