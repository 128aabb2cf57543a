// From a call to a launch.
#pragma once
#include "../call.h"
#include "forward.h"

namespace attn::flash::sm90 {

// A tensor of `seq` rows of `heads`, of which a box holds `rows` of one head, as many slabs wide.
template <class Tile>
int describe(TensorMap* map, const AttnTensor& tensor, const AttnAttention& call, int seq, int heads, int rows,
             int slabs) {
    const auto bytes = [](int64_t stride) { return static_cast<uint64_t>(stride) * 2; };
    const auto count = [](int n) { return static_cast<uint64_t>(n); };
    const TensorMapShape shape = {
        tensor.base,
        2,
        static_cast<AttnType>(call.type),
        {Tile::slab_columns, count(seq), Tile::slabs, count(heads), count(call.batch)},
        {bytes(tensor.seq_stride), Tile::row_bytes, bytes(tensor.head_stride), bytes(tensor.batch_stride)},
        {Tile::slab_columns, static_cast<uint32_t>(rows), static_cast<uint32_t>(slabs), 1, 1},
        Tile::row_bytes,
    };
    return encode_tensor_map(map, shape);
}

// Queries or output of a kernel that packs: a box is one slab of all rows of a group of heads, query by query.
template <class Tile>
int describe_packed(TensorMap* map, const AttnTensor& tensor, const AttnAttention& call) {
    const auto bytes = [](int64_t stride) { return static_cast<uint64_t>(stride) * 2; };
    const int group = call.heads / call.kv_heads;
    const uint64_t heads = static_cast<uint64_t>(group), queries = static_cast<uint64_t>(call.seq_q);
    const TensorMapShape shape = {
        tensor.base,
        2,
        static_cast<AttnType>(call.type),
        {Tile::head_dim, heads, queries, static_cast<uint64_t>(call.kv_heads), static_cast<uint64_t>(call.batch)},
        {bytes(tensor.head_stride), bytes(tensor.seq_stride), bytes(tensor.head_stride * group),
         bytes(tensor.batch_stride)},
        {Tile::slab_columns, static_cast<uint32_t>(heads), static_cast<uint32_t>(queries), 1, 1},
        Tile::row_bytes,
    };
    return encode_tensor_map(map, shape);
}

inline bool carries(const AttnAttention& call) { return call.state_max.base != nullptr; }

template <class Tile>
int launch_tile(const AttnAttention& call, void* stream) {
    TensorMap query, key, value, out;
    const auto rows_of = [&](TensorMap* map, const AttnTensor& tensor, int rows, int slabs) {
        if constexpr (Tile::packed) {
            return describe_packed<Tile>(map, tensor, call);
        } else {
            return describe<Tile>(map, tensor, call, call.seq_q, call.heads, rows, slabs);
        }
    };
    const auto keys_of = [&](TensorMap* map, const AttnTensor& tensor) {
        return describe<Tile>(map, tensor, call, call.seq_k, call.kv_heads, Tile::keys, Tile::slabs);
    };
    if (int status = rows_of(&query, call.query, Tile::rows, Tile::slabs)) return status;
    if (int status = keys_of(&key, call.key)) return status;
    if (int status = keys_of(&value, call.value)) return status;
    if (carries(call)) {
        out = query;
    } else {
        if (int status = rows_of(&out, call.out, 64, 1)) return status;
    }
    Problem p;
    if (int status = describe_problem<Tile>(&p, call)) return status;
    if constexpr (Tile::irregular) {
        if (int status = launch_cover(call, Tile::rows, Tile::keys, stream)) return status;
    }
    int count = 0;
    if (int status = multiprocessors(&count)) return status;
    const LaunchShape shape = {p.tiles < count ? p.tiles : count, Tile::threads, Tile::shared_bytes};
    return launch(forward<Tile>, shape, stream, query, key, value, out, p);
}

// `launch` with the call's element type.
template <class Launch>
int of_type(const AttnAttention& call, const Launch& launch) {
    switch (call.type) {
        case ATTN_BF16: return launch(Bf16{});
        case ATTN_F16: return launch(F16{});
        default: return ATTN_UNSUPPORTED;
    }
}

// The simple form. Where all keys count, the banded kernel's middle loop is all there is. `Keys` are those of a block,
// `Carry` those with a state, whose rows need registers.
template <int HeadDim, int Rows, int Keys, int Carry>
int launch_simple(const AttnAttention& call, void* stream) {
    return of_type(call, [&](auto element) {
        using E = decltype(element);
        return carries(call) ? launch_tile<Tile<E, HeadDim, Rows, Carry, Form::Simple, Kind::Carried>>(call, stream)
                             : launch_tile<Tile<E, HeadDim, Rows, Keys, Form::Simple, Kind::Banded>>(call, stream);
    });
}

// Rows of a tile that packs: two warpgroups, whatever the head dimension, since such calls wait for memory.
constexpr int packed_rows = 128;

// Whether all query heads that share their keys fit a tile.
inline bool packs(const AttnAttention& call) {
    const int64_t group = call.heads / call.kv_heads;
    return group > 1 && group * call.seq_q <= packed_rows;
}

// The overlapped form. `Full` is the number of keys in a block where all count, `Keys` where there is a band.
template <int HeadDim, int Rows, int Full, int Keys>
int launch_overlapped(const AttnAttention& call, void* stream) {
    constexpr Form form = Form::Overlapped;
    return of_type(call, [&](auto element) {
        using E = decltype(element);
        if (packs(call)) return launch_tile<Tile<E, HeadDim, packed_rows, Keys, form, Kind::Packed>>(call, stream);
        if (carries(call)) return launch_tile<Tile<E, HeadDim, Rows, Keys, form, Kind::Carried>>(call, stream);
        if (cuts(call)) return launch_tile<Tile<E, HeadDim, Rows, Keys, form, Kind::Banded>>(call, stream);
        return launch_tile<Tile<E, HeadDim, Rows, Full, form, Kind::Full>>(call, stream);
    });
}

// With segments or a dense mask.
template <int HeadDim, int Rows, int Keys>
int launch_irregular(const AttnAttention& call, void* stream) {
    return of_type(call, [&](auto element) {
        using E = decltype(element);
        return launch_tile<Tile<E, HeadDim, Rows, Keys, Form::Overlapped, Kind::Irregular>>(call, stream);
    });
}

// One file each, so that they compile side by side.
int launch_d32_overlapped(const AttnAttention& call, void* stream);
int launch_d32_irregular(const AttnAttention& call, void* stream);
int launch_d64_simple(const AttnAttention& call, void* stream);
int launch_d64_overlapped(const AttnAttention& call, void* stream);
int launch_d64_irregular(const AttnAttention& call, void* stream);
int launch_d96_overlapped(const AttnAttention& call, void* stream);
int launch_d96_irregular(const AttnAttention& call, void* stream);
int launch_d128_simple(const AttnAttention& call, void* stream);
int launch_d128_overlapped(const AttnAttention& call, void* stream);
int launch_d128_irregular(const AttnAttention& call, void* stream);
int launch_d192_overlapped(const AttnAttention& call, void* stream);
int launch_d192_irregular(const AttnAttention& call, void* stream);
int launch_d256_simple(const AttnAttention& call, void* stream);
int launch_d256_overlapped(const AttnAttention& call, void* stream);
int launch_d256_irregular(const AttnAttention& call, void* stream);

}  // namespace attn::flash::sm90
