#include "clocks.h"

#include <algorithm>

namespace attn::sim {

namespace {

__attribute__((optimize("O3"))) void take_largest(int32_t* __restrict into, const int32_t* __restrict from, int count) {
    for (int i = 0; i < count; ++i) {
        into[i] = from[i] > into[i] ? from[i] : into[i];
    }
}

}  // namespace

void Clocks::reset(int threads, int warpgroups) {
    threads_ = threads;
    warpgroups_ = warpgroups;
    size_ = threads + warpgroups + max_barriers;
    stride_ = (size_ + 15) / 16 * 16;
    table_.assign(static_cast<size_t>(threads) * stride_, 0);
    // Time begins at 1: 0 is what a thread knows of the others at the start.
    for (int thread = 0; thread < threads; ++thread) {
        of(thread)[thread] = 1;
    }
}

void Clocks::learn(int thread, int component, int32_t value) {
    int32_t& known = of(thread)[component];
    known = std::max(known, value);
}

void Clocks::release(int thread, Clock& carrier) {
    take_largest(carrier.data(), of(thread), size_);
    ++of(thread)[thread];
}

void Clocks::acquire(int thread, const Clock& carrier) { take_largest(of(thread), carrier.data(), size_); }

void Clocks::join(Clock& into, const Clock& from) {
    take_largest(into.data(), from.data(), static_cast<int>(from.size()));
}

}  // namespace attn::sim
