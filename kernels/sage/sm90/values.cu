// Values to e4m3, transposed. A warp takes 32 channels of a block of 128 tokens: a lane 8 channels of 16 tokens, which it
// turns round in its registers. It reads 64 bytes of each token, and writes 128 of each channel.
//
// Tokens beyond the key length become zeros, up to the end of the block.
#include "../quantise.h"
#include "../rounding.h"
#include "attn/host.h"

namespace attn::sage {
namespace {

constexpr int value_threads = 128, warp_channels = 32, lane_tokens = 16;

template <class T, int HeadDim>
ATTN_KERNEL(value_threads, 4) values_kernel(ATTN_GRID_CONSTANT const AttnSage p) {
    constexpr int parts = HeadDim / warp_channels, warps = value_threads / 32;
    const AttnAttention& call = p.attention;
    const int blocks = blocks_of(call.seq_k), number = block_index() * warps + thread_index() / 32;
    const int part = number % parts, block = number / parts % blocks;
    if (number / parts / blocks >= call.batch * call.kv_heads) return;
    const KeyHead head = KeyHead::of(call, number / parts / blocks);
    const int length = head.length(call);
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
int launch_values(const AttnSage& p, void* stream) {
    const AttnAttention& call = p.attention;
    const int64_t blocks = static_cast<int64_t>(call.batch) * call.kv_heads * blocks_of(call.seq_k);
    constexpr int warps = value_threads / 32;
    const int64_t all = (blocks * (HeadDim / warp_channels) + warps - 1) / warps;
    if (all > INT32_MAX / warps) return ATTN_UNSUPPORTED;
    return launch(values_kernel<T, HeadDim>, LaunchShape{static_cast<int>(all), value_threads, 0}, stream, p);
}

}  // namespace

int quantise_values(const AttnSage& call, void* stream) {
    const bool bf16 = call.attention.type == ATTN_BF16;
    if (call.attention.head_dim == 64) {
        return bf16 ? launch_values<Bf16, 64>(call, stream) : launch_values<F16, 64>(call, stream);
    }
    return bf16 ? launch_values<Bf16, 128>(call, stream) : launch_values<F16, 128>(call, stream);
}

}  // namespace attn::sage
