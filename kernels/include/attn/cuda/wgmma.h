// The tensor cores of Hopper: asynchronous products of a warpgroup (PTX ISA, "wgmma").
#pragma once
#include "attn/cuda/vector.h"

namespace attn {

// Orders this warpgroup's accesses to accumulators and A registers before the products that follow. The compiler says
// nothing when it is missing, so it stands inside the functions that issue products.
ATTN_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of products.
ATTN_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all but the last `Pending` groups have finished.
template <int Pending>
ATTN_DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Keeps the compiler from moving accesses to these registers across it.
template <int N>
ATTN_DEVICE void registers_fence(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <int N>
ATTN_DEVICE void registers_fence(int32_t (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// d[64][N] (+)= a[64][16] b[16][N], in floats, for T = Bf16 or F16. ss: both operands in shared memory, by descriptor,
// a with k contiguous; rs: a in registers. TransB: b has n contiguous instead of k.
template <class T, int N, int TransB>
struct Wgmma;

// d[64][N] (+)= a[64][32] b[32][N] of 8-bit elements, both with k contiguous: T = S8, d in int32_t; T = E4m3, d in
// floats. The sums of E4m3 keep fewer bits than a float has: long sums belong into registers of their own, block by
// block. In registers, a lane of a holds four neighbours along k where 16-bit elements have two.
template <class T, int N>
struct Wgmma8;

}  // namespace attn

#include "attn/cuda/wgmma_shapes.h"
