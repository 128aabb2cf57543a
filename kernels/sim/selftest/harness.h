// What the claims below are made with.
#pragma once
#include <attn_sim/device.h>
#include <attn_sim/host.h>

#include <cstdio>
#include <string>
#include <utility>

namespace attn::selftest {

constexpr uint64_t seeds = 6;

inline int claims = 0, failures = 0;

inline void expect(bool holds, const char* claim, const std::string& found = "") {
    ++claims;
    if (holds) return;
    ++failures;
    std::printf("FAILED: %s\n    %s\n", claim, found.c_str());
}

// The kernel runs to its end, whatever the seed.
template <class... P, class... A>
void passes(const char* claim, void (*kernel)(P...), LaunchShape shape, A&&... arguments) {
    for (uint64_t seed = 0; seed < seeds; ++seed) {
        attn_sim_seed(seed);
        const int status = launch(kernel, shape, nullptr, arguments...);
        if (status != ATTN_OK) return expect(false, claim, attn_sim_report());
    }
    expect(true, claim);
}

// Whether a report has `text` in it. `|` separates texts of which one is enough: some faults can be found at more than one
// place.
inline bool says(const std::string& report, const std::string& text) {
    for (size_t begin = 0; begin <= text.size();) {
        const size_t end = std::min(text.find('|', begin), text.size());
        if (report.find(text.substr(begin, end - begin)) != std::string::npos) return true;
        begin = end + 1;
    }
    return false;
}

// Every seed ends in a report that says `text`.
template <class... P, class... A>
void faults(const char* claim, const std::string& text, void (*kernel)(P...), LaunchShape shape, A&&... arguments) {
    for (uint64_t seed = 0; seed < seeds; ++seed) {
        attn_sim_seed(seed);
        const int status = launch(kernel, shape, nullptr, arguments...);
        const std::string report = attn_sim_report();
        if (status != ATTN_SIM_FAULT || !says(report, text)) {
            return expect(false, claim,
                          "seed " + std::to_string(seed) + ": " + (status == ATTN_OK ? "no fault" : report) +
                              "\n    expected: " + text);
        }
    }
    expect(true, claim);
}

// A tensor [rows][64] of 2-byte elements in host memory, and its map: boxes of `box_rows` rows under a swizzle.
struct Tensor {
    static constexpr int rows = 100;
    alignas(16) uint16_t elements[rows * 64];

    TensorMap map(int box_rows, int swizzle = 128) {
        TensorMapShape shape = {elements,
                                2,
                                ATTN_BF16,
                                {64, rows, 1, 1, 1},
                                {128, 128 * rows, 128 * rows, 128 * rows},
                                {64, static_cast<uint32_t>(box_rows), 1, 1, 1},
                                swizzle};
        if (swizzle != 0) shape.box[0] = static_cast<uint32_t>(swizzle / 2);
        TensorMap map;
        const int status = encode_tensor_map(&map, shape);
        if (status != ATTN_OK) expect(false, "the tests' tensor maps are accepted");
        return map;
    }
};

ATTN_DEVICE SharedAddress aligned_base() { return (shared_base() + 1023) & ~1023u; }

// Thread 0 makes `count` barriers, for `arrivals` each; then all threads know them.
ATTN_DEVICE void make_barriers(SharedAddress first, int count, int arrivals) {
    if (thread_index() == 0) {
        for (int i = 0; i < count; ++i) barrier_init(first + 8 * i, arrivals);
        barrier_init_fence();
    }
    block_sync();
}

ATTN_DEVICE uint64_t descriptor(SharedAddress start, uint32_t leading, uint32_t stride, uint64_t swizzle_code = 1) {
    return start >> 4 | static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 |
           swizzle_code << 62;
}

}  // namespace attn::selftest
