// Which kernel a call gets.
#include "../../attention/mask.h"
#include "launch.h"

namespace {

using Launch = int (*)(const AttnAttention&, void*);

// The table of shapes: for each head dimension the forms that it has, the one that `auto` means, and what follows a cover.
struct Entry {
    int head_dim;
    AttnForm preferred;
    // Null: none.
    Launch simple, overlapped, irregular;
};

using namespace attn::flash::sm90;

constexpr Entry table[] = {
    {32, ATTN_FORM_OVERLAPPED, nullptr, launch_d32_overlapped, launch_d32_irregular},
    {64, ATTN_FORM_OVERLAPPED, launch_d64_simple, launch_d64_overlapped, launch_d64_irregular},
    {96, ATTN_FORM_OVERLAPPED, nullptr, launch_d96_overlapped, launch_d96_irregular},
    {128, ATTN_FORM_OVERLAPPED, launch_d128_simple, launch_d128_overlapped, launch_d128_irregular},
    {192, ATTN_FORM_OVERLAPPED, nullptr, launch_d192_overlapped, launch_d192_irregular},
    {256, ATTN_FORM_OVERLAPPED, launch_d256_simple, launch_d256_overlapped, launch_d256_irregular},
};

// The kernel for a call, or null. Forms are for what neither follows a cover nor packs: that has the overlapped one alone.
Launch choose(const Entry& entry, const AttnAttention& call) {
    if (attn::is_irregular(call.mask)) return entry.irregular;
    if (packs(call)) return entry.overlapped;
    switch (call.form == ATTN_FORM_AUTO ? static_cast<int>(entry.preferred) : call.form) {
        case ATTN_FORM_SIMPLE: return entry.simple;
        case ATTN_FORM_OVERLAPPED: return entry.overlapped;
        default: return nullptr;
    }
}

}  // namespace

extern "C" int attn_flash_sm90(const AttnAttention* call, void* stream) {
    if (call->batch < 0 || call->seq_q < 0 || call->heads < 0) return ATTN_UNSUPPORTED;
    if (call->batch == 0 || call->seq_q == 0 || call->heads == 0) return ATTN_OK;
    if (call->seq_k <= 0 || call->kv_heads <= 0 || call->heads % call->kv_heads != 0 || !(call->scale > 0.0f)) {
        return ATTN_UNSUPPORTED;
    }
    for (const Entry& entry : table) {
        if (entry.head_dim != call->head_dim) continue;
        const Launch launch = choose(entry, *call);
        return launch == nullptr ? static_cast<int>(ATTN_UNSUPPORTED) : launch(*call, stream);
    }
    return ATTN_UNSUPPORTED;
}
