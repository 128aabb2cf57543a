// attn_probe_wgmma8: what the tensor cores make of one tile of 8-bit elements, as probe.cu asks of 16-bit ones.
//
// Operands are laid out by ordinary stores at places computed from the documents alone. Both have k contiguous, in slabs
// of `swizzle` bytes: 8-bit elements know no other order. One block of one warpgroup.
#include <cstdint>

#include "attn/abi.h"
#include "attn/device.h"
#include "attn/host.h"

namespace attn {
namespace {

constexpr int block_threads = 128, pattern_bytes = 1024;
// d[64][n] = a[64][128] b[128][n], by instructions of 32 in k.
constexpr int probe_m = 64, probe_k = 128, instruction_k = 32;

// Where the 16 bytes from (line, k) on stand, k a multiple of 16. A slab has a line of `swizzle` bytes for each row of a or
// column of b. As many address bits from 128 upwards as number the chunks of a line are xor-ed onto the number of the chunk.
ATTN_DEVICE SharedAddress place(int swizzle, int lines, int line, int k) {
    const uint32_t plain = k / swizzle * lines * swizzle + line * swizzle + k % swizzle;
    return plain ^ (((plain >> 7) & (swizzle / 16 - 1)) << 4);
}

// Four bytes from `step` apart.
ATTN_DEVICE uint32_t four(const uint8_t* from, int step) {
    return from[0] | from[step] << 8 | from[2 * step] << 16 | static_cast<uint32_t>(from[3 * step]) << 24;
}

// Element (line, k) comes from source[line * line_step + k * k_step].
ATTN_DEVICE void fill(SharedAddress to, int swizzle, int lines, const uint8_t* source, int line_step, int k_step) {
    for (int at = thread_index(); at < lines * probe_k / 16; at += block_threads) {
        const int line = at / (probe_k / 16), k = at % (probe_k / 16) * 16;
        const uint8_t* from = source + line * line_step + k * k_step;
        store_shared_16(to + place(swizzle, lines, line, k), four(from, k_step), four(from + 4 * k_step, k_step),
                        four(from + 8 * k_step, k_step), four(from + 12 * k_step, k_step));
    }
}

// The next 32 of k are 32 bytes on in the lines, or in the next slab; groups of eight lines lie the stride offset apart.
ATTN_DEVICE uint64_t descriptor(SharedAddress operand, int swizzle, int lines, int k) {
    const SharedAddress from = operand + k / swizzle * lines * swizzle + k % swizzle;
    const uint64_t code = swizzle == 128 ? 1 : swizzle == 64 ? 2 : 3;
    return from >> 4 | uint64_t(1) << 16 | static_cast<uint64_t>(8 * swizzle >> 4) << 32 | code << 62;
}

// Sum: int32_t for T = S8, float for E4m3. `Registers`: a comes from there.
template <class T, class Sum, int N, bool Registers>
ATTN_KERNEL(block_threads, 1) wgmma8_kernel(ATTN_GRID_CONSTANT const AttnProbeWgmma p) {
    const uint8_t* a = static_cast<const uint8_t*>(p.a);
    const SharedAddress a_shared = (shared_base() + (pattern_bytes - 1)) & ~SharedAddress(pattern_bytes - 1);
    const SharedAddress b_shared = a_shared + probe_m * probe_k;
    fill(b_shared, p.swizzle, N, static_cast<const uint8_t*>(p.b), 1, N);
    fill(a_shared, p.swizzle, probe_m, a, probe_k, 1);
    fence_proxy_async();
    block_sync();

    const int lane = thread_index() % 32, row = thread_index() / 32 * 16 + lane / 4;
    Sum d[N / 2];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < probe_k; k += instruction_k) {
        const uint64_t of_b = descriptor(b_shared, p.swizzle, N, k);
        if constexpr (Registers) {
            // A lane has four neighbours along k of two rows, and the four that are 16 on.
            const uint8_t* from = a + row * probe_k + k + lane % 4 * 4;
            Wgmma8<T, N>::rs(d, four(from, 1), four(from + 8 * probe_k, 1), four(from + 16, 1),
                             four(from + 8 * probe_k + 16, 1), of_b, k > 0);
        } else {
            Wgmma8<T, N>::ss(d, descriptor(a_shared, p.swizzle, probe_m, k), of_b, k > 0);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    registers_fence(d);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        p.d[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + lane % 4 * 2 + i % 2] = static_cast<float>(d[i]);
    }
}

using Kernel = void (*)(AttnProbeWgmma);

// The products that attention has, and those of e4m3 with a in shared memory.
Kernel kernel_for(const AttnProbeWgmma& call) {
    const bool registers = call.a_from_registers != 0;
    if (call.type == ATTN_S8) return call.n == 128 && !registers ? wgmma8_kernel<S8, int32_t, 128, false> : nullptr;
    if (call.type != ATTN_E4M3) return nullptr;
    if (call.n == 64) return registers ? wgmma8_kernel<E4m3, float, 64, true> : wgmma8_kernel<E4m3, float, 64, false>;
    if (call.n == 128) return registers ? wgmma8_kernel<E4m3, float, 128, true> : wgmma8_kernel<E4m3, float, 128, false>;
    return nullptr;
}

}  // namespace
}  // namespace attn

extern "C" int attn_probe_wgmma8(const AttnProbeWgmma* call, void* stream) {
    using namespace attn;
    if (call->swizzle != 32 && call->swizzle != 64 && call->swizzle != 128) return ATTN_UNSUPPORTED;
    const Kernel kernel = call->b_mn_major != 0 ? nullptr : kernel_for(*call);
    if (kernel == nullptr) return ATTN_UNSUPPORTED;
    const int shared_bytes = pattern_bytes + (probe_m + call->n) * probe_k;
    return launch(kernel, LaunchShape{1, block_threads, shared_bytes}, stream, *call);
}
