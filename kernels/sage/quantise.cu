// attn_sage_quantise: queries, keys and values in 8 bits. Keys and values are read twice, queries once. attn_sage_shard: the
// same of a sequence that ranks share, step by step.
#include "quantise.h"

#include "attn/host.h"
#include "keys.h"
#include "queries.h"
#include "survey.h"

namespace attn::sage {
namespace {

// The kernels for one type and head_dim, on a call that has been checked. What has no rows is not launched.
template <class T, int HeadDim>
struct Rounding {
    const Shard& p;
    void* stream;

    int64_t heads() const { return static_cast<int64_t>(p.attention.batch) * p.attention.kv_heads; }

    template <class... More>
    int queue(void (*kernel)(const Shard, More...), int64_t blocks, int threads, int shared_bytes, More... more) const {
        if (blocks == 0) return ATTN_OK;
        if (blocks > INT32_MAX) return ATTN_UNSUPPORTED;
        return launch(kernel, LaunchShape{static_cast<int>(blocks), threads, shared_bytes}, stream, p, more...);
    }

    // What this rank's tokens come to: all there is to know, or its sums.
    int survey_keys(bool are_all) const {
        const int pieces = pieces_of(p.attention.seq_k);
        if (const int status =
                queue(survey<T, HeadDim>, heads() * pieces, quantise_threads, Survey<HeadDim>::shared_bytes)) {
            return status;
        }
        return add_up({p.tensors.partial, pieces, true, are_all});
    }
    int add_up(const Entries& entries) const { return queue(settle<HeadDim>, heads(), 2 * HeadDim, 0, entries); }

    int edges() const {
        return queue(edge_maxima<T, HeadDim>, 2 * heads(), quantise_threads, KeyPlan<HeadDim>::shared_bytes);
    }

    int queries_and_keys() const {
        constexpr int rows = QueryPlan<HeadDim>::rows_of_block;
        const AttnAttention& call = p.attention;
        const int64_t queries = static_cast<int64_t>(call.batch) * call.heads * call.seq_q;
        if (queries > INT32_MAX - rows) return ATTN_UNSUPPORTED;
        if (const int status =
                queue(quantise_queries<T, HeadDim>, (queries + rows - 1) / rows, quantise_threads, 0)) {
            return status;
        }
        return queue(quantise_keys<T, HeadDim>, heads() * p.blocks(), quantise_threads,
                     KeyPlan<HeadDim>::shared_bytes);
    }

    // Everything of a rank that has everything.
    int whole() const {
        if (const int status = survey_keys(true)) return status;
        if (const int status = queries_and_keys()) return status;
        return p.with_values ? round_values(p, ValueStep::Round, stream) : ATTN_OK;
    }

    int step(int step) const {
        switch (step) {
            case ATTN_SHARD_SURVEY: return survey_keys(false);
            case ATTN_SHARD_SETTLE: return add_up({p.sums, p.shards, false, true});
            case ATTN_SHARD_EDGE_MAXIMA: return edges();
            case ATTN_SHARD_ROUND:
                if (const int status = queries_and_keys()) return status;
                return p.attention.seq_k == 0 ? ATTN_OK : round_values(p, ValueStep::Rows, stream);
            case ATTN_SHARD_ARRANGE: return round_values(p, ValueStep::Arrange, stream);
            default: return ATTN_UNSUPPORTED;
        }
    }
};

// Whether every 8 elements begin at a multiple of 16 bytes.
bool is_aligned(const AttnTensor& tensor) {
    const int64_t strides = tensor.batch_stride | tensor.seq_stride | tensor.head_stride;
    return reinterpret_cast<uintptr_t>(tensor.base) % 16 == 0 && strides % 8 == 0;
}

// What a call must be like; a rank's share may have no rows.
int check(const AttnAttention& a, int least_rows) {
    if (a.batch <= 0 || a.seq_q < least_rows || a.seq_k < least_rows || a.kv_heads <= 0 || a.heads <= 0) {
        return ATTN_UNSUPPORTED;
    }
    if (a.heads % a.kv_heads != 0 || !(a.scale > 0.0f)) return ATTN_UNSUPPORTED;
    return is_aligned(a.query) && is_aligned(a.key) && is_aligned(a.value) ? ATTN_OK : ATTN_TENSOR_REFUSED;
}

template <class Do>
int with_type(const AttnAttention& a, const Shard& p, void* stream, Do what) {
    const auto of_type = [&](auto element) -> int {
        using E = decltype(element);
        switch (a.head_dim) {
            case 64: return what(Rounding<E, 64>{p, stream});
            case 128: return what(Rounding<E, 128>{p, stream});
            default: return ATTN_UNSUPPORTED;
        }
    };
    switch (a.type) {
        case ATTN_BF16: return of_type(Bf16{});
        case ATTN_F16: return of_type(F16{});
        default: return ATTN_UNSUPPORTED;
    }
}

}  // namespace
}  // namespace attn::sage

extern "C" int attn_sage_quantise(const AttnSage* call, void* stream) {
    using namespace attn::sage;
    if (const int status = check(call->attention, 1)) return status;
    const Shard p = Shard::whole(*call);
    return with_type(p.attention, p, stream, [](const auto& rounding) { return rounding.whole(); });
}

extern "C" int attn_sage_shard(const AttnSageShard* call, void* stream) {
    using namespace attn::sage;
    if (const int status = check(call->sage.attention, 0)) return status;
    if (call->shards <= 0 || call->shard < 0 || call->shard >= call->shards || call->joint < 0 || call->tokens < 0) {
        return ATTN_UNSUPPORTED;
    }
    const Shard p = Shard::of(*call);
    if (p.start(call->shard + 1) - p.first != p.attention.seq_k) return ATTN_UNSUPPORTED;
    return with_type(p.attention, p, stream, [&](const auto& rounding) { return rounding.step(call->step); });
}
