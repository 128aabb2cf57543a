// mbarriers, named barriers, block_sync.
#pragma once
#include "harness.h"

namespace attn::selftest {

enum class Barrier {
    Right,
    NeverInitialised,
    NotFenced,
    NotMet,
    OnlyShuffled,
    InitialisedTwice,
    Misaligned,
    Outside,
    TooMany,
    NoArrivals,
    NotAParity,
    NotBytes,
    WrongCount,
    WrongParity,
    PassedBy,
    OverArrival,
    BytesLeftOver,
    StoreOverIt,
    PinOverIt,
};

// Two warps, each of whose first lanes arrives; all threads wait, twice.
template <Barrier Is>
ATTN_KERNEL(64, 1)
barrier_kernel() {
    const SharedAddress barrier = shared_base() + 16 + (Is == Barrier::Misaligned ? 4 : 0);
    if (thread_index() == 0 && Is != Barrier::NeverInitialised) {
        barrier_init(Is == Barrier::Outside ? shared_base() + 1024 : barrier, Is == Barrier::NoArrivals   ? 0
                                                                              : Is == Barrier::WrongCount ? 3
                                                                                                          : 2);
        if (Is == Barrier::InitialisedTwice) barrier_init(barrier, 2);
        if (Is != Barrier::NotFenced) barrier_init_fence();
    }
    if (Is == Barrier::OnlyShuffled) {
        shuffle_xor(0.0f, 1);
    } else if (Is != Barrier::NotMet) {
        block_sync();
    }
    if (Is == Barrier::TooMany) make_barriers(barrier + 64, 64, 1);
    if (Is == Barrier::StoreOverIt && thread_index() == 0) store_shared_16(shared_base() + 16, 1, 2, 3, 4);
    pin_before_wait(Is == Barrier::PinOverIt ? barrier : barrier + 8, 1.0f, 2.0f);
    if (Is == Barrier::OverArrival && thread_index() == 0) barrier_expect(barrier, 16);
    if (Is == Barrier::NotBytes && thread_index() == 0) barrier_expect(barrier, -16);
    for (uint32_t round = 0; round < 2; ++round) {
        if (thread_index() % 32 == 0) barrier_arrive(barrier);
        barrier_wait(barrier, Is == Barrier::WrongParity ? 0 : Is == Barrier::NotAParity ? 2 : round);
        // A thread that nobody waits for could come to look at the barrier only when the next phase has ended too.
        if (Is != Barrier::PassedBy) block_sync();
    }
    if (Is == Barrier::BytesLeftOver && thread_index() == 0) barrier_expect(barrier, 16);
}

enum class Named {
    Right,
    BlockSyncId,
    TooLargeId,
    NotOfWarps,
    TooMany,
    OtherCount,
    OverArrival,
    TooFewArrive,
    EndedEarly,
};

// Three warps: warp 0 lets warp 1 go on, warp 1 lets warp 2.
template <Named Is>
ATTN_KERNEL(96, 1)
named_kernel() {
    const int warp = thread_index() / 32;
    const int id = Is == Named::BlockSyncId ? 0 : Is == Named::TooLargeId ? 16 : 1;
    const int count = Is == Named::NotOfWarps ? 48 : Is == Named::TooMany ? 128 : 64;
    if (Is == Named::EndedEarly && thread_index() == 5) return;
    if (warp == 0) {
        if (Is != Named::TooFewArrive || thread_index() != 7) named_arrive(id, count);
        if (Is == Named::OverArrival) named_arrive(id, count);
    } else if (warp == 1) {
        named_sync(id, Is == Named::OtherCount ? 96 : count);
        named_arrive(2, 64);
    } else {
        named_sync(2, 64);
    }
    block_sync();
}

// A barrier that one warp opens for itself by arriving first: the token of a ring.
ATTN_KERNEL(64, 1) token_kernel() {
    const int warp = thread_index() / 32;
    if (warp == 0) named_arrive(1, 64);
    for (int round = 0; round < 3; ++round) {
        named_sync(1 + warp, 64);
        named_arrive(1 + (warp + 1) % 2, 64);
    }
    if (warp == 0) named_sync(1, 64);
}

inline void test_barriers() {
    const LaunchShape two = {2, 64, 1024}, three = {1, 96, 0};
    passes("arrivals complete phases", barrier_kernel<Barrier::Right>, two);
    faults("a barrier must be initialised", "no barrier has been initialised",
           barrier_kernel<Barrier::NeverInitialised>, two);
    faults("a barrier must be fenced", "before a barrier_init_fence", barrier_kernel<Barrier::NotFenced>, two);
    faults("threads must meet the initialiser", "before this thread has met|no barrier has been|before a barrier_init",
           barrier_kernel<Barrier::NotMet>, two);
    faults("a shuffle is no meeting", "before this thread has met|no barrier has been|before a barrier_init",
           barrier_kernel<Barrier::OnlyShuffled>, two);
    faults("a live barrier must not be initialised", "a second time", barrier_kernel<Barrier::InitialisedTwice>, two);
    faults("a barrier is aligned", "not aligned to 8", barrier_kernel<Barrier::Misaligned>, two);
    faults("a barrier is in shared memory", "not inside", barrier_kernel<Barrier::Outside>, two);
    faults("a barrier counts arrivals", "cannot count 0", barrier_kernel<Barrier::NoArrivals>, two);
    faults("the simulator knows its limit", "64 barriers at most", barrier_kernel<Barrier::TooMany>, two);
    faults("a parity is a bit", "0 or 1, not 2", barrier_kernel<Barrier::NotAParity>, two);
    faults("bytes are counted from 0", "cannot expect -16", barrier_kernel<Barrier::NotBytes>, two);
    faults("an arrival too few is a deadlock", "lacks 1 of 3 arrivals", barrier_kernel<Barrier::WrongCount>, two);
    faults("a wait for the wrong phase is a deadlock", "deadlock", barrier_kernel<Barrier::WrongParity>, two);
    // Up to the turns that threads take: it does so with these seeds.
    faults("a phase can pass by a thread that nobody waits for", "deadlock", barrier_kernel<Barrier::PassedBy>, two);
    faults("an arrival too many is found", "over-arrival|lacks 0 of 2 arrivals and 16 bytes",
           barrier_kernel<Barrier::OverArrival>, two);
    faults("bytes must come before the end", "expects 16 bytes", barrier_kernel<Barrier::BytesLeftOver>, two);
    faults("a store must spare barriers", "overwrites a barrier", barrier_kernel<Barrier::StoreOverIt>, two);
    faults("a pin must spare barriers", "overwrites a barrier", barrier_kernel<Barrier::PinOverIt>, two);

    passes("named barriers order warps", named_kernel<Named::Right>, three);
    passes("a warp can open a barrier for itself", token_kernel, LaunchShape{1, 64, 0});
    faults("id 0 belongs to block_sync", "1 to 15", named_kernel<Named::BlockSyncId>, three);
    faults("there are 15 named barriers", "1 to 15", named_kernel<Named::TooLargeId>, three);
    faults("named barriers count warps", "cannot count 48", named_kernel<Named::NotOfWarps>, three);
    faults("named barriers count threads of the CTA", "cannot count 128", named_kernel<Named::TooMany>, three);
    faults("all say the same count", "for 96 threads|for 64 threads", named_kernel<Named::OtherCount>, three);
    faults("a thread arrives once in a phase", "over-arrival|deadlock", named_kernel<Named::OverArrival>, three);
    faults("a missing lane is a deadlock", "63 of 64 threads have arrived", named_kernel<Named::TooFewArrive>, three);
    faults("block_sync wants every thread", "divergence", named_kernel<Named::EndedEarly>, three);
}

}  // namespace attn::selftest
