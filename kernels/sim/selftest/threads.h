// Warps, registers, launches.
#pragma once
#include <cmath>
#include <thread>
#include <vector>

#include "harness.h"

namespace attn::selftest {

enum class Warp { Right, Diverges, OtherMask, MaskTooLarge, LaneEnds, MatrixMisaligned, OnlyShuffled, Collides };

// Lane sums by shuffles, and one matrix store.
template <Warp Is>
ATTN_KERNEL(64, 1)
warp_kernel(float* sums, uint16_t* matrices) {
    const int me = thread_index(), lane = me % 32;
    if (Is == Warp::LaneEnds && lane == 9) return;
    float sum = static_cast<float>(me);
    for (int mask = 1; mask < 32; mask *= 2) {
        sum += shuffle_xor(sum, Is == Warp::OtherMask && me == 3 ? mask ^ 16 : mask);
    }
    if (Is == Warp::MaskTooLarge) shuffle_xor(sum, 32);
    sums[me] = sum;
    if (Is == Warp::Diverges && lane >= 16) warp_sync();
    // Row r of matrix i has elements 1000 i + 8 r + 0 to 7, and goes to line 8 i + r.
    uint32_t fragments[4];
    for (int i = 0; i < 4; ++i) {
        const uint32_t first = 1000 * i + lane / 4 * 8 + lane % 4 * 2;
        fragments[i] = first | (first + 1) << 16;
    }
    const SharedAddress base = shared_base() + me / 32 * 512;
    store_matrix_x4(base + lane * 16 + (Is == Warp::MatrixMisaligned ? 8 : 0), fragments[0], fragments[1], fragments[2],
                    fragments[3]);
    if (Is == Warp::OnlyShuffled) {
        shuffle_xor(0.0f, 1);
    } else {
        warp_sync();
    }
    if (Is == Warp::Collides) store_shared_16(base, me, me, me, me);
    uint32_t row[4];
    load_shared_16(base + (lane ^ 5) * 16, row);
    std::memcpy(matrices + me / 32 * 256 + (lane ^ 5) * 8, row, 16);
}

enum class Register {
    Right,
    NotOfEight,
    TooMany,
    ReleasesMore,
    AcquiresLess,
    Twice,
    InPart,
    Differ,
    SumTooLarge,
    NobodyReleases
};

// Three warpgroups: one releases, two acquire, as the flash kernel's do.
template <Register Is>
ATTN_KERNEL(384, 1)
register_kernel() {
    const int me = thread_index();
    if (me < 128) {
        if (Is == Register::NobodyReleases) return;
        if (Is == Register::NotOfEight) registers_release<30>();
        if (Is == Register::ReleasesMore) registers_release<176>();
        if (Is == Register::InPart && me >= 32) return;
        // 128 * 32 + 256 * 240 is all that a multiprocessor has, and more than a launch of 384 threads takes.
        registers_release<Is == Register::SumTooLarge ? 32 : 24>();
        if (Is == Register::Twice) registers_release<24>();
    } else {
        if (Is == Register::TooMany) registers_acquire<264>();
        if (Is == Register::AcquiresLess) registers_acquire<160>();
        if (Is == Register::Differ && me == 200) {
            registers_acquire<232>();
            return;
        }
        registers_acquire<240>();
    }
}

ATTN_KERNEL(32, 1) circle_kernel() {
    for (;;) barrier_init_fence();
}

// Adds up the numbers of blocks and threads: each of both has run once.
ATTN_KERNEL(64, 1) count_kernel(int* counts, const float factor) {
    ++counts[block_index() * 64 + thread_index()];
    counts[grid_size() * 64] += static_cast<int>(factor);
}

inline void test_warps() {
    const LaunchShape shape = {1, 64, 1024};
    float sums[64];
    uint16_t matrices[512];
    const auto wrong = [&](const char* claim, const char* text, auto kernel) {
        faults(claim, text, kernel, shape, sums, matrices);
    };
    passes("a warp shuffles and stores matrices", warp_kernel<Warp::Right>, shape, sums, matrices);
    bool right = true;
    for (int i = 0; i < 64; ++i) right = right && sums[i] == (i < 32 ? 496.0f : 1520.0f);
    expect(right, "shuffles give every lane the sum");
    right = true;
    for (int i = 0; i < 512; ++i) right = right && matrices[i] == i % 256 / 64 * 1000 + i % 64;
    expect(right, "a matrix store lays out rows");
    wrong("a warp stays together", "divergence", warp_kernel<Warp::Diverges>);
    wrong("a warp shuffles with one mask", "divergence", warp_kernel<Warp::OtherMask>);
    wrong("a lane that ends is missed", "31 of 32 lanes", warp_kernel<Warp::LaneEnds>);
    wrong("a matrix row is aligned", "not aligned to 16", warp_kernel<Warp::MatrixMisaligned>);
    wrong("a lane mask has five bits", "0 to 31, not 32", warp_kernel<Warp::MaskTooLarge>);
    wrong("a shuffle orders no memory", "has stored to with no barrier", warp_kernel<Warp::OnlyShuffled>);
    wrong("lanes do not store to one place", "has stored to with no barrier|has read with no barrier",
          warp_kernel<Warp::Collides>);
}

inline void test_registers() {
    const LaunchShape shape = {2, 384, 0};
    passes("registers change hands", register_kernel<Register::Right>, shape);
    faults("register counts are multiples of 8", "not a multiple of 8", register_kernel<Register::NotOfEight>, shape);
    faults("a thread has at most 256 registers", "from 24 to 256", register_kernel<Register::TooMany>, shape);
    faults("a release leaves fewer", "more than the 168", register_kernel<Register::ReleasesMore>, shape);
    faults("an acquisition gives more", "fewer than the 168", register_kernel<Register::AcquiresLess>, shape);
    faults("registers are a warpgroup's", "not complete", register_kernel<Register::Right>, LaunchShape{1, 288, 0});
    faults("registers are set once", "a second time", register_kernel<Register::Twice>, shape);
    faults("a whole warpgroup sets its registers", "32 of the 128 threads", register_kernel<Register::InPart>, shape);
    faults("a warpgroup sets one count", "other threads of the warpgroup", register_kernel<Register::Differ>, shape);
    faults("there are the launch's registers", "and the launch took 64512", register_kernel<Register::SumTooLarge>, shape);
    faults("somebody has to release", "has not released", register_kernel<Register::NobodyReleases>, shape);
}

inline void test_launches() {
    int counts[3 * 64 + 1] = {};
    // The kernel's parameter is a float: arguments are converted.
    passes("every thread of every CTA runs", count_kernel, LaunchShape{3, 64, 0}, counts, 1);
    bool right = counts[3 * 64] == static_cast<int>(3 * 64 * seeds);
    for (int i = 0; i < 3 * 64; ++i) right = right && counts[i] == static_cast<int>(seeds);
    expect(right, "every thread of every CTA runs once");
    expect(attn_sim_report()[0] == '\0', "a good launch leaves no report");
    faults("a CTA has at most 1024 threads", "launch of", count_kernel, LaunchShape{1, 1056, 0}, counts, 1);
    faults("a CTA is made of warps", "launch of", count_kernel, LaunchShape{1, 48, 0}, counts, 1);
    faults("a CTA has at most 232448 bytes", "launch of", count_kernel, LaunchShape{1, 64, 232449}, counts, 1);
    faults("a grid is not empty", "launch of", count_kernel, LaunchShape{0, 64, 0}, counts, 1);
    int count = 0;
    expect(multiprocessors(&count) == ATTN_OK && count == 3, "there are three multiprocessors");
    attn_sim_seed(1);
    const bool circles = launch(circle_kernel, LaunchShape{1, 32, 0}, nullptr) == ATTN_SIM_FAULT;
    expect(circles && std::strstr(attn_sim_report(), "livelock") != nullptr, "a kernel in circles is stopped");

    // Ranks are threads of the host.
    std::vector<std::thread> ranks;
    std::vector<int> totals(4, 0);
    for (int rank = 0; rank < 4; ++rank) {
        ranks.emplace_back([&totals, rank] {
            int mine[3 * 64 + 1] = {};
            for (int i = 0; i < 50; ++i) launch(count_kernel, LaunchShape{3, 64, 4096}, nullptr, mine, rank);
            totals[rank] = mine[3 * 64];
        });
    }
    for (std::thread& rank : ranks) rank.join();
    for (int rank = 0; rank < 4; ++rank) expect(totals[rank] == 50 * 3 * 64 * rank, "ranks launch side by side");
}

inline void test_numbers() {
    bool right = true;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<uint16_t>(bits);
        const float as_f16 = sim::f16_to_float(half), as_bf16 = sim::bf16_to_float(half);
        right = right && (std::isnan(as_f16) ? (bits & 0x7fff) > 0x7c00 : sim::f16_from_float(as_f16) == half);
        right = right && (std::isnan(as_bf16) ? (bits & 0x7fff) > 0x7f80 : sim::bf16_from_float(as_bf16) == half);
        if ((bits & 0x7fff) >= 0x7bff) continue;
        // Half way to the next number, and the floats on both sides.
        const auto next = static_cast<uint16_t>(half + 1), even = half % 2 == 0 ? half : next;
        const float middle = (as_f16 + sim::f16_to_float(next)) / 2;
        right = right && sim::f16_from_float(middle) == even;
        right = right && sim::f16_from_float(std::nextafter(middle, as_f16)) == half;
        right = right && sim::f16_from_float(std::nextafter(middle, sim::f16_to_float(next))) == next;
    }
    expect(right, "f16 and bf16 are rounded to the nearest, ties to even");
    expect(pack2<F16>(1.0f, -2.0f) == 0xc0003c00 && pack2<Bf16>(1.0f, -2.0f) == 0xc0003f80, "pack2 puts lo low");
    right = true;
    for (uint32_t bits = 0; bits < 0x100; ++bits) {
        const auto byte = static_cast<uint8_t>(bits);
        const float value = sim::e4m3_to_float(byte);
        right = right && (std::isnan(value) ? (bits & 0x7f) == 0x7f : sim::e4m3_from_float(value) == byte);
        if ((bits & 0x7f) >= 0x7e) continue;
        const auto next = static_cast<uint8_t>(byte + 1), even = byte % 2 == 0 ? byte : next;
        const float middle = (value + sim::e4m3_to_float(next)) / 2;
        right = right && sim::e4m3_from_float(middle) == even;
        right = right && sim::e4m3_from_float(std::nextafter(middle, value)) == byte;
        right = right && sim::e4m3_from_float(std::nextafter(middle, sim::e4m3_to_float(next))) == next;
    }
    expect(right, "e4m3 is rounded to the nearest, ties to even");
    expect(sim::e4m3_to_float(0x7e) == 448 && sim::e4m3_to_float(1) == 0x1p-9f, "e4m3 goes from 2^-9 to 448");
    expect(pack4<E4m3>(1e9f, -INFINITY, NAN, -1.0f) == 0xb87ffe7e, "e4m3 ends at 448");
    expect(pack4<S8>(2.5f, -3.5f, 1e9f, -1e9f) == 0x807ffc02 && pack4<S8>(NAN, 127.5f, -0.4f, -1.0f) == 0xff007f00,
           "integers of 8 bits are rounded to the nearest, ties to even, and end at -128 and 127");
    expect(sim::f16_from_float(65520.0f) == 0x7c00 && sim::f16_from_float(65519.0f) == 0x7bff, "f16 overflows");
    expect(sim::bf16_from_float(NAN) == 0x7fff && sim::f16_from_float(NAN) == 0x7fff, "a NaN is the canonical one");
}

}  // namespace attn::selftest
