#include "scheduler.h"

#include <map>
#include <tuple>

#include "cta.h"
#include "fault.h"

namespace attn::sim {

namespace {

// Primitives that one CTA may call: a kernel that needs more is taken to run in circles.
constexpr uint64_t most_primitives = 100 * 1000 * 1000;
// Turns after which other warpgroups are slow.
constexpr uint64_t turns_of_a_mood = 2048;

}  // namespace

void Scheduler::reset(int threads, uint64_t seed) {
    random_ = Random(seed);
    // Where a fault has stopped the CTA before.
    for (size_t i = 0; i < threads_.size(); ++i) {
        if (!threads_[i].ended) fibres_[i]->abandon();
    }
    while (fibres_.size() < static_cast<size_t>(threads)) {
        fibres_.push_back(std::make_unique<Fibre>(&Scheduler::thread_main, this));
    }
    threads_.assign(threads, Thread());
    ready_.clear();
    for (int thread = 0; thread < threads; ++thread) {
        ready_.push_back(thread);
    }
    current_ = -1;
    ended_ = 0;
    now_ = primitives_ = 0;
    slow_ = 0;
    // One primitive in 16, 64 or 256 lets others go first.
    preempt_mask_ = (16ull << 2 * random_.below(3)) - 1;
    faulted_ = false;
}

void Scheduler::thread_main(void* self) {
    Scheduler& scheduler = *static_cast<Scheduler*>(self);
    scheduler.kernel_(scheduler.arguments_);
    Thread& thread = scheduler.threads_[scheduler.current_];
    thread.primitive = "the kernel's end";
    scheduler.cta_.thread_ended(scheduler.current_);
    thread.ended = true;
    ++scheduler.ended_;
}

void Scheduler::run(void (*kernel)(void*), void* arguments) {
    kernel_ = kernel;
    arguments_ = arguments;
    while (ended_ < static_cast<int>(threads_.size())) {
        if (ready_.empty()) {
            if (!cta_.copy_engine.deliver_next()) report_deadlock();
            continue;
        }
        cta_.copy_engine.deliver_due(++now_);
        current_ = pick();
        fibres_[current_]->resume();
        current_ = -1;
        if (faulted_) throw Fault();
    }
}

int Scheduler::pick() {
    if (now_ % turns_of_a_mood == 0) slow_ = static_cast<uint32_t>(random_.next() & random_.next());
    size_t at = random_.below(ready_.size());
    for (int again = 0; again < 3 && (slow_ >> ready_[at] / 128 & 1); ++again) {
        at = random_.below(ready_.size());
    }
    const int thread = ready_[at];
    ready_[at] = ready_.back();
    ready_.pop_back();
    return thread;
}

void Scheduler::step(const char* primitive) {
    threads_[current_].primitive = primitive;
    if (++primitives_ > most_primitives) {
        fault("livelock: the CTA has called %llu primitives", static_cast<unsigned long long>(most_primitives));
    }
    if ((random_.next() & preempt_mask_) == 0) {
        ready_.push_back(current_);
        pause();
    }
}

void Scheduler::block(const Wait& wait) {
    Thread& thread = threads_[current_];
    thread.wait = wait;
    thread.blocked = true;
    pause();
}

void Scheduler::wake(int index) {
    Thread& thread = threads_[index];
    if (thread.blocked) {
        thread.blocked = false;
        thread.wait = Wait();
        ready_.push_back(index);
    }
}

void Scheduler::leave_after_fault() {
    if (current_ < 0) throw Fault();
    faulted_ = true;
    pause();
    __builtin_unreachable();
}

// One line for each place where threads of a warpgroup stand.
void Scheduler::report_deadlock() {
    std::map<std::tuple<int, std::string>, int> counts;
    for (size_t i = 0; i < threads_.size(); ++i) {
        const Thread& thread = threads_[i];
        std::string place = "have ended";
        if (!thread.ended) {
            const Wait& wait = thread.wait;
            place = std::string("wait in ") + thread.primitive;
            switch (wait.on) {
                case Wait::Barrier:
                    place += std::string(" for the barrier at ") + name(wait.object).text + ", parity " +
                             std::to_string(wait.detail) + " (" + cta_.barriers.state(wait.object) + ")";
                    break;
                case Wait::NamedBarrier:
                    place += " at named barrier " + std::to_string(wait.object) + " (" +
                             cta_.named_barriers.state(static_cast<int>(wait.object)) + ")";
                    break;
                case Wait::Block:
                    place += " (" + cta_.named_barriers.state(0) + ")";
                    break;
                case Wait::Warp:
                    place += " in warp " + std::to_string(wait.object) + " (" +
                             cta_.warps.state(static_cast<int>(wait.object)) + ")";
                    break;
                case Wait::Wgmma:
                    place += " (" + cta_.tensor_cores.state(static_cast<int>(wait.object)) + ")";
                    break;
                case Wait::Nothing:
                    break;
            }
        }
        ++counts[{static_cast<int>(i) / 128, place}];
    }
    std::string text = "deadlock:";
    for (const auto& [place, count] : counts) {
        text += "\n  warpgroup " + std::to_string(std::get<0>(place)) + ": " + std::to_string(count) + " threads " +
                std::get<1>(place);
    }
    fault("%s", text.c_str());
}

}  // namespace attn::sim
