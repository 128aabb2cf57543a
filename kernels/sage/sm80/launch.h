// From a call to a launch.
#pragma once
#include "../../attention/cover.h"
#include "../../flash/call.h"
#include "attn/host.h"
#include "forward.h"

namespace attn::sage::sm80 {

// Dense [batch, heads, seq, head_dim] of 8 bits.
inline AttnTensor as_pairs(int8_t* base, int64_t heads, int64_t seq, int head_dim) {
    AttnTensor tensor = {};
    tensor.base = base;
    tensor.seq_stride = head_dim / 2;
    tensor.head_stride = seq * tensor.seq_stride;
    tensor.batch_stride = heads * tensor.head_stride;
    return tensor;
}

template <class Tile>
int launch_tile(const AttnSage& sage, void* stream) {
    const AttnAttention& call = sage.attention;
    Problem p = {};
    if (int status = flash::describe_problem<Tile>(&p.tiles, call)) return status;
    p.query_scale = sage.tensors.query_scale;
    p.query_mean = sage.tensors.query_mean;
    p.key_scale = sage.tensors.key_scale;
    p.type = call.type;
    p.kv_heads = call.kv_heads;
    p.carried = call.state_max.base != nullptr;
    p.query = as_pairs(sage.tensors.query, call.heads, call.seq_q, call.head_dim);
    p.key = as_pairs(sage.tensors.key, call.kv_heads, call.seq_k, call.head_dim);
    p.value = call.value;
    p.out = call.out;
    if (is_irregular(call.mask)) {
        if (int status = launch_cover(call, Tile::rows, Tile::covered_keys, stream)) return status;
    }
    return launch(forward<Tile>, LaunchShape{p.tiles.tiles, Tile::threads, Tile::shared_bytes}, stream, p);
}

template <int HeadDim, int Warps, int Strips, int Keys>
int launch_type(const AttnSage& call, void* stream) {
    return call.attention.type == ATTN_BF16 ? launch_tile<Tile<Bf16, HeadDim, Warps, Strips, Keys>>(call, stream)
                                            : launch_tile<Tile<F16, HeadDim, Warps, Strips, Keys>>(call, stream);
}

// One file each, so that they compile side by side.
int launch_d64(const AttnSage& call, void* stream);
int launch_d128(const AttnSage& call, void* stream);

}  // namespace attn::sage::sm80
