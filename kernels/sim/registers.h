// setmaxnreg: warpgroups hand registers to each other.
#pragma once
#include <vector>

namespace attn::sim {

struct Cta;

class Registers {
  public:
    explicit Registers(Cta& cta) : cta_(cta) {}
    void reset();

    // By the current thread.
    void release(int count);
    void acquire(int count);
    // A fault if a warpgroup did it in part, or the CTA holds more than the multiprocessor has.
    void ended() const;

  private:
    struct Warpgroup {
        // 0: as at the launch.
        int count = 0;
        int threads = 0;
    };

    void set(int count, bool more);
    int at_launch() const;

    Cta& cta_;
    std::vector<Warpgroup> warpgroups_;
    std::vector<bool> done_;
};

}  // namespace attn::sim
