#include "barriers.h"

#include <algorithm>

#include "cta.h"
#include "fault.h"

namespace attn::sim {

namespace {

// What the hardware's counters hold.
constexpr int most_arrivals = (1 << 20) - 1;
constexpr int64_t most_bytes = (1 << 20) - 1;

}  // namespace

void Barriers::reset() {
    barriers_.clear();
    slots_.assign((cta_.memory.bytes() + 7) / 8, -1);
}

int Barriers::find(SharedAddress address) const {
    cta_.memory.check(address, 8, 8);
    return slots_[(address - cta_.memory.base()) / 8];
}

int Barriers::usable(SharedAddress address) const {
    const int slot = find(address);
    if (slot < 0) {
        fault("no barrier has been initialised at %s", name(address).text);
    }
    const Barrier& barrier = barriers_[slot];
    if (barrier.fenced_at == never) {
        fault("the barrier at %s is used before a barrier_init_fence by thread %d, which initialised it",
              name(address).text, barrier.initialiser);
    }
    if (!cta_.clocks.knows(cta_.scheduler.current(), barrier.initialiser, barrier.fenced_at)) {
        fault("the barrier at %s is used before this thread has met thread %d, which initialised it, at a block_sync",
              name(address).text, barrier.initialiser);
    }
    return slot;
}

void Barriers::init(SharedAddress address, int arrivals) {
    if (find(address) >= 0) {
        fault("the barrier at %s is initialised a second time", name(address).text);
    }
    if (arrivals < 1 || arrivals > most_arrivals) {
        fault("the barrier at %s cannot count %d arrivals", name(address).text, arrivals);
    }
    if (barriers_.size() == Clocks::max_barriers) {
        fault("the simulator follows %d barriers at most", Clocks::max_barriers);
    }
    slots_[(address - cta_.memory.base()) / 8] = static_cast<int16_t>(barriers_.size());
    cta_.hazards.place_barrier(address);
    Barrier barrier{};
    barrier.address = address;
    barrier.arrivals = barrier.pending = arrivals;
    barrier.initialiser = cta_.scheduler.current();
    barrier.arriving.assign(cta_.clocks.size(), 0);
    barrier.completed.assign(cta_.clocks.size(), 0);
    barriers_.push_back(std::move(barrier));
}

void Barriers::fence_init() {
    const int me = cta_.scheduler.current();
    for (Barrier& barrier : barriers_) {
        if (barrier.initialiser == me && barrier.fenced_at == never) barrier.fenced_at = cta_.clocks.now(me);
    }
}

void Barriers::expect(SharedAddress address, int bytes) {
    Barrier& barrier = barriers_[usable(address)];
    if (bytes < 0 || bytes > most_bytes) {
        fault("the barrier at %s cannot expect %d bytes", name(address).text, bytes);
    }
    add_bytes(barrier, bytes);
    arrive_at(barrier);
}

void Barriers::arrive(SharedAddress address) { arrive_at(barriers_[usable(address)]); }

void Barriers::arrive_at(Barrier& barrier) {
    if (barrier.pending == 0) {
        fault("over-arrival: phase %d of the barrier at %s has had its %d arrivals and waits for %lld bytes",
              barrier.phases, name(barrier.address).text, barrier.arrivals, static_cast<long long>(barrier.bytes));
    }
    cta_.clocks.release(cta_.scheduler.current(), barrier.arriving);
    --barrier.pending;
    complete_if_done(barrier);
}

void Barriers::add_bytes(Barrier& barrier, int64_t bytes) {
    barrier.bytes += bytes;
    if (barrier.bytes > most_bytes || barrier.bytes < -most_bytes) {
        fault("the barrier at %s cannot count %lld bytes", name(barrier.address).text,
              static_cast<long long>(barrier.bytes));
    }
}

void Barriers::complete_if_done(Barrier& barrier) {
    if (barrier.pending > 0 || barrier.bytes > 0) return;
    if (barrier.bytes < 0) {
        fault("phase %d of the barrier at %s has received %lld bytes more than it was told to expect", barrier.phases,
              name(barrier.address).text, static_cast<long long>(-barrier.bytes));
    }
    ++barrier.phases;
    barrier.pending = barrier.arrivals;
    Clocks::join(barrier.completed, barrier.arriving);
    std::fill(barrier.arriving.begin(), barrier.arriving.end(), 0);
    for (const int thread : barrier.waiting) {
        cta_.scheduler.wake(thread);
    }
    barrier.waiting.clear();
}

void Barriers::wait(SharedAddress address, uint32_t parity) {
    const int slot = usable(address);
    if (parity > 1) {
        fault("a parity is 0 or 1, not %u", parity);
    }
    const int me = cta_.scheduler.current();
    // Barriers are initialised by other threads meanwhile: the reference must be taken anew after a block.
    while ((barriers_[slot].phases & 1) == static_cast<int32_t>(parity)) {
        barriers_[slot].waiting.push_back(me);
        cta_.scheduler.block({Wait::Barrier, address, parity});
    }
    Barrier& barrier = barriers_[slot];
    barrier.seen = std::max(barrier.seen, barrier.phases);
    cta_.clocks.acquire(me, barrier.completed);
    cta_.clocks.learn(me, cta_.clocks.completed_phases(slot), barrier.phases);
}

int Barriers::begin_load(SharedAddress address) {
    const int slot = usable(address);
    ++barriers_[slot].loads_in_flight;
    barriers_[slot].loaded = barriers_[slot].phases;
    return slot;
}

void Barriers::complete_load(int slot, int32_t phase, int bytes, int thread) {
    Barrier& barrier = barriers_[slot];
    --barrier.loads_in_flight;
    if (barrier.phases != phase) {
        fault_of(thread, "tma_load",
                 "%d bytes were issued in phase %d of the barrier at %s and arrive in phase %d: the phase was told to "
                 "expect too few bytes",
                 bytes, phase, name(barrier.address).text, barrier.phases);
    }
    add_bytes(barrier, -bytes);
    complete_if_done(barrier);
}

std::string Barriers::state(SharedAddress address) const {
    const Barrier& barrier = barriers_[find(address)];
    return "phase " + std::to_string(barrier.phases) + " lacks " + std::to_string(barrier.pending) + " of " +
           std::to_string(barrier.arrivals) + " arrivals and " + std::to_string(barrier.bytes) + " bytes";
}

void Barriers::ended() const {
    for (const Barrier& barrier : barriers_) {
        if (barrier.loads_in_flight > 0) {
            fault("the CTA ends with %d tma_loads in flight on the barrier at %s", barrier.loads_in_flight,
                  name(barrier.address).text);
        }
        if (barrier.bytes < 0) {
            fault("the barrier at %s has received %lld bytes that it was never told to expect",
                  name(barrier.address).text, static_cast<long long>(-barrier.bytes));
        }
        if (barrier.bytes > 0) {
            fault("the CTA ends while the barrier at %s expects %lld bytes", name(barrier.address).text,
                  static_cast<long long>(barrier.bytes));
        }
        if (barrier.loaded >= barrier.seen) {
            fault("no thread has waited for the tma_load in phase %d of the barrier at %s: it may outlive the CTA",
                  barrier.loaded, name(barrier.address).text);
        }
    }
}

}  // namespace attn::sim
