// Who knows what to have happened: a vector clock for each thread.
//
// A clock has one component
//   for each thread: which of that thread's own events the owner knows. A thread counts on at each release;
//   for each warpgroup: how many of its wgmmas the owner knows to be finished;
//   for each barrier: how many of its phases the owner knows to be complete.
// Barriers carry clocks from those who arrive (release) to those who wait (acquire).
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attn::sim {

using Clock = std::vector<int32_t>;

// No clock reaches it.
constexpr int32_t never = INT32_MAX;

class Clocks {
  public:
    static constexpr int max_barriers = 64;

    void reset(int threads, int warpgroups);

    int finished_wgmmas(int warpgroup) const { return threads_ + warpgroup; }
    int completed_phases(int slot) const { return threads_ + warpgroups_ + slot; }
    bool is_thread(int component) const { return component < threads_; }
    bool is_barrier(int component) const { return component >= threads_ + warpgroups_; }
    int slot_of(int component) const { return component - threads_ - warpgroups_; }
    int size() const { return size_; }

    int32_t now(int thread) const { return of(thread)[thread]; }
    int32_t of(int thread, int component) const { return of(thread)[component]; }
    bool knows(int thread, int component, int32_t value) const { return of(thread)[component] >= value; }
    void learn(int thread, int component, int32_t value);

    // What the thread knows goes into `carrier`, and its later events get a later time.
    void release(int thread, Clock& carrier);
    void acquire(int thread, const Clock& carrier);
    static void join(Clock& into, const Clock& from);

  private:
    int32_t* of(int thread) { return table_.data() + static_cast<size_t>(thread) * stride_; }
    const int32_t* of(int thread) const { return table_.data() + static_cast<size_t>(thread) * stride_; }

    int threads_ = 0, warpgroups_ = 0, size_ = 0, stride_ = 0;
    std::vector<int32_t> table_;
};

}  // namespace attn::sim
