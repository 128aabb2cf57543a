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

// Heads whose queries stand side by side in a tile: all of a key head where one head's would fill no tile. (Masks that look
// at heads do not know of such tiles.)
inline int heads_in_tile(const AttnAttention& call, int rows) {
    const int group = call.heads / call.kv_heads;
    return call.seq_q < rows && !is_irregular(call.mask) ? group : 1;
}

template <class Tile>
int launch_tile(const AttnAttention& call, void* stream) {
    const int group = heads_in_tile(call, Tile::rows);
    if (static_cast<int64_t>(call.seq_q) * group >= static_cast<int64_t>(fast_division_limit) - Tile::rows) {
        return ATTN_UNSUPPORTED;
    }
    // The call whose rows the tiles are cut from.
    AttnAttention side_by_side = call;
    side_by_side.seq_q *= group;
    side_by_side.heads /= group;
    Problem p = {};
    if (int status = describe_problem(&p, side_by_side, Tile::rows, Tile::banded)) return status;
    p.query = call.query;
    p.key = call.key;
    p.value = call.value;
    p.out = call.out;
    p.mask = call.mask;
    p.group = fast_division(static_cast<uint32_t>(group));
    if (is_irregular(call.mask)) {
        if (int status = launch_cover(call, Tile::rows, Tile::keys, stream)) return status;
        p.cover = CoverShape::of(call.mask, call.seq_q, call.seq_k, Tile::rows, Tile::keys);
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
