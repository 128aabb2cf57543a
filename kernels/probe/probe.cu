// attn_probe_wgmma and attn_probe_tma: what the tensor cores and the copy engine make of one tile in shared memory.
//
// The flash kernel rests on a reading of two documents: which address of a swizzled tile holds which element, and what
// a matrix descriptor says. These kernels put that reading to hardware, each half by itself. The first lays operands
// out by ordinary stores, at places computed here from the documents alone, and multiplies; the second shows what the
// copy engine wrote. One block of one warpgroup each; nothing here is meant to be fast.
#include <cstdint>

#include "attn/abi.h"
#include "attn/device.h"
#include "attn/host.h"

namespace attn {
namespace {

constexpr int block_threads = 128;

// Shared memory that a block can have.
constexpr int most_shared_bytes = 232448;

// Every swizzle's pattern repeats at this distance at the latest.
constexpr int pattern_bytes = 1024;

// d[64][n] = a[64][64] b[64][n], by instructions of 16 in k.
constexpr int probe_m = 64;
constexpr int probe_k = 64;
constexpr int instruction_k = 16;

ATTN_DEVICE SharedAddress aligned_shared_base() {
    return (shared_base() + (pattern_bytes - 1)) & ~SharedAddress(pattern_bytes - 1);
}

// An operand of outer x inner elements of 2 bytes, inner contiguous, under a swizzle of 32, 64 or 128 bytes (PTX ISA,
// "Asynchronous warpgroup level matrix shared memory layout"). It stands in slabs of swizzle / 2 elements of inner; a
// slab has a line of `swizzle` bytes for each outer index, and its pattern repeats every eight lines. The operand
// begins at a multiple of pattern_bytes, and outer is a multiple of 8.
struct OperandLayout {
    int swizzle, outer, inner;

    ATTN_DEVICE int slab_inner() const { return swizzle / 2; }
    ATTN_DEVICE int slab_bytes() const { return outer * swizzle; }
    ATTN_DEVICE int group_bytes() const { return 8 * swizzle; }

    // Where the 16 bytes from element (o, i) on stand; i is a multiple of 8. As many address bits from 128 upwards as
    // number the chunks of a line are xor-ed onto the number of the chunk.
    ATTN_DEVICE SharedAddress place(int o, int i) const {
        const uint32_t plain = i / slab_inner() * slab_bytes() + o * swizzle + i % slab_inner() * 2;
        const uint32_t chunk_bits = swizzle / 16 - 1;
        return plain ^ (((plain >> 7) & chunk_bits) << 4);
    }
};

// Element (o, i) comes from source[o * outer_stride + i * inner_stride].
ATTN_DEVICE void fill_operand(SharedAddress to, const OperandLayout& layout, const uint16_t* source, int outer_stride,
                              int inner_stride) {
    const int chunks = layout.inner / 8;
    for (int at = thread_index(); at < layout.outer * chunks; at += block_threads) {
        const int o = at / chunks;
        const int i = at % chunks * 8;
        uint32_t word[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            const uint32_t low = source[o * outer_stride + (i + 2 * w) * inner_stride];
            const uint32_t high = source[o * outer_stride + (i + 2 * w + 1) * inner_stride];
            word[w] = low | high << 16;
        }
        store_shared_16(to + layout.place(o, i), word[0], word[1], word[2], word[3]);
    }
}

// What the tensor cores are told: address and offsets in units of 16 bytes, and the swizzle's code.
ATTN_DEVICE uint64_t matrix_descriptor(SharedAddress address, int leading_bytes, int stride_bytes, int swizzle) {
    const uint64_t code = swizzle == 128 ? 1 : swizzle == 64 ? 2 : 3;
    const uint64_t leading = uint64_t(leading_bytes >> 4);
    const uint64_t stride = uint64_t(stride_bytes >> 4);
    return address >> 4 | leading << 16 | stride << 32 | code << 62;
}

// Inner is k. Groups of eight outer lines lie the stride offset apart; the leading offset is not used. The next 16 of k
// are 32 bytes on in the lines, or in the next slab.
ATTN_DEVICE uint64_t k_major_descriptor(SharedAddress operand, const OperandLayout& layout, int k) {
    const SharedAddress from = k / layout.slab_inner() * layout.slab_bytes() + k % layout.slab_inner() * 2;
    return matrix_descriptor(operand + from, 16, layout.group_bytes(), layout.swizzle);
}

// Outer is k. Slabs lie the leading offset apart, groups of eight k the stride offset. The next 16 of k are 16 lines
// further on.
ATTN_DEVICE uint64_t mn_major_descriptor(SharedAddress operand, const OperandLayout& layout, int k) {
    return matrix_descriptor(operand + k * layout.swizzle, layout.slab_bytes(), layout.group_bytes(), layout.swizzle);
}

// T: Bf16 or F16. TransB: b stands in shared memory with n contiguous.
template <class T, int N, bool AFromRegisters, bool TransB>
ATTN_KERNEL(block_threads, 1) wgmma_kernel(ATTN_GRID_CONSTANT const AttnProbeWgmma p) {
    static_assert(N % 8 == 0 && N <= 256, "the widths of one instruction");
    const uint16_t* a = static_cast<const uint16_t*>(p.a);
    const uint16_t* b = static_cast<const uint16_t*>(p.b);
    const OperandLayout a_layout = {p.swizzle, probe_m, probe_k};
    const OperandLayout b_layout = TransB ? OperandLayout{p.swizzle, probe_k, N} : OperandLayout{p.swizzle, N, probe_k};
    const SharedAddress a_shared = aligned_shared_base();
    const SharedAddress b_shared = a_shared + probe_m * probe_k * 2;
    fill_operand(b_shared, b_layout, b, TransB ? N : 1, TransB ? 1 : N);
    if (!AFromRegisters) fill_operand(a_shared, a_layout, a, probe_k, 1);
    fence_proxy_async();
    block_sync();

    // This thread's first row and first column, of d as of each fragment of a.
    const int lane = thread_index() % 32;
    const int row = thread_index() / 32 * 16 + lane / 4;
    const int column = lane % 4 * 2;
    uint32_t fragment[probe_k / instruction_k][4];
    if (AFromRegisters) {
#pragma unroll
        for (int step = 0; step < probe_k / instruction_k; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint16_t* from = a + (row + i % 2 * 8) * probe_k + step * instruction_k + i / 2 * 8 + column;
                fragment[step][i] = from[0] | uint32_t(from[1]) << 16;
            }
        }
    }

    float d[N / 2];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < probe_k / instruction_k; ++step) {
        const int k = step * instruction_k;
        const uint64_t b_descriptor = TransB ? mn_major_descriptor(b_shared, b_layout, k)
                                             : k_major_descriptor(b_shared, b_layout, k);
        if (AFromRegisters) {
            const uint32_t(&r)[4] = fragment[step];
            Wgmma<T, N, TransB>::rs(d, r[0], r[1], r[2], r[3], b_descriptor, step > 0);
        } else {
            Wgmma<T, N, TransB>::ss(d, k_major_descriptor(a_shared, a_layout, k), b_descriptor, step > 0);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    registers_fence(d);

#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        p.d[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = d[i];
    }
}

using WgmmaKernel = void (*)(AttnProbeWgmma);

// Every use of two widths, and of the others those that attention has: a from shared memory by b with k contiguous
// (queries by keys), a from registers by b with n contiguous (probabilities by values). Null: not compiled.
template <class T, int N>
WgmmaKernel wgmma_kernel_for(const AttnProbeWgmma& call) {
    const bool from_registers = call.a_from_registers != 0;
    const bool mn_major = call.b_mn_major != 0;
    if constexpr (N == 64 || N == 128) {
        if (!from_registers && mn_major) return wgmma_kernel<T, N, false, true>;
        if (from_registers && !mn_major) return wgmma_kernel<T, N, true, false>;
    }
    if (from_registers != mn_major) return nullptr;
    return from_registers ? wgmma_kernel<T, N, true, true> : wgmma_kernel<T, N, false, false>;
}

template <class T>
WgmmaKernel wgmma_kernel_for_width(const AttnProbeWgmma& call) {
    switch (call.n) {
        case 32: return wgmma_kernel_for<T, 32>(call);
        case 64: return wgmma_kernel_for<T, 64>(call);
        case 80: return wgmma_kernel_for<T, 80>(call);
        case 96: return wgmma_kernel_for<T, 96>(call);
        case 112: return wgmma_kernel_for<T, 112>(call);
        case 128: return wgmma_kernel_for<T, 128>(call);
        case 176: return wgmma_kernel_for<T, 176>(call);
        case 192: return wgmma_kernel_for<T, 192>(call);
        case 256: return wgmma_kernel_for<T, 256>(call);
        default: return nullptr;
    }
}

struct TmaParameters {
    void* image;
    int rows, row, slab;
    int tile_bytes;
};

// What the copy engine hints to the L2 cache: this data will not be read again soon.
constexpr uint64_t evict_first = 0x12F0000000000000;

// Shared memory: the tile, then the barrier.
ATTN_KERNEL(block_threads, 1)
tma_kernel(ATTN_GRID_CONSTANT const TensorMap source, ATTN_GRID_CONSTANT const TensorMap copy,
           ATTN_GRID_CONSTANT const TmaParameters p) {
    const int tile_bytes = p.tile_bytes;
    const SharedAddress tile = aligned_shared_base();
    const SharedAddress barrier = tile + tile_bytes;
    if (thread_index() == 0) {
        barrier_init(barrier, 1);
        barrier_init_fence();
    }
    block_sync();
    if (thread_index() == 0) {
        barrier_expect(barrier, tile_bytes);
        tma_load(tile, source, barrier, 0, p.row, p.slab, 0, 0, evict_first);
    }
    barrier_wait(barrier, 0);

    char* image = static_cast<char*>(p.image);
    for (int at = thread_index() * 16; at < tile_bytes; at += block_threads * 16) {
        uint32_t word[4];
        load_shared_16(tile + at, word);
        store_global_16(image + at, word);
    }
    if (thread_index() == 0) {
        tma_store(copy, tile, 0, p.row, p.slab, 0, 0);
        tma_store_commit();
        tma_store_wait<0>();
    }
}

// The tensor as flash describes its own: columns in slabs as wide as the swizzle, one head, one batch row.
int encode_slabs(TensorMap* map, void* base, const AttnProbeTma& call) {
    const uint64_t row_bytes = uint64_t(call.slabs) * call.swizzle, width = call.swizzle / 2;
    const uint64_t tensor_bytes = uint64_t(call.seq) * row_bytes;
    TensorMapShape shape = {};
    shape.base = base;
    shape.element_bytes = 2;
    shape.type = ATTN_BF16;
    const uint64_t extent[5] = {width, uint64_t(call.seq), uint64_t(call.slabs), 1, 1};
    const uint64_t stride_bytes[4] = {row_bytes, uint64_t(call.swizzle), tensor_bytes, tensor_bytes};
    const uint32_t box[5] = {uint32_t(width), uint32_t(call.rows), uint32_t(call.box_slabs), 1, 1};
    for (int i = 0; i < 5; ++i) {
        shape.extent[i] = extent[i];
        shape.box[i] = box[i];
        if (i < 4) shape.stride_bytes[i] = stride_bytes[i];
    }
    shape.swizzle_bytes = call.swizzle;
    return encode_tensor_map(map, shape);
}

}  // namespace
}  // namespace attn

extern "C" int attn_probe_wgmma(const AttnProbeWgmma* call, void* stream) {
    using namespace attn;
    const int swizzle = call->swizzle;
    if (swizzle != 32 && swizzle != 64 && swizzle != 128) return ATTN_UNSUPPORTED;
    const WgmmaKernel kernel = call->type == ATTN_BF16  ? wgmma_kernel_for_width<Bf16>(*call)
                               : call->type == ATTN_F16 ? wgmma_kernel_for_width<F16>(*call)
                                                        : nullptr;
    if (kernel == nullptr) return ATTN_UNSUPPORTED;
    // The last slab of n may be half empty, but has all its bytes.
    const int slab_n = swizzle / 2;
    const int b_columns = call->b_mn_major != 0 ? (call->n + slab_n - 1) / slab_n * slab_n : call->n;
    const int shared_bytes = pattern_bytes + (probe_m + b_columns) * probe_k * 2;
    return launch(kernel, LaunchShape{1, block_threads, shared_bytes}, stream, *call);
}

extern "C" int attn_probe_tma(const AttnProbeTma* call, void* stream) {
    using namespace attn;
    // What one box can hold; whether the tensor suits is for the driver to say.
    if (call->rows < 1 || call->rows > 256 || call->seq < 1 || call->slabs < 1) return ATTN_UNSUPPORTED;
    if (call->swizzle != 32 && call->swizzle != 64 && call->swizzle != 128) return ATTN_UNSUPPORTED;
    if (call->box_slabs < 1 || call->box_slabs > 8) return ATTN_UNSUPPORTED;
    const int tile_bytes = call->box_slabs * call->rows * call->swizzle;
    const int shared_bytes = pattern_bytes + tile_bytes + 16;
    if (shared_bytes > most_shared_bytes) return ATTN_UNSUPPORTED;
    TensorMap source, copy;
    if (const int status = encode_slabs(&source, const_cast<void*>(call->source), *call)) return status;
    if (const int status = encode_slabs(&copy, call->copy, *call)) return status;
    const TmaParameters p = {call->image, call->rows, call->row, call->slab, tile_bytes};
    return launch(tma_kernel, LaunchShape{1, block_threads, shared_bytes}, stream, source, copy, p);
}
