// Launches, their seeds and their reports.
#include <atomic>
#include <numeric>
#include <vector>

#include "attn_sim/host.h"
#include "cta.h"
#include "fault.h"

namespace attn {

namespace sim {

namespace {

constexpr int most_threads = 1024;
constexpr int most_shared_bytes = 232448;

// The seed, and how often it has been set: a host thread counts its launches from then on.
std::atomic<uint64_t> seed{0};
std::atomic<uint64_t> times_set{0};

struct Launches {
    uint64_t times_set = 0, count = 0;
    std::string report;
};

Launches& launches() {
    thread_local Launches mine;
    return mine;
}

bool shape_is_legal(LaunchShape shape) {
    return shape.blocks >= 1 && shape.threads >= 32 && shape.threads <= most_threads && shape.threads % 32 == 0 &&
           shape.shared_bytes >= 0 && shape.shared_bytes <= most_shared_bytes;
}

std::vector<int> shuffled(int count, Random& random) {
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    for (int i = count; i > 1; --i) {
        std::swap(order[i - 1], order[random.below(i)]);
    }
    return order;
}

}  // namespace

int run_launch(LaunchShape shape, void (*kernel)(void*), void* arguments) {
    Launches& mine = launches();
    if (mine.times_set != times_set) {
        mine.times_set = times_set;
        mine.count = 0;
    }
    const uint64_t of_process = seed;
    const uint64_t number = mine.count++;
    mine.report.clear();
    if (!shape_is_legal(shape)) {
        mine.report = "launch of " + std::to_string(shape.blocks) + " blocks of " + std::to_string(shape.threads) +
                      " threads with " + std::to_string(shape.shared_bytes) + " bytes of shared memory: at most " +
                      std::to_string(most_threads) + " threads, a multiple of 32, and " +
                      std::to_string(most_shared_bytes) + " bytes";
        return ATTN_SIM_FAULT;
    }
    Random random(of_process * 0x10001 + number);
    Cta& c = cta();
    c.system.begin();
    try {
        for (const int block : shuffled(shape.blocks, random)) {
            c.reset(block, shape.blocks, shape.threads, shape.shared_bytes, random.next());
            c.scheduler.run(kernel, arguments);
            c.ended();
        }
    } catch (const Fault&) {
        mine.report = c.report + "\n(seed " + std::to_string(of_process) + ", launch " + std::to_string(number) +
                      " of this host thread since the seed was set)";
        return ATTN_SIM_FAULT;
    }
    return ATTN_OK;
}

}  // namespace sim

int multiprocessors(int* count) {
    // Few, so that the CTAs of persistent kernels each get several tiles.
    *count = 3;
    return ATTN_OK;
}

// Little, so that small problems fill it.
int l2_cache_bytes(int* bytes) {
    *bytes = 512 << 10;
    return 0;
}

}  // namespace attn

extern "C" void attn_sim_seed(uint64_t seed) {
    attn::sim::seed = seed;
    ++attn::sim::times_set;
}

extern "C" const char* attn_sim_report(void) { return attn::sim::launches().report.c_str(); }
