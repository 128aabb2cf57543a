// One warp for each tile of queries and block of keys. Band, key lengths and segments it compares by their ends, which
// is exact where segments stand in order; of a dense mask it looks at every pair.
#include "cover.h"

#include "attn/host.h"

namespace attn {
namespace {

constexpr int block_threads = 256, warps = block_threads / 32, blocks_per_multiprocessor = 8;

struct CoverParameters {
    AttnMask mask;
    CoverShape shape;
    int64_t pairs;
    int seq_q, seq_k, rows, keys;
};

// Queries and keys [begin, end) of a tile.
struct Range {
    int begin, end;
};

ATTN_DEVICE Cover cover_of_band(const AttnMask& mask, Range queries, Range keys) {
    const int least = keys.begin - (queries.end - 1), most = keys.end - 1 - queries.begin;
    if (most < mask.band_lo || least > mask.band_hi) return Cover::Skip;
    return least >= mask.band_lo && most <= mask.band_hi ? Cover::Full : Cover::Partial;
}

// The least and the largest of some ids, the same in all lanes.
ATTN_DEVICE Range bounds(const int32_t* ids, Range of) {
    int least = INT32_MAX, most = INT32_MIN;
    for (int at = of.begin + (thread_index() & 31); at < of.end; at += 32) {
        const int id = ids[at];
        least = id < least ? id : least;
        most = id > most ? id : most;
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        const int lane = (thread_index() & 31) ^ apart;
        const int other_least = static_cast<int>(value_of_lane(static_cast<uint32_t>(least), lane));
        const int other_most = static_cast<int>(value_of_lane(static_cast<uint32_t>(most), lane));
        least = other_least < least ? other_least : least;
        most = other_most > most ? other_most : most;
    }
    return {least, most};
}

ATTN_DEVICE Cover cover_of_segments(const CoverParameters& p, int batch, Range queries, Range keys) {
    const Range query = bounds(p.mask.query_segments + static_cast<int64_t>(batch) * p.seq_q, queries);
    const Range key = bounds(p.mask.key_segments + static_cast<int64_t>(batch) * p.seq_k, keys);
    if (query.end < key.begin || key.end < query.begin) return Cover::Skip;
    return query.begin == key.end && query.end == key.begin ? Cover::Full : Cover::Partial;
}

ATTN_DEVICE Cover cover_of_dense(const CoverParameters& p, int batch, int head, Range queries, Range keys) {
    bool any = false, all = true;
    for (int query = queries.begin; query < queries.end; ++query) {
        const uint8_t* row = p.mask.dense + batch * p.mask.dense_strides[0] + head * p.mask.dense_strides[1] +
                             query * p.mask.dense_strides[2];
        for (int key = keys.begin + (thread_index() & 31); key < keys.end; key += 32) {
            const bool attended = row[key * p.mask.dense_strides[3]] != 0;
            any = any || attended;
            all = all && attended;
        }
    }
    if (ballot(any) == 0) return Cover::Skip;
    return ballot(all) == 0xFFFFFFFFu ? Cover::Full : Cover::Partial;
}

// What two masks leave together.
ATTN_DEVICE Cover both(Cover a, Cover b) {
    if (a == Cover::Skip || b == Cover::Skip) return Cover::Skip;
    return a == Cover::Full && b == Cover::Full ? Cover::Full : Cover::Partial;
}

ATTN_KERNEL(block_threads, blocks_per_multiprocessor) cover_kernel(ATTN_GRID_CONSTANT const CoverParameters p) {
    const int64_t step = static_cast<int64_t>(grid_size()) * warps;
    for (int64_t pair = static_cast<int64_t>(block_index()) * warps + thread_index() / 32; pair < p.pairs; pair += step) {
        const int block = static_cast<int>(pair % p.shape.key_blocks);
        const int64_t tile = pair / p.shape.key_blocks;
        const int row_block = static_cast<int>(tile % p.shape.row_blocks);
        const int plane = static_cast<int>(tile / p.shape.row_blocks);
        const int batch = plane / p.shape.heads, head = plane % p.shape.heads;

        const int length = key_length(p.mask, batch, p.seq_k);
        const int row_end = (row_block + 1) * p.rows, key_end = (block + 1) * p.keys;
        const Range queries = {row_block * p.rows, row_end < p.seq_q ? row_end : p.seq_q};
        const Range keys = {block * p.keys, key_end < length ? key_end : length};
        Cover cover = keys.end <= keys.begin ? Cover::Skip : keys.end < key_end ? Cover::Partial : Cover::Full;
        if (cover != Cover::Skip) cover = both(cover, cover_of_band(p.mask, queries, keys));
        if (cover != Cover::Skip && p.mask.query_segments != nullptr) {
            cover = both(cover, cover_of_segments(p, batch, queries, keys));
        }
        if (cover != Cover::Skip && p.mask.dense != nullptr) {
            cover = both(cover, cover_of_dense(p, batch, head, queries, keys));
        }
        if ((thread_index() & 31) == 0) store_global(p.mask.cover + pair, static_cast<uint8_t>(cover));
    }
}

}  // namespace

int launch_cover(const AttnAttention& call, int rows, int keys, void* stream) {
    CoverParameters p = {};
    p.mask = call.mask;
    p.shape = CoverShape::of(call.mask, call.seq_q, call.seq_k, rows, keys);
    p.pairs = static_cast<int64_t>(call.batch) * p.shape.heads * p.shape.row_blocks * p.shape.key_blocks;
    p.seq_q = call.seq_q;
    p.seq_k = call.seq_k;
    p.rows = rows;
    p.keys = keys;
    int count = 0;
    if (const int status = multiprocessors(&count)) return status;
    const int64_t blocks = (p.pairs + warps - 1) / warps;
    const int64_t most = static_cast<int64_t>(count) * blocks_per_multiprocessor;
    const LaunchShape shape = {static_cast<int>(blocks < most ? blocks : most), block_threads, 0};
    return launch(cover_kernel, shape, stream, p);
}

}  // namespace attn
