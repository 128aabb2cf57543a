// Flags between launches, and what lanes tell each other.
#pragma once
#include <thread>
#include <vector>

#include "harness.h"

namespace attn::selftest {

enum class Flag { Right, NoBarrier, NoFence, NoMeeting, NotCounted, FirstTells, StoresOn };

// Every thread of every CTA stores its number; the last CTA tells by a flag.
template <Flag Is>
ATTN_KERNEL(64, 1)
flag_kernel(uint32_t* numbers, uint32_t* counter, uint32_t* flag) {
    store_global(numbers + block_index() * 64 + thread_index(), uint32_t(thread_index()));
    if (Is != Flag::NoBarrier) block_sync();
    if (thread_index() >= 32) return;
    uint32_t before = 0;
    if (thread_index() == 0) {
        if (Is != Flag::NoFence) fence_system();
        if (Is != Flag::NotCounted) before = add_to_counter(counter, 1);
    }
    before = value_of_lane(before, 0);
    if (Is != Flag::NotCounted && before + 1 != (Is == Flag::FirstTells ? 1u : uint32_t(grid_size()))) return;
    if (Is != Flag::NoMeeting) warp_sync();
    if (thread_index() == 1) store_release_system(flag, 1);
    if (Is == Flag::StoresOn && thread_index() == 1) store_global(numbers, 7u);
}

// Two launches at a time, each of which waits for the other's flag.
ATTN_KERNEL(32, 1) greeting_kernel(uint32_t* mine, const uint32_t* theirs, uint32_t* number, const uint32_t* their_number) {
    if (thread_index() == 0) {
        store_global(number, 5u);
        store_release_system(mine, 1);
        const uint64_t began = nanoseconds();
        while (load_acquire_system(theirs) != 1) pause_for(50);
        *number = *their_number + uint32_t(nanoseconds() < began);
    }
    warp_sync();
}

ATTN_KERNEL(32, 1) lane_kernel(uint32_t* results, int lane) {
    const int me = thread_index();
    results[me] = value_of_lane(uint32_t(me * me), me ^ lane) + ballot(me % 3 == 0);
}

inline void test_system() {
    std::vector<uint32_t> numbers(3 * 64);
    uint32_t counter = 0, flag = 0;
    const LaunchShape shape = {3, 64, 0};
    const auto reset = [&] { counter = flag = 0; };
    const auto wrong = [&](const char* claim, const char* text, auto kernel) {
        for (uint64_t seed = 0; seed < seeds; ++seed) {
            reset();
            attn_sim_seed(seed);
            const bool found = launch(kernel, shape, nullptr, numbers.data(), &counter, &flag) == ATTN_SIM_FAULT &&
                               says(attn_sim_report(), text);
            if (!found) return expect(false, claim, attn_sim_report());
        }
        expect(true, claim);
    };
    for (uint64_t seed = 0; seed < seeds; ++seed) {
        reset();
        attn_sim_seed(seed);
        const int status = launch(flag_kernel<Flag::Right>, shape, nullptr, numbers.data(), &counter, &flag);
        expect(status == ATTN_OK && flag == 1, "the last CTA tells of all", attn_sim_report());
    }
    wrong("threads meet before one fences for all", "no fence_system behind it", flag_kernel<Flag::NoBarrier>);
    wrong("stores of other CTAs are fenced", "no fence_system behind it", flag_kernel<Flag::NoFence>);
    wrong("lanes meet before one tells for all", "no counter", flag_kernel<Flag::NoMeeting>);
    wrong("a flag knows of the other CTAs", "no counter|has released a flag", flag_kernel<Flag::NotCounted>);
    wrong("nobody tells before the last", "has released a flag", flag_kernel<Flag::FirstTells>);
    wrong("nothing is stored behind a flag", "has released a flag", flag_kernel<Flag::StoresOn>);

    uint32_t flags[2] = {0, 0}, own[2] = {0, 0};
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < 2; ++rank) {
        ranks.emplace_back([&, rank] {
            launch(greeting_kernel, LaunchShape{1, 32, 0}, nullptr, flags + rank, flags + 1 - rank, own + rank,
                   own + 1 - rank);
        });
    }
    for (std::thread& rank : ranks) rank.join();
    expect(own[0] == 5 && own[1] == 5, "launches of two host threads wait for each other");

    uint32_t results[32];
    passes("lanes tell each other", lane_kernel, LaunchShape{1, 32, 0}, results, 1);
    bool right = true;
    const uint32_t thirds = 0x49249249;
    for (uint32_t lane = 0; lane < 32; ++lane) right = right && results[lane] == (lane ^ 1) * (lane ^ 1) + thirds;
    expect(right, "lanes get each other's values");
    faults("there are 32 lanes", "there is no lane", lane_kernel, LaunchShape{1, 32, 0}, results, 32);
}

}  // namespace attn::selftest
