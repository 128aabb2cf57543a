// A jump between stacks is what fortified builds forbid longjmp to do.
#undef _FORTIFY_SOURCE
#include "fibre.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace attn::sim {

namespace {

constexpr size_t stack_bytes = 128 * 1024;

// Stacks begin at different places of their pages: at the same, the frames of all fibres would share a few sets of the
// processor's caches, and each would push the others out.
constexpr size_t stagger_bytes = 17 * 64, stagger_range = 32 * 1024;
std::atomic<size_t> fibres_made{0};

// Stands at the far end of each stack. (Guard pages would be surer, but two mappings for each thread of each launch of
// each rank are more than a process may have.)
constexpr uint64_t canary = 0x0ddc0ffee0ddf00d;

// The fibre that begins: makecontext passes no pointers.
thread_local Fibre* beginning;

[[noreturn]] void die(const char* why) {
    std::fprintf(stderr, "attn simulator: %s\n", why);
    std::abort();
}

}  // namespace

Fibre::Fibre(void (*body)(void*), void* argument) : body_(body), argument_(argument) {
    void* block =
        mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) die("no memory for the stack of a thread");
    stack_ = static_cast<char*>(block);
    std::memcpy(stack_, &canary, sizeof canary);
    stagger_ = fibres_made++ * stagger_bytes % stagger_range;
}

Fibre::~Fibre() { munmap(stack_, stack_bytes); }

void Fibre::enter() {
    Fibre* self = beginning;
    for (;;) {
        self->body_(self->argument_);
        self->pause();
    }
}

void Fibre::begin() {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack_;
    context.uc_stack.ss_size = stack_bytes - stagger_;
    context.uc_link = nullptr;
    makecontext(&context, &Fibre::enter, 0);
    beginning = this;
    started_ = true;
    setcontext(&context);
}

// swapcontext would do the same with two system calls for the signal mask each time.
void Fibre::resume() {
    if (_setjmp(outside_) == 0) {
        if (started_) _longjmp(inside_, 1);
        begin();
    }
}

void Fibre::pause() {
    uint64_t found;
    std::memcpy(&found, stack_, sizeof found);
    if (found != canary) die("a thread of a kernel has overrun its stack");
    if (_setjmp(inside_) == 0) _longjmp(outside_, 1);
}

}  // namespace attn::sim
