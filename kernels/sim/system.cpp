#include "system.h"

#include "cta.h"
#include "fault.h"

namespace attn::sim {

void System::begin() {
    others_stored_ = released_ = false;
    unfenced_block_ = unfenced_thread_ = -1;
}

void System::reset() {
    stored_.assign(cta_.threads, Stored());
    storing_.clear();
    adder_ = -1;
}

void System::ended() {
    for (const int thread : storing_) {
        others_stored_ = true;
        if (stored_[thread].fencer >= 0 || unfenced_block_ >= 0) continue;
        unfenced_block_ = cta_.block;
        unfenced_thread_ = thread;
    }
}

void System::store() {
    if (released_) {
        fault("stores to global memory after a thread of its launch has released a flag, which tells that all is there");
    }
    const int me = cta_.scheduler.current();
    if (stored_[me].at == 0) storing_.push_back(me);
    stored_[me] = {cta_.clocks.now(me), -1, 0};
}

void System::fence() {
    const int me = cta_.scheduler.current();
    for (const int thread : storing_) {
        Stored& stored = stored_[thread];
        if (stored.fencer >= 0 || !cta_.clocks.knows(me, thread, stored.at)) continue;
        stored.fencer = me;
        stored.fenced_at = cta_.clocks.now(me);
    }
}

void System::add() {
    adder_ = cta_.scheduler.current();
    added_at_ = cta_.clocks.now(adder_);
}

void System::release() {
    const int me = cta_.scheduler.current();
    if (unfenced_block_ >= 0) {
        fault("releases a flag, but thread %d of CTA %d has stored to global memory with no fence_system behind it",
              unfenced_thread_, unfenced_block_);
    }
    for (const int thread : storing_) {
        const Stored& stored = stored_[thread];
        const bool knows_fence = stored.fencer >= 0 && cta_.clocks.knows(me, stored.fencer, stored.fenced_at);
        if (!knows_fence && !cta_.clocks.knows(me, thread, stored.at)) {
            fault("releases a flag, but thread %d has stored to global memory with no barrier in between", thread);
        }
    }
    if (others_stored_ && (adder_ < 0 || !cta_.clocks.knows(me, adder_, added_at_))) {
        fault("releases a flag, but knows of no counter by which other CTAs could have told that they have stored");
    }
    released_ = true;
}

}  // namespace attn::sim
