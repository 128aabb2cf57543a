#include "named_barriers.h"

#include <algorithm>

#include "cta.h"
#include "fault.h"

namespace attn::sim {

void NamedBarriers::reset() {
    for (NamedBarrier& barrier : barriers_) {
        barrier.threads = barrier.arrived = 0;
        barrier.phase = 0;
        barrier.arriving.clear();
        barrier.waiting.clear();
        barrier.last_arrival.clear();
    }
}

void NamedBarriers::check(int id, int threads) const {
    if (id < 1 || id > 15) {
        fault("named barriers are 1 to 15, not %d", id);
    }
    if (threads < 32 || threads % 32 != 0 || threads > cta_.threads) {
        fault("named barrier %d cannot count %d threads: a multiple of 32, at most the %d of the CTA", id, threads,
              cta_.threads);
    }
}

bool NamedBarriers::arrive_at(int id, int threads) {
    const int me = cta_.scheduler.current();
    NamedBarrier& barrier = barriers_[id];
    if (barrier.arriving.empty()) {
        barrier.arriving.assign(cta_.clocks.size(), 0);
        barrier.last_arrival.assign(cta_.threads, 0);
    }
    if (barrier.arrived == 0) {
        barrier.threads = threads;
        std::fill(barrier.arriving.begin(), barrier.arriving.end(), 0);
    } else if (barrier.threads != threads) {
        fault("named barrier %d is for %d threads here, but %d have arrived at it for %d", id, threads, barrier.arrived,
              barrier.threads);
    }
    cta_.clocks.release(me, barrier.arriving);
    if (++barrier.arrived < barrier.threads) return false;
    for (const int thread : barrier.waiting) {
        cta_.clocks.acquire(thread, barrier.arriving);
        cta_.scheduler.wake(thread);
    }
    barrier.waiting.clear();
    barrier.arrived = 0;
    ++barrier.phase;
    return true;
}

void NamedBarriers::wait_at(int id) {
    NamedBarrier& barrier = barriers_[id];
    const uint32_t phase = barrier.phase;
    barrier.waiting.push_back(cta_.scheduler.current());
    while (barrier.phase == phase) {
        cta_.scheduler.block({id == 0 ? Wait::Block : Wait::NamedBarrier, static_cast<uint32_t>(id), 0});
    }
}

void NamedBarriers::block_sync() {
    if (cta_.scheduler.ended() > 0) {
        fault("divergence: %d threads of the CTA have ended and cannot take part", cta_.scheduler.ended());
    }
    if (arrive_at(0, cta_.threads)) {
        cta_.clocks.acquire(cta_.scheduler.current(), barriers_[0].arriving);
    } else {
        wait_at(0);
    }
}

void NamedBarriers::sync(int id, int threads) {
    check(id, threads);
    if (arrive_at(id, threads)) {
        cta_.clocks.acquire(cta_.scheduler.current(), barriers_[id].arriving);
    } else {
        wait_at(id);
    }
}

void NamedBarriers::arrive(int id, int threads) {
    check(id, threads);
    // To arrive and then to wait in the same phase is the way to pass a barrier that others will open next time.
    const NamedBarrier& barrier = barriers_[id];
    const int me = cta_.scheduler.current();
    const uint32_t phase = barrier.phase;
    if (!barrier.last_arrival.empty() && barrier.last_arrival[me] == phase + 1) {
        fault("over-arrival: this thread arrives at named barrier %d twice in one phase", id);
    }
    arrive_at(id, threads);
    barriers_[id].last_arrival[me] = phase + 1;
}

std::string NamedBarriers::state(int id) const {
    const NamedBarrier& barrier = barriers_[id];
    return std::to_string(barrier.arrived) + " of " + std::to_string(barrier.threads) + " threads have arrived";
}

void NamedBarriers::thread_ended(int thread) const {
    if (barriers_[0].arrived > 0) {
        fault("divergence: thread %d ends while %d threads wait in block_sync", thread, barriers_[0].arrived);
    }
}

}  // namespace attn::sim
