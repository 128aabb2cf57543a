// One CTA: its threads and the units of the multiprocessor that they use.
#pragma once
#include <string>

#include "barriers.h"
#include "clocks.h"
#include "copy_engine.h"
#include "hazards.h"
#include "named_barriers.h"
#include "registers.h"
#include "scheduler.h"
#include "shared_memory.h"
#include "system.h"
#include "tensor_cores.h"
#include "thread_copies.h"
#include "warp_products.h"
#include "warps.h"

namespace attn::sim {

struct Cta {
    // Everything is set up anew for CTA `block`; memory is kept for the next one.
    void reset(int block, int grid, int threads, int shared_bytes, uint64_t seed);
    // A thread has returned from the kernel: has it left something undone?
    void thread_ended(int thread);
    // All threads have.
    void ended();

    int block = 0, grid = 0, threads = 0, warpgroups = 0;
    std::string report;

    Clocks clocks;
    SharedMemory memory;
    Scheduler scheduler{*this};
    Hazards hazards{*this};
    Barriers barriers{*this};
    NamedBarriers named_barriers{*this};
    Warps warps{*this};
    WarpProducts warp_products{*this};
    ThreadCopies thread_copies{*this};
    CopyEngine copy_engine{*this};
    TensorCores tensor_cores{*this};
    Registers registers{*this};
    System system{*this};
};

// The one that the calling host thread runs.
Cta& cta();

}  // namespace attn::sim
