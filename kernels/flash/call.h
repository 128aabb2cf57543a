// From a call to the problem that a kernel is given.
#pragma once
#include "attn/host.h"
#include "problem.h"

namespace attn::flash {

// Whether the band cuts anything off.
inline bool cuts(const AttnAttention& call) {
    return call.mask.band_lo > 1 - call.seq_q || call.mask.band_hi < call.seq_k - 1;
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

// For a kernel with these tiles. `packed`: whether query heads are to share them.
template <class Tile>
int describe_problem(Problem* problem, const AttnAttention& call, bool packed = Tile::packed) {
    constexpr float log2e = 1.44269504088896340736f;
    Problem p = {};
    p.batch = call.batch;
    const int heads_per_kv = call.heads / call.kv_heads;
    p.heads = packed ? call.kv_heads : call.heads;
    p.heads_per_kv = packed ? 1 : heads_per_kv;
    p.group = packed ? heads_per_kv : 1;
    p.rows = call.seq_q * p.group;
    p.seq_q = call.seq_q;
    p.seq_k = call.seq_k;
    p.mask = call.mask;
    p.scale_log2 = call.scale * log2e;
    p.lse = call.lse;
    p.state_max = call.state_max;
    p.state_sum = call.state_sum;
    p.state_output = call.state_output;
    p.row_blocks = (p.rows + Tile::rows - 1) / Tile::rows;
    const int64_t tiles = static_cast<int64_t>(p.row_blocks) * p.heads * call.batch;
    if (tiles > INT32_MAX) return ATTN_UNSUPPORTED;
    p.tiles = static_cast<int>(tiles);
    // Without a band all tiles are alike: those of one head follow each other.
    p.section = 1;
    if constexpr (Tile::banded) {
        int cache_bytes = 0;
        if (int status = l2_cache_bytes(&cache_bytes)) return status;
        const int all = p.heads * call.batch, section = section_of(call, cache_bytes);
        p.section = section < all ? section : all;
    }
    // Tiles grow towards the last rows if the band is cut off above, towards the first if only below.
    p.last_rows_first = Tile::banded && call.mask.band_hi < call.seq_k - 1;
    *problem = p;
    return ATTN_OK;
}

}  // namespace attn::flash
