#include "cta.h"

#include <cstdarg>
#include <cstdio>

#include "fault.h"

namespace attn::sim {

Cta& cta() {
    // Ranks are threads of the host, and each may launch kernels.
    thread_local Cta mine;
    return mine;
}

void Cta::reset(int block_, int grid_, int threads_, int shared_bytes, uint64_t seed) {
    block = block_;
    grid = grid_;
    threads = threads_;
    warpgroups = threads_ / 128;
    Random random(seed);
    // The hardware promises 16 bytes.
    const SharedAddress base = 1024 + static_cast<SharedAddress>(random.below(64)) * 16;
    memory.reset(base, static_cast<uint32_t>(shared_bytes));
    clocks.reset(threads, warpgroups);
    scheduler.reset(threads, random.next());
    hazards.reset();
    barriers.reset();
    named_barriers.reset();
    warps.reset();
    warp_products.reset();
    thread_copies.reset();
    copy_engine.reset();
    tensor_cores.reset();
    registers.reset();
    system.reset();
}

void Cta::thread_ended(int thread) {
    named_barriers.thread_ended(thread);
    tensor_cores.thread_ended(thread);
    copy_engine.thread_ended(thread);
    thread_copies.thread_ended(thread);
}

void Cta::ended() {
    barriers.ended();
    registers.ended();
    copy_engine.ended();
    system.ended();
}

namespace {

[[noreturn]] void report(int thread, const char* primitive, const char* format, va_list arguments) {
    Cta& c = cta();
    char where[160];
    if (thread < 0) {
        std::snprintf(where, sizeof where, "CTA %d of %d: ", c.block, c.grid);
    } else {
        std::snprintf(where, sizeof where, "CTA %d of %d, thread %d (warpgroup %d, warp %d, lane %d), %s: ", c.block,
                      c.grid, thread, thread / 128, thread / 32, thread % 32, primitive);
    }
    char text[4096];
    std::vsnprintf(text, sizeof text, format, arguments);
    c.report = where;
    c.report += text;
    c.scheduler.leave_after_fault();
}

}  // namespace

void fault(const char* format, ...) {
    const Scheduler& scheduler = cta().scheduler;
    const int thread = scheduler.current();
    va_list arguments;
    va_start(arguments, format);
    report(thread, thread < 0 ? "" : scheduler.primitive(), format, arguments);
}

void fault_of(int thread, const char* primitive, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(thread, primitive, format, arguments);
}

AddressName name(uint32_t address) {
    AddressName result;
    std::snprintf(result.text, sizeof result.text, "shared%+lld (0x%x)",
                  static_cast<long long>(address) - cta().memory.base(), address);
    return result;
}

}  // namespace attn::sim
