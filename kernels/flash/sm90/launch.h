// From a call to a launch.
#pragma once
#include "../call.h"
#include "forward.h"

namespace attn::flash::sm90 {

inline int describe(TensorMap* map, const AttnTensor& tensor, const AttnAttention& call, int seq, int heads, int rows,
                    int slabs) {
    const auto bytes = [](int64_t stride) { return static_cast<uint64_t>(stride) * 2; };
    const auto count = [](int n) { return static_cast<uint64_t>(n); };
    const TensorMapShape shape = {
        tensor.base,
        2,
        static_cast<AttnType>(call.type),
        {64, count(seq), count(call.head_dim / 64), count(heads), count(call.batch)},
        {bytes(tensor.seq_stride), 128, bytes(tensor.head_stride), bytes(tensor.batch_stride)},
        {64, static_cast<uint32_t>(rows), static_cast<uint32_t>(slabs), 1, 1},
        128,
    };
    return encode_tensor_map(map, shape);
}

template <class Tile>
int launch_tile(const AttnAttention& call, void* stream) {
    TensorMap query, key, value, out;
    if (int status = describe(&query, call.query, call, call.seq_q, call.heads, Tile::rows, Tile::slabs)) return status;
    if (int status = describe(&key, call.key, call, call.seq_k, call.kv_heads, Tile::keys, Tile::slabs)) return status;
    if (int status = describe(&value, call.value, call, call.seq_k, call.kv_heads, Tile::keys, Tile::slabs)) {
        return status;
    }
    if constexpr (Tile::carried) {
        out = query;
    } else {
        if (int status = describe(&out, call.out, call, call.seq_q, call.heads, 64, 1)) return status;
    }
    Problem p;
    if (int status = describe_problem(&p, call, Tile::rows, Tile::banded)) return status;
    int count = 0;
    if (int status = multiprocessors(&count)) return status;
    const LaunchShape shape = {p.tiles < count ? p.tiles : count, Tile::threads, Tile::shared_bytes};
    return launch(forward<Tile>, shape, stream, query, key, value, out, p);
}

// One of eight kernels: two element types, with and without a band, with and without a carried state. `Full` is the
// number of keys in a block without a band, `Band` with one, `Carry` the most with a state, whose rows need registers.
template <int HeadDim, int Rows, int Full, int Band, int Carry, Form Kind>
int launch_form(const AttnAttention& call, void* stream) {
    constexpr int carry_full = Full < Carry ? Full : Carry, carry_band = Band < Carry ? Band : Carry;
    const bool banded = cuts(call), carried = call.state_max.base != nullptr;
    const auto of_type = [&](auto element) {
        using E = decltype(element);
        if (banded) {
            return carried ? launch_tile<Tile<E, HeadDim, Rows, carry_band, Kind, true, true>>(call, stream)
                           : launch_tile<Tile<E, HeadDim, Rows, Band, Kind, true, false>>(call, stream);
        }
        return carried ? launch_tile<Tile<E, HeadDim, Rows, carry_full, Kind, false, true>>(call, stream)
                       : launch_tile<Tile<E, HeadDim, Rows, Full, Kind, false, false>>(call, stream);
    };
    switch (call.type) {
        case ATTN_BF16: return of_type(Bf16{});
        case ATTN_F16: return of_type(F16{});
        default: return ATTN_UNSUPPORTED;
    }
}

// One file each, so that they compile side by side.
int launch_d64_simple(const AttnAttention& call, void* stream);
int launch_d64_overlapped(const AttnAttention& call, void* stream);
int launch_d128_simple(const AttnAttention& call, void* stream);
int launch_d128_overlapped(const AttnAttention& call, void* stream);
int launch_d256_simple(const AttnAttention& call, void* stream);
int launch_d256_overlapped(const AttnAttention& call, void* stream);

}  // namespace attn::flash::sm90
