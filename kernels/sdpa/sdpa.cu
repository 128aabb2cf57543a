// attn_sdpa: plain attention, for any head_dim, mask and type, without tensor cores: what the other kernels are compared
// with on the device, and what takes the calls that they do not.
//
// A warp has one row of queries. It takes keys 32 at a time, one a lane: each lane sums up the product with its own key,
// and the online softmax (Milakov and Gimelshein 2018) takes the warp's 32 at once. Then lanes have columns of the output,
// and add the values of the keys that are attended, one key after the other: the others are not read, so whatever
// stands there reaches nobody. Of a row longer than `slice` elements the output is made slice by slice, from products
// that are made anew.
#include <cmath>
#include <cstdint>

#include "../attention/mask.h"
#include "../copy/fast_division.h"
#include "attn/abi.h"
#include "attn/device.h"
#include "attn/host.h"

namespace attn {
namespace {

constexpr int block_threads = 256, warps = block_threads / 32, blocks_per_multiprocessor = 4;
// Columns of the output that a lane has, and a warp.
constexpr int columns = 8, slice = 32 * columns;
constexpr float ln2 = 0.69314718055994530942f;
constexpr uint32_t nobody = 0;

struct SdpaParameters {
    AttnTensor query, key, value, out, state_output;
    AttnRows lse, state_max, state_sum;
    AttnMask mask;
    // Rows are counted with heads first, then queries, then batch rows.
    FastDivision heads, seq;
    uint32_t rows;
    int heads_per_kv, seq_q, seq_k, head_dim;
    // softmax is taken in powers of two: scale * log2(e).
    float scale_log2;
};

struct Row {
    int batch, query, head;
};

ATTN_DEVICE int lane_index() { return thread_index() & 31; }

// The first element of a row of a tensor.
template <class T>
ATTN_DEVICE T* row_of(const AttnTensor& tensor, int batch, int seq, int head) {
    return static_cast<T*>(tensor.base) +
           (batch * tensor.batch_stride + seq * tensor.seq_stride + head * tensor.head_stride);
}

ATTN_DEVICE float& row_of(const AttnRows& rows, const Row& row) {
    return rows.base[row.batch * rows.batch_stride + row.query * rows.seq_stride + row.head * rows.head_stride];
}

// The largest, and the sum, of all lanes' values.
ATTN_DEVICE float largest(float value) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) value = fmaxf(value, shuffle_xor(value, apart));
    return value;
}
ATTN_DEVICE float sum(float value) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) value += shuffle_xor(value, apart);
    return value;
}

// What a row has attended so far, in one slice of columns: lane l has columns l, l + 32, ..
struct Progress {
    // What exponents are relative to, in powers of two; the sum of the exponentials, of all lanes.
    float shift, total;
    float output[columns];
};

template <class T>
ATTN_DEVICE void attend(const SdpaParameters& p, const Row& row, int first_column, Progress& progress) {
    const int kv_head = row.head / p.heads_per_kv;
    const Stored<T>* query = row_of<const Stored<T>>(p.query, row.batch, row.query, row.head);
    const int length = key_length(p.mask, row.batch, p.seq_k);
    const int start = row.query + p.mask.band_lo > 0 ? row.query + p.mask.band_lo : 0;
    const int end = row.query + p.mask.band_hi + 1 < length ? row.query + p.mask.band_hi + 1 : length;
    const MaskRow mask = MaskRow::of(p.mask, row.batch, row.head, p.seq_q, p.seq_k, row.query);
    for (int first = start; first < end; first += 32) {
        const int own = first + lane_index();
        float product = -INFINITY;
        if (own < end && mask.allows(own)) {
            const Stored<T>* key = row_of<const Stored<T>>(p.key, row.batch, own, kv_head);
            product = 0.0f;
            for (int i = 0; i < p.head_dim; ++i) product = fmaf(widen<T>(query[i]), widen<T>(key[i]), product);
            product *= p.scale_log2;
        }
        // A product of -inf weighs nothing, as one of a key that is not attended; one that is no number weighs.
        uint32_t left = ballot(!(product == -INFINITY));
        if (left == nobody) continue;
        const float shift = fmaxf(progress.shift, largest(product));
        // A row that has met nothing yet: 2^(-inf - shift) is 0. Nothing but NaN so far: as good as any.
        const float correction = exp2_approx(progress.shift - (shift == -INFINITY ? 0.0f : shift));
        const float weight = exp2_approx(product - (shift == -INFINITY ? 0.0f : shift));
        progress.shift = shift;
        progress.total = progress.total * correction + sum(weight);
#pragma unroll
        for (int i = 0; i < columns; ++i) progress.output[i] *= correction;
        while (left != nobody) {
            const int lane = lowest_bit(left);
            left &= left - 1;
            const float of_key = float_of_lane(weight, lane);
            const Stored<T>* value =
                row_of<const Stored<T>>(p.value, row.batch, first + lane, kv_head) + first_column;
#pragma unroll
            for (int i = 0; i < columns; ++i) {
                const int column = 32 * i + lane_index();
                if (first_column + column < p.head_dim) {
                    progress.output[i] = fmaf(of_key, widen<T>(value[column]), progress.output[i]);
                }
            }
        }
    }
}

// Starts from the state, or from nothing.
ATTN_DEVICE void begin(const SdpaParameters& p, const Row& row, int first_column, Progress& progress) {
    progress = {-INFINITY, 0.0f, {}};
    if (p.state_max.base == nullptr) return;
    const float sum = row_of(p.state_sum, row);
    // Products that are no number leave a maximum of -inf too, and a sum that is none.
    if (row_of(p.state_max, row) == -INFINITY && sum == 0.0f) return;
    progress.shift = row_of(p.state_max, row);
    progress.total = sum;
    const float* from = row_of<const float>(p.state_output, row.batch, row.query, row.head) + first_column;
#pragma unroll
    for (int i = 0; i < columns; ++i) {
        const int column = 32 * i + lane_index();
        if (first_column + column < p.head_dim) progress.output[i] = from[column];
    }
}

template <class T>
ATTN_DEVICE void end(const SdpaParameters& p, const Row& row, int first_column, const Progress& progress) {
    const bool carried = p.state_max.base != nullptr;
    const bool nothing = progress.total == 0.0f;
    const float inverse = nothing ? 0.0f : 1.0f / progress.total;
    Stored<T>* out = row_of<Stored<T>>(p.out, row.batch, row.query, row.head) + first_column;
    float* state = row_of<float>(p.state_output, row.batch, row.query, row.head) + first_column;
#pragma unroll
    for (int i = 0; i < columns; ++i) {
        const int column = 32 * i + lane_index();
        if (first_column + column >= p.head_dim) continue;
        if (carried) {
            state[column] = progress.output[i];
        } else {
            out[column] = narrow<T>(progress.output[i] * inverse);
        }
    }
    // The last slice has the last word: what the others start from must not change before.
    if (lane_index() != 0 || first_column + slice < p.head_dim) return;
    if (carried) {
        row_of(p.state_max, row) = progress.shift;
        row_of(p.state_sum, row) = progress.total;
    } else if (p.lse.base != nullptr) {
        row_of(p.lse, row) = nothing ? -INFINITY : fmaf(progress.shift, ln2, natural_log(progress.total));
    }
}

template <class T>
ATTN_KERNEL(block_threads, blocks_per_multiprocessor) sdpa_kernel(ATTN_GRID_CONSTANT const SdpaParameters p) {
    const uint32_t step = uint32_t(grid_size()) * warps;
    for (uint32_t at = uint32_t(block_index()) * warps + thread_index() / 32; at < p.rows; at += step) {
        const uint32_t above = quotient(at, p.heads), batch = quotient(above, p.seq);
        const Row row = {static_cast<int>(batch), static_cast<int>(above - batch * p.seq.divisor),
                         static_cast<int>(at - above * p.heads.divisor)};
        for (int first_column = 0; first_column < p.head_dim; first_column += slice) {
            Progress progress;
            begin(p, row, first_column, progress);
            attend<T>(p, row, first_column, progress);
            end<T>(p, row, first_column, progress);
        }
    }
}

}  // namespace
}  // namespace attn

extern "C" int attn_sdpa(const AttnAttention* call, void* stream) {
    using namespace attn;
    if (call->batch < 0 || call->seq_q < 0 || call->heads < 0) return ATTN_UNSUPPORTED;
    if (call->batch == 0 || call->seq_q == 0 || call->heads == 0) return ATTN_OK;
    if (call->seq_k <= 0 || call->head_dim <= 0 || call->kv_heads <= 0 || call->heads % call->kv_heads != 0) {
        return ATTN_UNSUPPORTED;
    }
    const uint64_t most_rows = fast_division_limit - 1;
    if (uint64_t(call->batch) * uint64_t(call->seq_q) > most_rows / uint64_t(call->heads)) return ATTN_UNSUPPORTED;

    constexpr float log2e = 1.44269504088896340736f;
    SdpaParameters p = {};
    p.query = call->query;
    p.key = call->key;
    p.value = call->value;
    p.out = call->out;
    p.state_output = call->state_output;
    p.lse = call->lse;
    p.state_max = call->state_max;
    p.state_sum = call->state_sum;
    p.mask = call->mask;
    p.heads = fast_division(uint32_t(call->heads));
    p.seq = fast_division(uint32_t(call->seq_q));
    p.rows = uint32_t(call->batch) * uint32_t(call->seq_q) * uint32_t(call->heads);
    p.heads_per_kv = call->heads / call->kv_heads;
    p.seq_q = call->seq_q;
    p.seq_k = call->seq_k;
    p.head_dim = call->head_dim;
    p.scale_log2 = call->scale * log2e;
    int count = 0;
    if (const int status = multiprocessors(&count)) return status;
    const uint32_t blocks = (p.rows + warps - 1) / warps, most = uint32_t(count) * blocks_per_multiprocessor;
    const LaunchShape shape = {static_cast<int>(blocks < most ? blocks : most), block_threads, 0};
    switch (call->type) {
        case ATTN_BF16: return launch(sdpa_kernel<Bf16>, shape, stream, p);
        case ATTN_F16: return launch(sdpa_kernel<F16>, shape, stream, p);
        case ATTN_F32: return launch(sdpa_kernel<F32>, shape, stream, p);
        default: return ATTN_UNSUPPORTED;
    }
}
