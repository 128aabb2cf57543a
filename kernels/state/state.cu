// attn_state_begin and attn_state_finish: the first and the last touch of flash's carried state.
//
// begin writes -inf into each row's maximum and 0 into its sum, one thread a row.
// finish divides, casts, and writes the log-sum-exp. A tile is as many whole rows as fill the block's loads, at least
// one; neighbouring threads have neighbouring chunks of 8 elements. Rows that cannot be cut into chunks, and rows of
// floats, go element by element.
//
// Both have persistent grids of at most begin_blocks or finish_blocks on each multiprocessor, blocks of block_threads,
// and no shared memory.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../copy/fast_division.h"
#include "attn/abi.h"
#include "attn/device.h"
#include "attn/host.h"

namespace attn {
namespace {

constexpr int block_threads = 256;
constexpr int begin_blocks = 8;
constexpr int finish_blocks = 5;

// Elements that a thread converts at a time (two loads of 16 bytes, one store), and how many times it loads before it
// stores.
constexpr int chunk = 8;
constexpr int chunks_per_thread = 2;

// 1 / log2(e).
constexpr float ln2 = 0.69314718055994530942f;

// All rows of a call: batch, seq and heads in the order of the operand that matters most, shortest stride first, so
// that neighbouring rows are near each other. The last coordinate is what remains.
struct RowSpace {
    FastDivision extent[2];
    uint32_t rows;
};

// An operand's first element and its strides in the order of the row space.
template <class T>
struct RowOperand {
    T* base;
    int64_t stride[3];
};

struct BeginParameters {
    RowSpace space;
    RowOperand<float> max, sum;
};

// T: the element type of `out`.
template <class T>
struct FinishParameters {
    RowSpace space;
    RowOperand<const float> output, max, sum;
    RowOperand<Stored<T>> out;
    // No base: no log-sum-exp is wanted.
    RowOperand<float> lse;
    FastDivision chunks_per_row;
    uint32_t rows_per_tile;
};

struct RowIndex {
    uint32_t at[3];
};

ATTN_DEVICE RowIndex row_index(const RowSpace& space, uint32_t row) {
    const uint32_t above = quotient(row, space.extent[0]);
    const uint32_t last = quotient(above, space.extent[1]);
    return {{row - above * space.extent[0].divisor, above - last * space.extent[1].divisor, last}};
}

template <class T>
ATTN_DEVICE T* row_of(const RowOperand<T>& operand, const RowIndex& index) {
    return operand.base + (index.at[0] * operand.stride[0] + index.at[1] * operand.stride[1] +
                           index.at[2] * operand.stride[2]);
}

ATTN_KERNEL(block_threads, begin_blocks) begin_kernel(ATTN_GRID_CONSTANT const BeginParameters p) {
    const uint32_t step = uint32_t(grid_size()) * block_threads;
    for (uint32_t row = block_index() * block_threads + thread_index(); row < p.space.rows; row += step) {
        const RowIndex index = row_index(p.space, row);
        *row_of(p.max, index) = -INFINITY;
        *row_of(p.sum, index) = 0.0f;
    }
}

ATTN_DEVICE void load_chunk(const float* from, float (&value)[chunk]) {
    uint32_t bits[chunk / 2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        load_global_16(from + half * (chunk / 2), bits);
        memcpy(value + half * (chunk / 2), bits, sizeof(bits));
    }
}

// The log-sum-exp of a row. The maximum is kept in powers of two.
ATTN_DEVICE float log_sum_exp(float max, float sum) {
    return sum != 0.0f ? fmaf(max, ln2, natural_log(sum)) : -INFINITY;
}

template <class T>
ATTN_KERNEL(block_threads, finish_blocks) finish_kernel(ATTN_GRID_CONSTANT const FinishParameters<T> p) {
    const uint32_t step = uint32_t(grid_size()) * p.rows_per_tile;
    for (uint32_t first_row = block_index() * p.rows_per_tile; first_row < p.space.rows; first_row += step) {
        const uint32_t rows_left = p.space.rows - first_row;
        const uint32_t rows = rows_left < p.rows_per_tile ? rows_left : p.rows_per_tile;
        const uint32_t chunks = rows * p.chunks_per_row.divisor;
        for (uint32_t first = thread_index(); first < chunks; first += block_threads * chunks_per_thread) {
            RowIndex index[chunks_per_thread];
            uint32_t column[chunks_per_thread];
            float sum[chunks_per_thread], max[chunks_per_thread];
            float value[chunks_per_thread][chunk];
#pragma unroll
            for (int i = 0; i < chunks_per_thread; ++i) {
                // Where the tile has no further chunk, the thread does its first one again: a condition on the stores
                // would let the compiler move the last loads behind it.
                const uint32_t at = first + i * block_threads < chunks ? first + i * block_threads : first;
                const uint32_t row = quotient(at, p.chunks_per_row);
                column[i] = at - row * p.chunks_per_row.divisor;
                index[i] = row_index(p.space, first_row + row);
                sum[i] = *row_of(p.sum, index[i]);
                max[i] = *row_of(p.max, index[i]);
            }
#pragma unroll
            for (int i = 0; i < chunks_per_thread; ++i) {
                // A row that has attended nothing has a sum of 0, and anything in its output: not read.
                if (sum[i] != 0.0f) {
                    load_chunk(row_of(p.output, index[i]) + column[i] * chunk, value[i]);
                } else {
#pragma unroll
                    for (int j = 0; j < chunk; ++j) value[i][j] = 0.0f;
                }
            }
#pragma unroll
            for (int i = 0; i < chunks_per_thread; ++i) {
                const float inverse = sum[i] != 0.0f ? 1.0f / sum[i] : 0.0f;
                uint32_t packed[chunk / 2];
#pragma unroll
                for (int j = 0; j < chunk / 2; ++j) {
                    packed[j] = pack2<T>(value[i][2 * j] * inverse, value[i][2 * j + 1] * inverse);
                }
                store_global_16(row_of(p.out, index[i]) + column[i] * chunk, packed);
                if (p.lse.base != nullptr && column[i] == 0) {
                    *row_of(p.lse, index[i]) = log_sum_exp(max[i], sum[i]);
                }
            }
        }
    }
}

// The same where rows are no whole chunks, or lie anywhere: a warp for each row, an element at a time.
template <class T>
ATTN_KERNEL(block_threads, finish_blocks)
plain_finish_kernel(ATTN_GRID_CONSTANT const FinishParameters<T> p, int head_dim) {
    const uint32_t step = uint32_t(grid_size()) * (block_threads / 32);
    for (uint32_t row = (block_index() * block_threads + thread_index()) / 32; row < p.space.rows; row += step) {
        const RowIndex index = row_index(p.space, row);
        const float sum = *row_of(p.sum, index);
        const float inverse = sum != 0.0f ? 1.0f / sum : 0.0f;
        const float* output = row_of(p.output, index);
        Stored<T>* out = row_of(p.out, index);
        for (int column = thread_index() & 31; column < head_dim; column += 32) {
            out[column] = sum != 0.0f ? narrow<T>(output[column] * inverse) : narrow<T>(0.0f);
        }
        if (p.lse.base != nullptr && (thread_index() & 31) == 0) {
            *row_of(p.lse, index) = log_sum_exp(*row_of(p.max, index), sum);
        }
    }
}

// Which axis (0 batch, 1 seq, 2 heads) stands at each place of a row space.
struct RowOrder {
    int axis[3];
};

// Tensor: AttnTensor or AttnRows.
template <class Tensor>
int64_t stride_of(const Tensor& tensor, int axis) {
    return axis == 0 ? tensor.batch_stride : axis == 1 ? tensor.seq_stride : tensor.head_stride;
}

int32_t extent_of(const AttnStateCall& call, int axis) {
    return axis == 0 ? call.batch : axis == 1 ? call.seq : call.heads;
}

template <class Tensor>
RowOrder order_by(const Tensor& tensor) {
    RowOrder order = {{2, 1, 0}};
    const auto sort = [&](int a, int b) {
        if (stride_of(tensor, order.axis[b]) >= stride_of(tensor, order.axis[a])) return;
        const int axis = order.axis[a];
        order.axis[a] = order.axis[b];
        order.axis[b] = axis;
    };
    sort(0, 1);
    sort(1, 2);
    sort(0, 1);
    return order;
}

template <class T, class Tensor>
RowOperand<T> operand(const Tensor& tensor, const RowOrder& order) {
    RowOperand<T> result = {static_cast<T*>(tensor.base), {}};
    for (int i = 0; i < 3; ++i) result.stride[i] = stride_of(tensor, order.axis[i]);
    return result;
}

bool is_empty(const AttnStateCall& call) { return call.batch <= 0 || call.seq <= 0 || call.heads <= 0; }

// The kernels count rows in 31 bits. The call is not empty.
bool rows_are_countable(const AttnStateCall& call) {
    const uint64_t most = fast_division_limit - 1;
    return uint64_t(call.batch) * uint64_t(call.seq) <= most / uint64_t(call.heads);
}

RowSpace row_space(const AttnStateCall& call, const RowOrder& order) {
    RowSpace space = {};
    for (int i = 0; i < 2; ++i) space.extent[i] = fast_division(uint32_t(extent_of(call, order.axis[i])));
    space.rows = uint32_t(call.batch) * uint32_t(call.seq) * uint32_t(call.heads);
    return space;
}

// Whether all chunks of a tensor begin at a multiple of 16 bytes.
bool is_aligned(const AttnStateCall& call, const AttnTensor& tensor, uint64_t element_bytes) {
    uint64_t bits = reinterpret_cast<uintptr_t>(tensor.base);
    for (int axis = 0; axis < 3; ++axis) {
        if (extent_of(call, axis) > 1) bits |= uint64_t(stride_of(tensor, axis)) * element_bytes;
    }
    return bits % 16 == 0;
}

template <class... P, class... A>
int launch_persistent(void (*kernel)(P...), uint64_t tiles, int blocks_per_multiprocessor, void* stream,
                      const A&... parameters) {
    int count = 0;
    if (const int status = multiprocessors(&count)) return status;
    const uint64_t most = uint64_t(count) * blocks_per_multiprocessor;
    const int blocks = static_cast<int>(tiles < most ? tiles : most);
    return launch(kernel, LaunchShape{blocks, block_threads, 0}, stream, parameters...);
}

}  // namespace
}  // namespace attn

extern "C" int attn_state_begin(const AttnStateCall* call, void* stream) {
    using namespace attn;
    if (is_empty(*call)) return ATTN_OK;
    if (!rows_are_countable(*call)) return ATTN_UNSUPPORTED;

    const RowOrder order = order_by(call->state_max);
    BeginParameters p = {};
    p.space = row_space(*call, order);
    p.max = operand<float>(call->state_max, order);
    p.sum = operand<float>(call->state_sum, order);
    const uint64_t tiles = (uint64_t(p.space.rows) + block_threads - 1) / block_threads;
    return launch_persistent(begin_kernel, tiles, begin_blocks, stream, p);
}

namespace attn {
namespace {

template <class T>
int finish(const AttnStateCall& call, void* stream) {
    const RowOrder order = order_by(call.out);
    FinishParameters<T> p = {};
    p.space = row_space(call, order);
    p.output = operand<const float>(call.state_output, order);
    p.max = operand<const float>(call.state_max, order);
    p.sum = operand<const float>(call.state_sum, order);
    p.out = operand<Stored<T>>(call.out, order);
    p.lse = operand<float>(call.lse, order);
    if constexpr (sizeof(Stored<T>) == 2) {
        if (call.head_dim % chunk == 0 && is_aligned(call, call.state_output, 4) && is_aligned(call, call.out, 2)) {
            const uint32_t chunks_per_row = uint32_t(call.head_dim) / chunk;
            const uint32_t chunks_per_tile = block_threads * chunks_per_thread;
            p.chunks_per_row = fast_division(chunks_per_row);
            p.rows_per_tile = chunks_per_row < chunks_per_tile ? chunks_per_tile / chunks_per_row : 1;
            const uint64_t tiles = (uint64_t(p.space.rows) + p.rows_per_tile - 1) / p.rows_per_tile;
            return launch_persistent(finish_kernel<T>, tiles, finish_blocks, stream, p);
        }
    }
    const uint64_t tiles = (uint64_t(p.space.rows) + block_threads / 32 - 1) / (block_threads / 32);
    return launch_persistent(plain_finish_kernel<T>, tiles, finish_blocks, stream, p, call.head_dim);
}

}  // namespace
}  // namespace attn

extern "C" int attn_state_finish(const AttnStateCall* call, void* stream) {
    using namespace attn;
    if (call->head_dim <= 0) return ATTN_UNSUPPORTED;
    if (is_empty(*call)) return ATTN_OK;
    if (!rows_are_countable(*call)) return ATTN_UNSUPPORTED;
    switch (call->type) {
        case ATTN_BF16: return finish<Bf16>(*call, stream);
        case ATTN_F16: return finish<F16>(*call, stream);
        case ATTN_F32: return finish<F32>(*call, stream);
        default: return ATTN_UNSUPPORTED;
    }
}
