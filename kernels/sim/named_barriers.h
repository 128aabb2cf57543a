// block_sync and the named barriers 1 to 15.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "clocks.h"

namespace attn::sim {

struct Cta;

class NamedBarriers {
  public:
    explicit NamedBarriers(Cta& cta) : cta_(cta) {}
    void reset();

    // By the current thread.
    void block_sync();
    void sync(int id, int threads);
    void arrive(int id, int threads);

    // Where the barrier stands, for the report of a deadlock.
    std::string state(int id) const;
    // A fault if a thread ends while others wait for it in block_sync.
    void thread_ended(int thread) const;

  private:
    struct NamedBarrier {
        // Of the present phase: how many threads it is for (0 before the first arrives), and how many have arrived.
        int threads = 0, arrived = 0;
        uint32_t phase = 0;
        Clock arriving;
        std::vector<int> waiting;
        // For each thread: one more than the phase of its last `arrive`.
        std::vector<uint32_t> last_arrival;
    };

    // True if this was the last arrival of the phase.
    bool arrive_at(int id, int threads);
    void wait_at(int id);
    void check(int id, int threads) const;

    Cta& cta_;
    // 0 is block_sync.
    NamedBarrier barriers_[16];
};

}  // namespace attn::sim
