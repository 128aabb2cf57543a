// From a call to a launch.
#pragma once
#include "attn/host.h"
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

// How many heads, over all batch rows, make a section: as many as have their keys and values in five eighths of the L2
// cache, with all query heads of a key head in the same one.
inline int section_of(const AttnAttention& call, int cache_bytes) {
    const int64_t room = static_cast<int64_t>(cache_bytes) / 8 * 5;
    const int64_t bytes = static_cast<int64_t>(call.seq_k) * call.head_dim * 2 * 2;
    int64_t kv_heads = 1;
    while (kv_heads * 2 * bytes <= room && kv_heads < call.kv_heads * static_cast<int64_t>(call.batch)) kv_heads *= 2;
    const int64_t heads = kv_heads * (call.heads / call.kv_heads), all = static_cast<int64_t>(call.heads) * call.batch;
    return static_cast<int>(heads < all ? heads : all);
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
    constexpr float log2e = 1.44269504088896340736f;
    Problem p = {};
    p.batch = call.batch;
    p.heads = call.heads;
    p.heads_per_kv = call.heads / call.kv_heads;
    p.seq_q = call.seq_q;
    p.seq_k = call.seq_k;
    p.band_lo = call.mask.band_lo;
    p.band_hi = call.mask.band_hi;
    p.scale_log2 = call.scale * log2e;
    p.key_lengths = call.mask.key_lengths;
    p.lse = call.lse;
    p.state_max = call.state_max;
    p.state_sum = call.state_sum;
    p.state_output = call.state_output;
    p.row_blocks = (call.seq_q + Tile::rows - 1) / Tile::rows;
    const int64_t tiles = static_cast<int64_t>(p.row_blocks) * call.heads * call.batch;
    if (tiles > INT32_MAX) return ATTN_UNSUPPORTED;
    p.tiles = static_cast<int>(tiles);
    // Without a band all tiles are alike: those of one head follow each other.
    p.section = 1;
    if constexpr (Tile::banded) {
        int cache_bytes = 0;
        if (int status = l2_cache_bytes(&cache_bytes)) return status;
        p.section = section_of(call, cache_bytes);
    }
    // Tiles grow towards the last rows if the band is cut off above, towards the first if only below.
    p.last_rows_first = Tile::banded && call.mask.band_hi < call.seq_k - 1;
    int count = 0;
    if (int status = multiprocessors(&count)) return status;
    const LaunchShape shape = {p.tiles < count ? p.tiles : count, Tile::threads, Tile::shared_bytes};
    return launch(forward<Tile>, shape, stream, query, key, value, out, p);
}

// Whether the band cuts anything off.
inline bool cuts(const AttnAttention& call) {
    return call.mask.band_lo > 1 - call.seq_q || call.mask.band_hi < call.seq_k - 1;
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
