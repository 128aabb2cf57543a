// What a launch tells others of: the flags by which kernels of several ranks wait for each other, and whether all that a
// flag stands for has been stored when it is released.
#pragma once
#include <cstdint>
#include <vector>

namespace attn::sim {

struct Cta;

// A flag tells that everything is there which its launch has stored to global memory by store_global and
// store_global_16. Ranks are threads of the host, so the flags themselves are its atomics.
class System {
  public:
    explicit System(Cta& cta) : cta_(cta) {}
    // A launch begins; one of its CTAs begins, and has ended.
    void begin();
    void reset();
    void ended();

    // By the current thread.
    void store();
    void fence();
    void add();
    void release();

  private:
    // When a thread stored last, by its own clock, 0 if it has not; who was the first to fence that, if anybody, and when.
    struct Stored {
        int32_t at = 0;
        int fencer = -1;
        int32_t fenced_at = 0;
    };

    Cta& cta_;
    std::vector<Stored> stored_;
    // Threads of the present CTA that have stored.
    std::vector<int> storing_;
    // Who has added to a counter in the present CTA, and when.
    int adder_ = -1;
    int32_t added_at_ = 0;
    // CTAs that ended before have stored; one of their threads has not fenced.
    bool others_stored_ = false;
    int unfenced_block_ = -1, unfenced_thread_ = -1;
    bool released_ = false;
};

}  // namespace attn::sim
