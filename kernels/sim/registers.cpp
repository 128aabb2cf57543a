#include "registers.h"

#include <algorithm>

#include "cta.h"
#include "fault.h"

namespace attn::sim {

namespace {

constexpr int file = 65536;
constexpr int least = 24, most = 256;

}  // namespace

void Registers::reset() {
    warpgroups_.assign(cta_.warpgroups, Warpgroup());
    done_.assign(cta_.threads, false);
}

// What a kernel bounded to one CTA of so many threads is compiled for.
int Registers::at_launch() const { return std::min(255, file / cta_.threads / 8 * 8); }

void Registers::release(int count) { set(count, false); }

void Registers::acquire(int count) { set(count, true); }

void Registers::set(int count, bool more) {
    const int me = cta_.scheduler.current();
    if (count < least || count > most || count % 8 != 0) {
        fault("%d registers: not a multiple of 8 from %d to %d", count, least, most);
    }
    if (more ? count < at_launch() : count > at_launch()) {
        fault("%d registers are %s than the %d of the launch", count, more ? "fewer" : "more", at_launch());
    }
    if (me / 128 >= cta_.warpgroups) {
        fault("the warpgroup of this thread is not complete");
    }
    if (done_[me]) {
        fault("this thread sets its registers a second time");
    }
    done_[me] = true;
    Warpgroup& warpgroup = warpgroups_[me / 128];
    if (warpgroup.threads > 0 && warpgroup.count != count) {
        fault("%d registers, but other threads of the warpgroup have set %d", count, warpgroup.count);
    }
    warpgroup.count = count;
    ++warpgroup.threads;
    // Those that have not chosen yet can still release down to the least.
    int held = 0;
    for (const Warpgroup& one : warpgroups_) {
        held += 128 * (one.count > 0 ? one.count : std::min(least, at_launch()));
    }
    // What is shared out is what the launch took, not all that the multiprocessor has.
    const int pool = cta_.threads * at_launch();
    if (held > pool) {
        fault("the warpgroups would hold %d registers, and the launch took %d", held, pool);
    }
}

void Registers::ended() const {
    int held = 0;
    bool set = false;
    for (size_t i = 0; i < warpgroups_.size(); ++i) {
        const Warpgroup& one = warpgroups_[i];
        if (one.threads % 128 != 0) {
            fault("%d of the 128 threads of warpgroup %zu have set their registers to %d", one.threads, i, one.count);
        }
        set = set || one.threads > 0;
        held += 128 * (one.threads > 0 ? one.count : at_launch());
    }
    const int pool = cta_.threads * at_launch();
    if (set && held > pool) {
        fault("the warpgroups hold %d registers, and the launch took %d: one of them has not released", held, pool);
    }
}

}  // namespace attn::sim
