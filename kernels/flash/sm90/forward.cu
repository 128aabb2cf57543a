// Which kernel a call gets.
#include "../../attention/mask.h"
#include "launch.h"

namespace {

using Launch = int (*)(const AttnAttention&, void*);

// The table of shapes: for each head dimension, its two forms and the one that `auto` means.
struct Entry {
    int head_dim;
    Launch simple, overlapped;
    AttnForm preferred;
};

using namespace attn::flash::sm90;

constexpr Entry table[] = {
    {64, launch_d64_simple, launch_d64_overlapped, ATTN_FORM_OVERLAPPED},
    {128, launch_d128_simple, launch_d128_overlapped, ATTN_FORM_OVERLAPPED},
    {256, launch_d256_simple, launch_d256_overlapped, ATTN_FORM_OVERLAPPED},
};

}  // namespace

extern "C" int attn_flash_sm90(const AttnAttention* call, void* stream) {
    if (call->batch < 0 || call->seq_q < 0 || call->heads < 0) return ATTN_UNSUPPORTED;
    if (call->batch == 0 || call->seq_q == 0 || call->heads == 0) return ATTN_OK;
    if (call->seq_k <= 0 || call->kv_heads <= 0 || call->heads % call->kv_heads != 0 || !(call->scale > 0.0f)) {
        return ATTN_UNSUPPORTED;
    }
    if (attn::is_irregular(call->mask)) return ATTN_UNSUPPORTED;
    for (const Entry& entry : table) {
        if (entry.head_dim != call->head_dim) continue;
        const int form = call->form == ATTN_FORM_AUTO ? static_cast<int>(entry.preferred) : call->form;
        switch (form) {
            case ATTN_FORM_SIMPLE: return entry.simple(*call, stream);
            case ATTN_FORM_OVERLAPPED: return entry.overlapped(*call, stream);
            default: return ATTN_UNSUPPORTED;
        }
    }
    return ATTN_UNSUPPORTED;
}
