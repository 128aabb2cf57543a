// The primitives of device code, for g++: a kernel is an ordinary function, and each of its threads a fibre.
//
// What they mean is written where their CUDA versions are; here they have the same names and signatures.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "mma.h"
#include "numbers.h"
#include "tensor_map.h"
#include "vector_types.h"
#include "wgmma.h"

#define ATTN_DEVICE inline
#define ATTN_HOST_DEVICE inline
#define ATTN_KERNEL(threads, blocks) void
#define ATTN_GRID_CONSTANT

namespace attn {

// CUDA has these without a namespace.
using std::max;
using std::min;

using SharedAddress = uint32_t;

int thread_index();
int block_index();
int grid_size();
SharedAddress shared_base();

void block_sync();
void warp_sync();
void named_sync(int id, int threads);
void named_arrive(int id, int threads);

void barrier_init(SharedAddress barrier, int arrivals);
void barrier_init_fence();
void barrier_expect(SharedAddress barrier, int bytes);
void barrier_arrive(SharedAddress barrier);
void barrier_wait(SharedAddress barrier, uint32_t parity);

void tma_prefetch(const TensorMap& map);
void tma_load(SharedAddress destination, const TensorMap& map, SharedAddress barrier, int c0, int c1, int c2, int c3,
              int c4, uint64_t policy);
void tma_store(const TensorMap& map, SharedAddress source, int c0, int c1, int c2, int c3, int c4);
void tma_store_commit();

void copy_async_16(SharedAddress to, const void* from);
void copy_async_16(SharedAddress to, const void* from, int bytes);
void copy_async_commit();

void fence_proxy_async();
void store_shared_16(SharedAddress address, uint32_t x, uint32_t y, uint32_t z, uint32_t w);
void load_shared_16(SharedAddress address, uint32_t (&value)[4]);
void store_shared_8(SharedAddress address, uint32_t x, uint32_t y);
void load_shared_8(SharedAddress address, uint32_t (&value)[2]);
void load_matrix_x4(SharedAddress row, uint32_t (&matrices)[4]);
void load_matrix_x4_transposed(SharedAddress row, uint32_t (&matrices)[4]);
void store_matrix_x4(SharedAddress row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3);
void pin_before_wait(SharedAddress scratch, float a, float b);

void wgmma_fence();
void wgmma_commit();

float shuffle_xor(float value, int mask);
uint32_t value_of_lane(uint32_t value, int lane);
uint32_t ballot(bool holds);

uint32_t load_acquire_system(const uint32_t* flag);
void store_release_system(uint32_t* flag, uint32_t value);
void store_relaxed_system(uint32_t* flag, uint32_t value);
void fence_system();
void fence_system_total();
uint32_t add_to_counter(uint32_t* counter, uint32_t value);
void pause_for(uint32_t nanoseconds);
uint64_t nanoseconds();

namespace sim {

void release_registers(int count);
void acquire_registers(int count);
void wait_stores_read(int pending);
void wait_stores_written(int pending);
void wait_wgmmas(int pending);
void wait_copies(int pending);
void check_global(const void* address);
void stores_global();

}  // namespace sim

template <int R>
void registers_release() {
    sim::release_registers(R);
}
template <int R>
void registers_acquire() {
    sim::acquire_registers(R);
}
template <int N>
void tma_store_wait_read() {
    sim::wait_stores_read(N);
}
template <int N>
void tma_store_wait() {
    sim::wait_stores_written(N);
}
template <int N>
void wgmma_wait() {
    sim::wait_wgmmas(N);
}
template <int N>
void copy_async_wait() {
    sim::wait_copies(N);
}
template <int N>
void registers_fence(float (&)[N]) {}
template <int N>
void registers_fence(int32_t (&)[N]) {}

struct Bf16 {};
struct F16 {};
struct F32 {};

template <class T>
using Stored = std::conditional_t<std::is_same_v<T, F32>, float, uint16_t>;

namespace sim {

template <class T>
constexpr Element element_of() {
    static_assert(std::is_same_v<T, Bf16> || std::is_same_v<T, F16>, "tensor cores multiply Bf16 or F16");
    return std::is_same_v<T, Bf16> ? Element::Bf16 : Element::F16;
}

}  // namespace sim

template <class T, int Strips, int N>
void mma_strips(float (&d)[Strips][N], int at, const uint32_t (&a)[Strips][4], const uint32_t (&b)[4]) {
    float* sums[Strips];
    for (int m = 0; m < Strips; ++m) {
        sums[m] = d[m] + 4 * at;
    }
    sim::multiply_strips({sim::element_of<T>(), Strips}, sums, a, b);
}

template <int Count>
void load_matrices(const SharedAddress (&rows)[Count], uint32_t (&matrices)[Count][4]) {
    sim::load_matrices(Count, rows, matrices);
}

template <class T, bool Transposed, int Strips, int N>
void mma_shared(float (&d)[Strips][N], const uint32_t (&a)[Strips][4], const SharedAddress (&rows)[N / 8]) {
    float* sums[Strips];
    for (int m = 0; m < Strips; ++m) {
        sums[m] = d[m];
    }
    sim::multiply_shared({sim::element_of<T>(), Strips}, {2 * N, Transposed}, sums, a, rows);
}

// Of 8-bit integers, not transposed.
template <int Strips, int N>
void mma_shared_s8(int32_t (&d)[Strips][N], const uint32_t (&a)[Strips][4], const SharedAddress (&rows)[N / 8]) {
    float* sums[Strips];
    for (int m = 0; m < Strips; ++m) {
        sums[m] = reinterpret_cast<float*>(d[m]);
    }
    sim::multiply_shared({sim::Element::S8, Strips}, {2 * N, false}, sums, a, rows);
}

template <class T, int N, int TransB>
struct Wgmma {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "the N of a wgmma is a multiple of 8 from 8 to 256");
    static_assert(TransB == 0 || TransB == 1, "TransB is 0 (B K-major) or 1 (B MN-major)");

    static constexpr sim::Element element = sim::element_of<T>();

    static void ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
        sim::issue_wgmma({N, element, false, TransB == 1, accumulate, a, b}, d, nullptr);
    }

    static void rs(float (&d)[N / 2], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, bool accumulate) {
        const uint32_t a[4] = {a0, a1, a2, a3};
        sim::issue_wgmma({N, element, true, TransB == 1, accumulate, 0, b}, d, a);
    }
};

struct S8 {};
struct E4m3 {};

template <class T, int N>
struct Wgmma8;

template <int N>
struct Wgmma8<S8, N> {
    static_assert(N % 16 == 0 && N >= 16 && N <= 256, "the N of a wgmma of integers is a multiple of 16 up to 256");

    static void ss(int32_t (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
        sim::issue_wgmma({N, sim::Element::S8, false, false, accumulate, a, b}, d, nullptr);
    }
};

template <int N>
struct Wgmma8<E4m3, N> {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "the N of a wgmma is a multiple of 8 from 8 to 256");

    static void ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
        sim::issue_wgmma({N, sim::Element::E4m3, false, false, accumulate, a, b}, d, nullptr);
    }

    static void rs(float (&d)[N / 2], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, bool accumulate) {
        const uint32_t a[4] = {a0, a1, a2, a3};
        sim::issue_wgmma({N, sim::Element::E4m3, true, false, accumulate, 0, b}, d, a);
    }
};

inline int opaque(int value) { return value; }

inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
inline int lowest_bit(uint32_t bits) { return __builtin_ctz(bits); }

inline float exp2_approx(float x) { return exp2f(x); }
inline float natural_log(float x) { return logf(x); }
inline float reciprocal_root(float x) { return 1.0f / sqrtf(x); }

template <class T>
uint32_t pack2(float lo, float hi) {
    static_assert(std::is_same_v<T, Bf16> || std::is_same_v<T, F16>, "pack2 makes Bf16 or F16");
    if constexpr (std::is_same_v<T, Bf16>) {
        return sim::bf16_from_float(lo) | static_cast<uint32_t>(sim::bf16_from_float(hi)) << 16;
    } else {
        return sim::f16_from_float(lo) | static_cast<uint32_t>(sim::f16_from_float(hi)) << 16;
    }
}

template <class T>
float widen(Stored<T> stored) {
    if constexpr (std::is_same_v<T, Bf16>) return sim::bf16_to_float(stored);
    if constexpr (std::is_same_v<T, F16>) return sim::f16_to_float(stored);
    if constexpr (std::is_same_v<T, F32>) return stored;
}

template <class T>
Stored<T> narrow(float value) {
    if constexpr (std::is_same_v<T, F32>) {
        return value;
    } else {
        return static_cast<uint16_t>(pack2<T>(value, 0.0f));
    }
}

inline float float_of_lane(float value, int lane) {
    return sim::float_of(value_of_lane(sim::bits_of(value), lane));
}

template <class T>
uint32_t pack4(float a, float b, float c, float d) {
    static_assert(std::is_same_v<T, S8> || std::is_same_v<T, E4m3>, "pack4 makes S8 or E4m3");
    const auto convert = [](float value) -> uint32_t {
        return std::is_same_v<T, S8> ? sim::s8_from_float(value) : sim::e4m3_from_float(value);
    };
    return convert(a) | convert(b) << 8 | convert(c) << 16 | convert(d) << 24;
}

inline void load_global_16(const void* address, uint32_t (&value)[4]) {
    sim::check_global(address);
    std::memcpy(value, address, 16);
}

inline void store_global_16(void* address, const uint32_t (&value)[4]) {
    sim::check_global(address);
    sim::stores_global();
    std::memcpy(address, value, 16);
}

template <class Word>
void store_global(Word* to, Word value) {
    sim::stores_global();
    *to = value;
}

}  // namespace attn
