// Values to e4m3.
//
// values_kernel: transposed. A warp takes 32 channels of a block of 128 tokens: a lane 8 channels of 16 tokens, which it
// turns round in its registers. It reads 64 bytes of each token, and writes 128 of each channel.
//
// rows_kernel: in rows, as ranks exchange them. arrange_kernel: these transposed; a lane takes 16 channels of 16 tokens.
//
// Transposed, tokens beyond the key length become zeros, up to the end of the block.
#include "../quantise.h"
#include "../rounding.h"
#include "attn/host.h"

namespace attn::sage {
namespace {

constexpr int value_threads = 128, warp_channels = 32, lane_tokens = 16;

template <class T, int HeadDim>
ATTN_KERNEL(value_threads, 4) values_kernel(ATTN_GRID_CONSTANT const Shard p) {
    constexpr int parts = HeadDim / warp_channels, warps = value_threads / 32;
    const AttnAttention& call = p.attention;
    const int blocks = blocks_of(call.seq_k), number = block_index() * warps + thread_index() / 32;
    const int part = number % parts, block = number / parts % blocks;
    if (number / parts / blocks >= call.batch * call.kv_heads) return;
    const KeyHead head = KeyHead::of(call, number / parts / blocks);
    const int length = p.length(head.batch);
    if (block * block_keys >= length) return;

    const int channel = part * warp_channels + thread_index() % 4 * 8;
    const int first = block * block_keys + thread_index() % 32 / 4 * lane_tokens;
    Elements<8> value[lane_tokens];
#pragma unroll
    for (int i = 0; i < lane_tokens; ++i) {
        value[i].load(row_of(call.value, head.batch, readable(first + i, length), head.head) + channel);
    }
#pragma unroll
    for (int i = 0; i < lane_tokens; ++i) value[i].keep_if(first + i < length);
    float scales[8];
    load_floats(p.tensors.value_scale + static_cast<int64_t>(head.number) * HeadDim + channel, scales);
    uint8_t* to = p.tensors.value +
                  (static_cast<int64_t>(head.number) * HeadDim + channel) * blocks * block_keys + first;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        // Two channels, whose elements share words.
        const float inverse[2] = {1.0f / scales[2 * pair], 1.0f / scales[2 * pair + 1]};
        uint32_t packed[2][4];
#pragma unroll
        for (int word = 0; word < 4; ++word) {
            float values[2][4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                widen_pair<T>(value[token_at(4 * word + e)].words[pair], values[0][e], values[1][e]);
            }
#pragma unroll
            for (int of = 0; of < 2; ++of) {
                const float(&v)[4] = values[of];
                packed[of][word] =
                    pack4<E4m3>(v[0] * inverse[of], v[1] * inverse[of], v[2] * inverse[of], v[3] * inverse[of]);
            }
        }
#pragma unroll
        for (int of = 0; of < 2; ++of) {
            store_global_16(to + static_cast<int64_t>(2 * pair + of) * blocks * block_keys, packed[of]);
        }
    }
}

template <class T, int HeadDim>
ATTN_KERNEL(quantise_threads, 4) rows_kernel(ATTN_GRID_CONSTANT const Shard p) {
    constexpr int lanes = HeadDim / 16, rows = quantise_threads / lanes;
    const AttnAttention& call = p.attention;
    const int lane = thread_index() % lanes, row = block_index() * rows + thread_index() / lanes;
    if (row >= call.batch * call.kv_heads * call.seq_k) return;
    const int token = row % call.seq_k;
    const KeyHead head = KeyHead::of(call, row / call.seq_k);
    if (token >= p.length(head.batch)) return;
    Elements<16> value;
    value.load(row_of(call.value, head.batch, token, head.head) + 16 * lane);
    float values[16], scales[16];
    value.template widen<T>(values);
    load_floats(p.tensors.value_scale + static_cast<int64_t>(head.number) * HeadDim + 16 * lane, scales);
    uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float v[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = values[4 * i + e] * (1.0f / scales[4 * i + e]);
        packed[i] = pack4<E4m3>(v[0], v[1], v[2], v[3]);
    }
    store_global_16(p.value_rows + static_cast<int64_t>(row) * HeadDim + 16 * lane, packed);
}

template <int HeadDim>
ATTN_KERNEL(value_threads, 2) arrange_kernel(ATTN_GRID_CONSTANT const Shard p) {
    constexpr int lanes = HeadDim / 16, block_lanes = lanes * (block_keys / lane_tokens);
    const AttnAttention& call = p.attention;
    const int blocks = blocks_of(call.seq_k), number = block_index() * value_threads + thread_index();
    const int block = number / block_lanes % blocks;
    if (number / block_lanes / blocks >= call.batch * call.kv_heads) return;
    const KeyHead head = KeyHead::of(call, number / block_lanes / blocks);
    const int length = p.length(head.batch);
    if (block * block_keys >= length) return;

    const int channel = number % lanes * 16, first = block * block_keys + number % block_lanes / lanes * lane_tokens;
    const uint8_t* from = p.value_rows + static_cast<int64_t>(head.number) * call.seq_k * HeadDim + channel;
    uint32_t value[lane_tokens][4];
#pragma unroll
    for (int i = 0; i < lane_tokens; ++i) {
        load_global_16(from + static_cast<int64_t>(readable(first + i, length)) * HeadDim, value[i]);
    }
    uint8_t* to = p.tensors.value + (static_cast<int64_t>(head.number) * HeadDim + channel) * blocks * block_keys + first;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        uint32_t packed[4] = {};
#pragma unroll
        for (int place = 0; place < lane_tokens; ++place) {
            const uint32_t word = first + token_at(place) < length ? value[token_at(place)][i / 4] : 0;
            packed[place / 4] |= (word >> (8 * (i % 4)) & 0xff) << (8 * (place % 4));
        }
        store_global_16(to + static_cast<int64_t>(i) * blocks * block_keys, packed);
    }
}

// As many blocks as so many threads or rows need.
int64_t blocks_for(int64_t all, int of_block) { return (all + of_block - 1) / of_block; }

template <class T, int HeadDim>
int launch_values(const Shard& p, ValueStep step, void* stream) {
    const AttnAttention& call = p.attention;
    const int64_t heads = static_cast<int64_t>(call.batch) * call.kv_heads, blocks = heads * blocks_of(call.seq_k);
    const auto queue = [&](auto kernel, int64_t grid, int threads) -> int {
        if (grid > INT32_MAX / quantise_threads) return ATTN_UNSUPPORTED;
        return launch(kernel, LaunchShape{static_cast<int>(grid), threads, 0}, stream, p);
    };
    constexpr int lanes = HeadDim / 16;
    switch (step) {
        case ValueStep::Round:
            return queue(values_kernel<T, HeadDim>, blocks_for(blocks * (HeadDim / warp_channels), value_threads / 32),
                         value_threads);
        case ValueStep::Rows:
            if (heads * call.seq_k > INT32_MAX - quantise_threads) return ATTN_UNSUPPORTED;
            return queue(rows_kernel<T, HeadDim>, blocks_for(heads * call.seq_k, quantise_threads / lanes),
                         quantise_threads);
        default:
            return queue(arrange_kernel<HeadDim>, blocks_for(blocks * lanes * (block_keys / lane_tokens), value_threads),
                         value_threads);
    }
}

}  // namespace

int round_values(const Shard& call, ValueStep step, void* stream) {
    const bool bf16 = call.attention.type == ATTN_BF16;
    if (call.attention.head_dim == 64) {
        return bf16 ? launch_values<Bf16, 64>(call, step, stream) : launch_values<F16, 64>(call, step, stream);
    }
    return bf16 ? launch_values<Bf16, 128>(call, step, stream) : launch_values<F16, 128>(call, step, stream);
}

}  // namespace attn::sage
