// attn_edge: copies rows that are normalised and rotated on their way, a batch in one launch.
//
// RMSNorm (Zhang and Sennrich, arXiv:1910.07467), then rotary embedding (Su et al., arXiv:2104.09864), in fp32, rounded
// once. Grid: persistent, at most edge_blocks blocks on each multiprocessor. Block: edge_threads threads. A row is shared
// by as many lanes of a warp as it has chunks of 16 bytes, rounded up to a power of two; a group of lanes takes
// heads_per_unit heads of a token, whose angles it reads once. No shared memory: sums and halves of pairs go from lane to
// lane. The pieces are in the kernel's parameters.
#include <cmath>
#include <cstdint>

#include "attn/abi.h"
#include "attn/device.h"
#include "attn/host.h"
#include "rows.h"

namespace attn {
namespace {

// Sixteen bytes of a table or of weights. They are read through the caches: other lanes and blocks want them too.
struct alignas(16) Angles {
    float value[4];
};
struct alignas(16) Weights {
    uint32_t packed[row_chunk / 2];
};

// What a thread's channels are turned by: y = x * own + partner * other, where the partner of a channel is its pair's other
// one. For halves it stands in another lane.
struct Turn {
    float own[row_chunk], other[row_chunk];
    int partner_lane;
    bool turned;
};

ATTN_DEVICE Turn turn_of(const RowPiece& p, uint32_t chunk, uint32_t batch, uint32_t position) {
    Turn turn = {};
    const int lane = thread_index() & 31;
    turn.partner_lane = lane;
    turn.turned = p.cos != nullptr && chunk < p.rotated_chunks;
    if (!turn.turned) return turn;
    const char* cos = p.cos + (batch * p.cos_stride[0] + position * p.cos_stride[1]);
    const char* sin = p.sin + (batch * p.sin_stride[0] + position * p.sin_stride[1]);
    if (p.halves) {
        const uint32_t half = p.rotated_chunks / 2;
        const bool first = chunk < half;
        const uint32_t angle = first ? chunk : chunk - half;
        turn.partner_lane = first ? lane + int(half) : lane - int(half);
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            const Angles c = reinterpret_cast<const Angles*>(cos)[2 * angle + part];
            const Angles s = reinterpret_cast<const Angles*>(sin)[2 * angle + part];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                turn.own[4 * part + i] = c.value[i];
                turn.other[4 * part + i] = first ? -s.value[i] : s.value[i];
            }
        }
    } else {
        const Angles c = reinterpret_cast<const Angles*>(cos)[chunk];
        const Angles s = reinterpret_cast<const Angles*>(sin)[chunk];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            turn.own[2 * i] = turn.own[2 * i + 1] = c.value[i];
            turn.other[2 * i] = -s.value[i];
            turn.other[2 * i + 1] = s.value[i];
        }
    }
    return turn;
}

template <class T>
ATTN_DEVICE void unpack(uint32_t pair, float& lo, float& hi) {
    lo = widen<T>(static_cast<uint16_t>(pair));
    hi = widen<T>(static_cast<uint16_t>(pair >> 16));
}

// Divides a row by its root mean square. All lanes of the warp take part; those without a chunk have zeros.
template <class T>
ATTN_DEVICE void normalise(const RowPiece& p, const Weights& weights, float (&x)[row_chunk]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < row_chunk; ++i) sum = fmaf(x[i], x[i], sum);
    for (int mask = 1 << p.lanes_log2 >> 1; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    const float factor = reciprocal_root(fmaf(sum, p.inverse_dim, p.eps));
#pragma unroll
    for (int i = 0; i < row_chunk; ++i) x[i] *= factor;
    if (p.weight == nullptr) return;
#pragma unroll
    for (int i = 0; i < row_chunk / 2; ++i) {
        float lo, hi;
        unpack<T>(weights.packed[i], lo, hi);
        x[2 * i] *= lo;
        x[2 * i + 1] *= hi;
    }
}

// All lanes of the warp take part.
ATTN_DEVICE void rotate(const RowPiece& p, const Turn& turn, float (&x)[row_chunk]) {
    float partner[row_chunk];
#pragma unroll
    for (int i = 0; i < row_chunk; ++i) partner[i] = p.halves ? float_of_lane(x[i], turn.partner_lane) : x[i ^ 1];
    // Zero times the partner would be NaN where that is infinite.
    if (!turn.turned) return;
#pragma unroll
    for (int i = 0; i < row_chunk; ++i) x[i] = fmaf(x[i], turn.own[i], partner[i] * turn.other[i]);
}

// One unit of a piece, by a group of lanes. Those of a tile's last units that are beyond the piece do its last one again, but
// store nothing.
template <class T>
ATTN_DEVICE void do_unit(const RowPiece& p, uint32_t unit) {
    const bool is_own = unit < p.units;
    if (!is_own) unit = p.units - 1;
    const uint32_t token = quotient(unit, p.groups);
    const uint32_t batch = quotient(token, p.seq);
    const uint32_t position = token - batch * p.seq.divisor;
    const uint32_t first_head = (unit - token * p.groups.divisor) * heads_per_unit;
    const uint32_t chunk = thread_index() & ((1u << p.lanes_log2) - 1);
    const bool has_chunk = chunk < p.chunks;

    const char* source = p.source + (batch * p.source_stride[0] + position * p.source_stride[1] + chunk * 16);
    uint32_t packed[heads_per_unit][row_chunk / 2] = {};
#pragma unroll
    for (int i = 0; i < heads_per_unit; ++i) {
        const uint32_t head = first_head + i;
        if (has_chunk && head < p.heads) load_global_16(source + head * p.source_stride[2], packed[i]);
    }
    const Turn turn = turn_of(p, chunk, batch, position);
    const char* weight = p.weight + (first_head * p.weight_stride + chunk * 16);
    Weights weights = {};
    if (p.weight != nullptr && has_chunk) weights = *reinterpret_cast<const Weights*>(weight);
    char* destination =
        p.destination + (batch * p.destination_stride[0] + position * p.destination_stride[1] + chunk * 16);
#pragma unroll
    for (int i = 0; i < heads_per_unit; ++i) {
        const uint32_t head = first_head + i;
        const bool has_head = head < p.heads;
        float x[row_chunk];
#pragma unroll
        for (int j = 0; j < row_chunk / 2; ++j) unpack<T>(packed[i][j], x[2 * j], x[2 * j + 1]);
        if (i > 0 && p.weight_stride != 0 && has_chunk && has_head) {
            weights = *reinterpret_cast<const Weights*>(weight + i * p.weight_stride);
        }
        if (p.norm) normalise<T>(p, weights, x);
        if (p.cos != nullptr) rotate(p, turn, x);
#pragma unroll
        for (int j = 0; j < row_chunk / 2; ++j) packed[i][j] = pack2<T>(x[2 * j], x[2 * j + 1]);
        if (is_own && has_chunk && has_head) store_global_16(destination + head * p.destination_stride[2], packed[i]);
    }
}

// T: the element type of source, destination and weights.
template <class T, int Capacity>
ATTN_KERNEL(edge_threads, edge_blocks) edge_kernel(ATTN_GRID_CONSTANT const RowBatch<Capacity> batch) {
    const uint32_t tiles = batch.first_tile[batch.count];
    uint32_t at = 0;
    for (uint32_t tile = block_index(); tile < tiles; tile += grid_size()) {
        // A block's tiles only ever go up.
        while (batch.first_tile[at + 1] <= tile) ++at;
        const RowPiece& piece = batch.piece[at];
        const uint32_t group = uint32_t(thread_index()) >> piece.lanes_log2;
        do_unit<T>(piece, (tile - batch.first_tile[at]) * units_per_tile(piece) + group);
    }
}

template <class T, int Capacity>
int launch_rows(const RowBatch<Capacity>& batch, void* stream) {
    int blocks = 0;
    if (const int status = multiprocessors(&blocks)) return status;
    blocks *= edge_blocks;
    const uint32_t tiles = batch.first_tile[batch.count];
    if (tiles < uint32_t(blocks)) blocks = int(tiles);
    return launch(edge_kernel<T, Capacity>, LaunchShape{blocks, edge_threads, 0}, stream, batch);
}

template <int Capacity>
int launch_typed(const RowBatch<Capacity>& batch, int32_t type, void* stream) {
    return type == ATTN_BF16 ? launch_rows<Bf16>(batch, stream) : launch_rows<F16>(batch, stream);
}

int launch_batch(const RowBatch<large_row_batch>& batch, int32_t type, void* stream) {
    if (batch.count == 0) return ATTN_OK;
    if (batch.count > small_row_batch) return launch_typed(batch, type, stream);
    RowBatch<small_row_batch> small;
    small.count = batch.count;
    for (uint32_t i = 0; i <= batch.count; ++i) small.first_tile[i] = batch.first_tile[i];
    for (uint32_t i = 0; i < batch.count; ++i) small.piece[i] = batch.piece[i];
    return launch_typed(small, type, stream);
}

bool is_empty(const AttnEdge& edge) { return edge.batch <= 0 || edge.seq <= 0 || edge.heads <= 0; }

bool is_supported(const AttnEdge& edge) {
    if (edge.type != ATTN_BF16 && edge.type != ATTN_F16) return false;
    if (edge.head_dim <= 0 || edge.head_dim % row_chunk != 0 || edge.head_dim > 32 * row_chunk) return false;
    const int unit = edge.pairs == ATTN_PAIRS_HALVES ? 2 * row_chunk : row_chunk;
    return edge.rotary_dim >= 0 && edge.rotary_dim <= edge.head_dim && edge.rotary_dim % unit == 0;
}

uint64_t units_of(const AttnEdge& edge) {
    const uint64_t groups = (uint64_t(edge.heads) + heads_per_unit - 1) / heads_per_unit;
    const uint64_t tokens = uint64_t(edge.batch) * uint64_t(edge.seq);
    return tokens > (fast_division_limit - 1) / groups ? fast_division_limit : tokens * groups;
}

// Whether everything that is read or written 16 bytes at a time begins at a multiple of 16.
bool is_aligned(const AttnEdge& edge) {
    uint64_t bits = 0;
    const int32_t extent[3] = {edge.batch, edge.seq, edge.heads};
    const auto base = [&](const void* p) { bits |= reinterpret_cast<uintptr_t>(p); };
    const auto step = [&](int axis, int64_t stride, uint64_t bytes) {
        if (extent[axis] > 1) bits |= uint64_t(stride) * bytes;
    };
    base(edge.source);
    base(edge.destination);
    base(edge.weight);
    base(edge.cos);
    base(edge.sin);
    for (int axis = 0; axis < 3; ++axis) {
        step(axis, edge.source_strides[axis], 2);
        step(axis, edge.destination_strides[axis], 2);
        if (axis == 2 || edge.rotary_dim == 0) continue;
        step(axis, edge.cos_strides[axis], 4);
        step(axis, edge.sin_strides[axis], 4);
    }
    if (edge.weight != nullptr) step(2, edge.weight_stride, 2);
    return bits % 16 == 0;
}

RowPiece piece_of(const AttnEdge& edge) {
    RowPiece piece = {};
    piece.source = static_cast<const char*>(edge.source);
    piece.destination = static_cast<char*>(edge.destination);
    piece.weight = static_cast<const char*>(edge.weight);
    if (edge.rotary_dim > 0) {
        piece.cos = reinterpret_cast<const char*>(edge.cos);
        piece.sin = reinterpret_cast<const char*>(edge.sin);
    }
    for (int i = 0; i < 3; ++i) {
        piece.source_stride[i] = edge.source_strides[i] * 2;
        piece.destination_stride[i] = edge.destination_strides[i] * 2;
    }
    for (int i = 0; i < 2; ++i) {
        piece.cos_stride[i] = edge.cos_strides[i] * 4;
        piece.sin_stride[i] = edge.sin_strides[i] * 4;
    }
    piece.weight_stride = edge.weight_stride * 2;
    piece.units = uint32_t(units_of(edge));
    piece.groups = fast_division(uint32_t((edge.heads + heads_per_unit - 1) / heads_per_unit));
    piece.seq = fast_division(uint32_t(edge.seq));
    piece.heads = uint32_t(edge.heads);
    piece.chunks = uint32_t(edge.head_dim / row_chunk);
    piece.lanes_log2 = log2_above(piece.chunks);
    piece.rotated_chunks = uint32_t(edge.rotary_dim / row_chunk);
    piece.halves = edge.pairs == ATTN_PAIRS_HALVES;
    piece.norm = edge.norm != 0;
    piece.eps = edge.eps;
    piece.inverse_dim = 1.0f / float(edge.head_dim);
    return piece;
}

}  // namespace
}  // namespace attn

extern "C" int attn_edge(const AttnEdge* edges, size_t count, void* stream) {
    using namespace attn;
    for (size_t i = 0; i < count; ++i) {
        if (!is_supported(edges[i])) return ATTN_UNSUPPORTED;
        if (is_empty(edges[i])) continue;
        if (units_of(edges[i]) >= fast_division_limit) return ATTN_UNSUPPORTED;
        if (!is_aligned(edges[i])) return ATTN_TENSOR_REFUSED;
    }
    RowBatch<large_row_batch> batch;
    batch.count = 0;
    batch.first_tile[0] = 0;
    int32_t type = ATTN_BF16;
    for (size_t i = 0; i < count; ++i) {
        if (is_empty(edges[i])) continue;
        const RowPiece piece = piece_of(edges[i]);
        const uint64_t tiles = uint64_t(batch.first_tile[batch.count]) + tiles_of(piece);
        if (batch.count == large_row_batch || edges[i].type != type || tiles >= fast_division_limit) {
            if (const int status = launch_batch(batch, type, stream)) return status;
            batch.count = 0;
        }
        type = edges[i].type;
        batch.piece[batch.count] = piece;
        batch.first_tile[batch.count + 1] = batch.first_tile[batch.count] + tiles_of(piece);
        ++batch.count;
    }
    return launch_batch(batch, type, stream);
}
