// attn_probe_peak: how fast the tensor cores multiply when nothing else is in their way.
//
// Each block keeps one tile of each operand in shared memory and multiplies them over and over, by two warpgroups that
// take the tensor cores in turn, in the widest instruction. No memory is read meanwhile: what attention reaches of this
// rate is what its loads, its softmax and its schedule leave of it.
#include "attn/abi.h"
#include "attn/device.h"
#include "attn/host.h"

namespace attn {
namespace {

constexpr int groups = 2, block_threads = 128 * groups;
constexpr int rows = 64, columns = 256, depth = 64, instruction_depth = 16;
constexpr int line_bytes = 2 * depth, unit_bytes = 8 * line_bytes;
constexpr int a_bytes = rows * line_bytes, b_bytes = columns * line_bytes;
constexpr int pattern_bytes = 1024;
constexpr int shared_bytes = pattern_bytes + groups * a_bytes + b_bytes;
// Products between two waits.
constexpr int unrolled = 4;

// Both operands have k contiguous, under a 128-byte swizzle, as queries and keys do.
ATTN_DEVICE uint64_t descriptor(SharedAddress at) {
    return uint64_t(at >> 4) | uint64_t(1) << 16 | uint64_t(unit_bytes >> 4) << 32 | uint64_t(1) << 62;
}

// Sixteen-bit patterns that are numbers between 1/2 and 2, of either sign, in both types: power, and with it speed,
// depends on the data.
ATTN_DEVICE uint32_t two_numbers(uint32_t seed, uint32_t exponent) {
    const uint32_t mixed = (seed * 2654435761u) ^ (seed * 40503u << 13);
    return (mixed & 0x803f803fu) | exponent << 16 | exponent;
}

template <class T>
ATTN_KERNEL(block_threads, 1) peak_kernel(ATTN_GRID_CONSTANT const AttnProbePeak p, uint32_t exponent) {
    const SharedAddress a = (shared_base() + (pattern_bytes - 1)) & ~SharedAddress(pattern_bytes - 1);
    const SharedAddress b = a + groups * a_bytes;
    for (int at = thread_index(); at < (groups * a_bytes + b_bytes) / 16; at += block_threads) {
        const uint32_t seed = at * 4 + 1;
        store_shared_16(a + 16 * at, two_numbers(seed, exponent), two_numbers(seed + 1, exponent),
                        two_numbers(seed + 2, exponent), two_numbers(seed + 3, exponent));
    }
    fence_proxy_async();
    block_sync();

    const uint64_t mine = descriptor(a + thread_index() / 128 * a_bytes), shared = descriptor(b);
    float d[columns / 2];
#pragma unroll
    for (int i = 0; i < columns / 2; ++i) d[i] = 0.0f;
#pragma unroll 1
    for (int i = 0; i < p.iterations; ++i) {
        registers_fence(d);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < unrolled * depth; k += instruction_depth) {
            const uint64_t step = k % depth * 2 >> 4;
            Wgmma<T, columns, 0>::ss(d, mine + step, shared + step, true);
        }
        wgmma_commit();
        wgmma_wait<0>();
        registers_fence(d);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < columns / 2; ++i) sum += d[i];
    p.sums[block_index() * block_threads + thread_index()] = sum;
}

}  // namespace
}  // namespace attn

extern "C" int attn_probe_peak(const AttnProbePeak* call, void* stream) {
    using namespace attn;
    if (call->iterations < 0 || call->blocks <= 0) return ATTN_UNSUPPORTED;
    const LaunchShape shape = {call->blocks, block_threads, shared_bytes};
    *call->operations = 2.0 * rows * columns * depth * unrolled * groups * call->iterations * call->blocks;
    switch (call->type) {
        case ATTN_BF16: return launch(peak_kernel<Bf16>, shape, stream, *call, 0x3f00u);
        case ATTN_F16: return launch(peak_kernel<F16>, shape, stream, *call, 0x3800u);
        default: return ATTN_UNSUPPORTED;
    }
}

extern "C" int attn_multiprocessors(int* count) { return attn::multiprocessors(count); }
