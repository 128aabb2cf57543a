// Which kernel a call gets.
#include "launch.h"

namespace {

// The table of shapes.
struct Entry {
    int head_dim;
    int (*launch)(const AttnAttention&, void*);
};

using namespace attn::flash::sm80;

constexpr Entry table[] = {
    {32, launch_d32}, {64, launch_d64}, {96, launch_d96}, {128, launch_d128}, {192, launch_d192}, {256, launch_d256},
};

}  // namespace

extern "C" int attn_flash_sm80(const AttnAttention* call, void* stream) {
    if (call->batch < 0 || call->seq_q < 0 || call->heads < 0) return ATTN_UNSUPPORTED;
    if (call->batch == 0 || call->seq_q == 0 || call->heads == 0) return ATTN_OK;
    if (call->seq_k <= 0 || call->kv_heads <= 0 || call->heads % call->kv_heads != 0 || !(call->scale > 0.0f)) {
        return ATTN_UNSUPPORTED;
    }
    // Offsets of rows are counted in ints. (src/cuda/layout.rs says so first.)
    constexpr int most_rows = 1 << 28;
    if (call->seq_q > most_rows || call->seq_k > most_rows) return ATTN_UNSUPPORTED;
    if (call->form != ATTN_FORM_AUTO && call->form != ATTN_FORM_SIMPLE) return ATTN_UNSUPPORTED;
    for (const Entry& entry : table) {
        if (entry.head_dim != call->head_dim) continue;
        return is_aligned(*call) ? entry.launch(*call, stream) : ATTN_TENSOR_REFUSED;
    }
    return ATTN_UNSUPPORTED;
}
