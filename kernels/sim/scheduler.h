// The threads of one CTA, run in turn as fibres, in an order that the seed decides.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fibre.h"
#include "random.h"

namespace attn::sim {

struct Cta;

// Why a thread does not run.
struct Wait {
    enum On { Nothing, Barrier, NamedBarrier, Block, Warp, Wgmma };
    On on = Nothing;
    // A barrier's address and the parity waited for; a named barrier's id; the number of wgmmas.
    uint32_t object = 0, detail = 0;
};

class Scheduler {
  public:
    explicit Scheduler(Cta& cta) : cta_(cta) {}

    void reset(int threads, uint64_t seed);
    // Runs every thread to its end. Throws Fault.
    void run(void (*kernel)(void*), void* arguments);

    // The thread that runs, -1 if none does.
    int current() const { return current_; }
    const char* primitive() const { return threads_[current_].primitive; }
    int ended() const { return ended_; }
    Random& random() { return random_; }
    // Grows by one each time that a thread gets its turn.
    uint64_t now() const { return now_; }

    // At the start of each primitive: counts it, and now and then lets other threads go first.
    void step(const char* primitive);
    // The current thread stops until it is woken. It may be woken for nothing: callers look again.
    void block(const Wait& wait);
    void wake(int thread);
    // The current thread waits for another launch: what it calls meanwhile does not count as running in circles.
    void excuse() { primitives_ = 0; }
    [[noreturn]] void leave_after_fault();

  private:
    struct Thread {
        const char* primitive = "";
        Wait wait;
        bool blocked = false, ended = false;
    };

    static void thread_main(void* self);
    int pick();
    void pause() { fibres_[current_]->pause(); }
    [[noreturn]] void report_deadlock();

    Cta& cta_;
    std::vector<std::unique_ptr<Fibre>> fibres_;
    std::vector<Thread> threads_;
    std::vector<int> ready_;
    Random random_;
    void (*kernel_)(void*) = nullptr;
    void* arguments_ = nullptr;
    int current_ = -1, ended_ = 0;
    uint64_t now_ = 0, primitives_ = 0, preempt_mask_ = 0;
    // Warpgroups that get fewer turns at present.
    uint32_t slow_ = 0;
    bool faulted_ = false;
};

}  // namespace attn::sim
