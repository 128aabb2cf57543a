// attn_sage_quantise: queries, keys and values in 8 bits. Keys and values are read twice, queries once.
#include "quantise.h"

#include "attn/host.h"
#include "keys.h"
#include "queries.h"
#include "survey.h"

namespace attn::sage {
namespace {

template <class T, int HeadDim>
int quantise(const AttnSage& p, void* stream) {
    const AttnAttention& call = p.attention;
    const int64_t heads = static_cast<int64_t>(call.batch) * call.kv_heads;
    const auto queue = [&](auto kernel, int64_t blocks, int threads, int shared_bytes) -> int {
        if (blocks > INT32_MAX) return ATTN_UNSUPPORTED;
        return launch(kernel, LaunchShape{static_cast<int>(blocks), threads, shared_bytes}, stream, p);
    };
    if (const int status = queue(survey<T, HeadDim>, heads * pieces_of(call.seq_k), quantise_threads,
                                 Survey<HeadDim>::shared_bytes)) {
        return status;
    }
    if (const int status = queue(settle<HeadDim>, heads, 2 * HeadDim, 0)) return status;
    constexpr int query_rows = QueryPlan<HeadDim>::rows_of_block;
    const int64_t queries = static_cast<int64_t>(call.batch) * call.heads * call.seq_q;
    if (queries > INT32_MAX - query_rows) return ATTN_UNSUPPORTED;
    if (const int status = queue(quantise_queries<T, HeadDim>, (queries + query_rows - 1) / query_rows,
                                 quantise_threads, 0)) {
        return status;
    }
    const int64_t blocks = heads * blocks_of(call.seq_k);
    if (const int status = queue(quantise_keys<T, HeadDim>, blocks, quantise_threads, KeyPlan<HeadDim>::shared_bytes)) {
        return status;
    }
    return p.tensors.value == nullptr ? ATTN_OK : quantise_values(p, stream);
}

// Whether every 8 elements begin at a multiple of 16 bytes.
bool is_aligned(const AttnTensor& tensor) {
    const int64_t strides = tensor.batch_stride | tensor.seq_stride | tensor.head_stride;
    return reinterpret_cast<uintptr_t>(tensor.base) % 16 == 0 && strides % 8 == 0;
}

}  // namespace
}  // namespace attn::sage

extern "C" int attn_sage_quantise(const AttnSage* call, void* stream) {
    using namespace attn;
    using namespace attn::sage;
    const AttnAttention& a = call->attention;
    if (a.batch <= 0 || a.seq_q <= 0 || a.seq_k <= 0 || a.kv_heads <= 0 || a.heads <= 0) return ATTN_UNSUPPORTED;
    if (a.heads % a.kv_heads != 0 || !(a.scale > 0.0f)) return ATTN_UNSUPPORTED;
    if (!is_aligned(a.query) || !is_aligned(a.key) || !is_aligned(a.value)) return ATTN_TENSOR_REFUSED;
    const auto of_type = [&](auto element) -> int {
        using E = decltype(element);
        switch (a.head_dim) {
            case 64: return quantise<E, 64>(*call, stream);
            case 128: return quantise<E, 128>(*call, stream);
            default: return ATTN_UNSUPPORTED;
        }
    };
    switch (a.type) {
        case ATTN_BF16: return of_type(Bf16{});
        case ATTN_F16: return of_type(F16{});
        default: return ATTN_UNSUPPORTED;
    }
}
