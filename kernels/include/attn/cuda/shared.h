// Shared memory by its 32-bit address, and the fence between ordinary accesses and the asynchronous units.
#pragma once
#include "attn/cuda/thread.h"

namespace attn {

using SharedAddress = uint32_t;

// Where the launch's dynamic shared memory begins. Kernels align it themselves.
ATTN_DEVICE SharedAddress shared_base() {
    extern __shared__ uint8_t attn_dynamic_shared[];
    return static_cast<SharedAddress>(__cvta_generic_to_shared(attn_dynamic_shared));
}

// Makes this thread's ordinary stores to shared memory visible to the tensor cores and the copy engine.
ATTN_DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

ATTN_DEVICE void store_shared_16(SharedAddress to, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

ATTN_DEVICE void load_shared_16(SharedAddress from, uint32_t (&value)[4]) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value[0]), "=r"(value[1]), "=r"(value[2]), "=r"(value[3])
                 : "r"(from)
                 : "memory");
}

ATTN_DEVICE void store_shared_8(SharedAddress to, uint32_t x, uint32_t y) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(x), "r"(y) : "memory");
}

ATTN_DEVICE void load_shared_8(SharedAddress from, uint32_t (&value)[2]) {
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(value[0]), "=r"(value[1]) : "r"(from) : "memory");
}

// Four 8x8 matrices of 16-bit elements, one register of each for each lane; lane l gives the address of row l % 8 of
// matrix l / 8.
ATTN_DEVICE void store_matrix_x4(SharedAddress row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r0), "r"(r1),
                 "r"(r2), "r"(r3)
                 : "memory");
}

// A store that depends on the sums of a softmax. Placed before a wgmma_wait it keeps the compiler, which may move a
// wait upwards past arithmetic but not past memory accesses, from moving it above the exponentials. It never happens:
// sums of exponentials are not below zero, which the compiler does not know. (All threads would store to one place.)
ATTN_DEVICE void pin_before_wait(SharedAddress scratch, float a, float b) {
    asm volatile(
        "{\n"
        ".reg .pred below;\n"
        "setp.lt.f32 below, %1, 0f00000000;\n"
        "setp.lt.or.f32 below, %2, 0f00000000, below;\n"
        "@below st.volatile.shared.v2.f32 [%0], {%1, %2};\n"
        "}\n" ::"r"(scratch),
        "f"(a), "f"(b)
        : "memory");
}

}  // namespace attn
