// From a call to a launch.
#pragma once
#include "../../attention/cover.h"
#include "../call.h"
#include "forward.h"

namespace attn::flash::sm80 {

// Whether all rows of a tensor of 16-bit elements begin at a multiple of 16 bytes.
inline bool is_aligned(const AttnTensor& tensor, int batch, int seq, int heads) {
    uint64_t bits = reinterpret_cast<uintptr_t>(tensor.base);
    if (batch > 1) bits |= static_cast<uint64_t>(tensor.batch_stride) * 2;
    if (seq > 1) bits |= static_cast<uint64_t>(tensor.seq_stride) * 2;
    if (heads > 1) bits |= static_cast<uint64_t>(tensor.head_stride) * 2;
    return bits % 16 == 0;
}

inline bool is_aligned(const AttnAttention& call) {
    return is_aligned(call.query, call.batch, call.seq_q, call.heads) &&
           is_aligned(call.key, call.batch, call.seq_k, call.kv_heads) &&
           is_aligned(call.value, call.batch, call.seq_k, call.kv_heads) &&
           (call.state_max.base != nullptr || is_aligned(call.out, call.batch, call.seq_q, call.heads));
}

// Whether query heads that share their keys share tiles too: where the queries of one would not fill a tile. (Masks that look
// at heads do not know of such tiles.)
inline bool packs(const AttnAttention& call, int rows) { return call.seq_q < rows && !is_irregular(call.mask); }

template <class Tile>
int launch_tile(const AttnAttention& call, void* stream) {
    Problem p = {};
    if (int status = describe_problem<Tile>(&p, call, packs(call, Tile::rows))) return status;
    p.query = call.query;
    p.key = call.key;
    p.value = call.value;
    p.out = call.out;
    if (is_irregular(call.mask)) {
        if (int status = launch_cover(call, Tile::rows, Tile::covered_keys, stream)) return status;
    }
    return launch(forward<Tile>, LaunchShape{p.tiles, Tile::threads, Tile::shared_bytes}, stream, p);
}

// One of two kernels.
template <int HeadDim, int Warps, int Strips, int Keys>
int launch_type(const AttnAttention& call, void* stream) {
    switch (call.type) {
        case ATTN_BF16: return launch_tile<Tile<Bf16, HeadDim, Warps, Strips, Keys>>(call, stream);
        case ATTN_F16: return launch_tile<Tile<F16, HeadDim, Warps, Strips, Keys>>(call, stream);
        default: return ATTN_UNSUPPORTED;
    }
}

// One file each, so that they compile side by side.
int launch_d32(const AttnAttention& call, void* stream);
int launch_d64(const AttnAttention& call, void* stream);
int launch_d96(const AttnAttention& call, void* stream);
int launch_d128(const AttnAttention& call, void* stream);
int launch_d192(const AttnAttention& call, void* stream);
int launch_d256(const AttnAttention& call, void* stream);

}  // namespace attn::flash::sm80
