// Who a thread is, and how threads of a block wait for each other.
#pragma once
#include <cstdint>

#define ATTN_DEVICE __device__ __forceinline__
#define ATTN_HOST_DEVICE __host__ __device__ __forceinline__
#define ATTN_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define ATTN_GRID_CONSTANT __grid_constant__

namespace attn {

ATTN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
ATTN_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
ATTN_DEVICE int grid_size() { return static_cast<int>(gridDim.x); }

// Waits for all threads of the block.
ATTN_DEVICE void block_sync() { __syncthreads(); }

// Waits for the other lanes of the warp; memory accesses before it are seen by them after it.
ATTN_DEVICE void warp_sync() { __syncwarp(); }

// Named barriers (1 to 15): `threads` arrive or wait; 0 is block_sync's.
ATTN_DEVICE void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
ATTN_DEVICE void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Registers per thread, for a whole warpgroup: down for the one that only copies, up for those that compute.
template <int Registers>
ATTN_DEVICE void registers_release() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
ATTN_DEVICE void registers_acquire() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

}  // namespace attn
