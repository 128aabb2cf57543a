// From a call to a launch.
#pragma once
#include "../../attention/cover.h"
#include "../../flash/call.h"
#include "attn/host.h"
#include "forward.h"

namespace attn::sage::sm90 {

// A dense tensor [outer][heads][rows][row_bytes] of bytes; a box has `box_rows` rows, `box_bytes` wide.
inline int describe_bytes(TensorMap* map, const void* base, const AttnAttention& call, int heads, int rows,
                          int row_bytes, int box_rows, int box_bytes) {
    const auto count = [](int64_t n) { return static_cast<uint64_t>(n); };
    const int64_t head = static_cast<int64_t>(rows) * row_bytes;
    const TensorMapShape shape = {
        const_cast<void*>(base),
        1,
        ATTN_BF16,
        {count(row_bytes), count(rows), 1, count(heads), count(call.batch)},
        {count(row_bytes), count(head), count(head), count(head * heads)},
        {static_cast<uint32_t>(box_bytes), static_cast<uint32_t>(box_rows), 1, 1, 1},
        box_bytes,
    };
    return encode_tensor_map(map, shape);
}

// The output, in boxes of 64 rows and columns.
inline int describe_output(TensorMap* map, const AttnAttention& call) {
    const auto bytes = [](int64_t stride) { return static_cast<uint64_t>(stride) * 2; };
    const auto count = [](int n) { return static_cast<uint64_t>(n); };
    const AttnTensor& out = call.out;
    const TensorMapShape shape = {
        out.base,
        2,
        static_cast<AttnType>(call.type),
        {64, count(call.seq_q), count(call.head_dim / 64), count(call.heads), count(call.batch)},
        {bytes(out.seq_stride), 128, bytes(out.head_stride), bytes(out.batch_stride)},
        {64, 64, 1, 1, 1},
        128,
    };
    return encode_tensor_map(map, shape);
}

template <class Tile>
int launch_tile(const AttnSage& sage, void* stream) {
    const AttnAttention& call = sage.attention;
    const AttnSageTensors& tensors = sage.tensors;
    const bool carried = call.state_max.base != nullptr;
    TensorMap query, key, value, out;
    if (int status = describe_bytes(&query, tensors.query, call, call.heads, call.seq_q, Tile::row_bytes, Tile::rows,
                                    Tile::row_bytes)) {
        return status;
    }
    if (int status = describe_bytes(&key, tensors.key, call, call.kv_heads, call.seq_k, Tile::row_bytes, Tile::keys,
                                    Tile::row_bytes)) {
        return status;
    }
    if (int status = describe_bytes(&value, tensors.value, call, call.kv_heads, call.head_dim,
                                    blocks_of(call.seq_k) * block_keys, call.head_dim, Tile::channel_bytes)) {
        return status;
    }
    if (carried) {
        out = query;
    } else if (int status = describe_output(&out, call)) {
        return status;
    }
    Problem p = {};
    if (int status = flash::describe_problem<Tile>(&p.tiles, call)) return status;
    p.query_scale = tensors.query_scale;
    p.query_mean = tensors.query_mean;
    p.key_scale = tensors.key_scale;
    p.value_scale = tensors.value_scale;
    p.type = call.type;
    p.carried = carried;
    if (is_irregular(call.mask)) {
        if (int status = launch_cover(call, Tile::rows, Tile::keys, stream)) return status;
    }
    int count = 0;
    if (int status = multiprocessors(&count)) return status;
    const LaunchShape shape = {p.tiles.tiles < count ? p.tiles.tiles : count, Tile::threads, Tile::shared_bytes};
    return launch(forward<Tile>, shape, stream, query, key, value, out, p);
}

// One file each, so that they compile side by side.
int launch_d64(const AttnSage& call, void* stream);
int launch_d128(const AttnSage& call, void* stream);

}  // namespace attn::sage::sm90
