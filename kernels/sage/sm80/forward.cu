// Which kernel a call gets.
#include "launch.h"

extern "C" int attn_sage_sm80(const AttnSage* call, void* stream) {
    using namespace attn::sage::sm80;
    const AttnAttention& a = call->attention;
    if (a.batch < 0 || a.seq_q < 0 || a.heads < 0) return ATTN_UNSUPPORTED;
    if (a.batch == 0 || a.seq_q == 0 || a.heads == 0) return ATTN_OK;
    // Offsets of rows are counted in ints. (src/cuda/layout.rs says so first.)
    constexpr int most_rows = 1 << 28;
    if (a.seq_q > most_rows || a.seq_k > most_rows) return ATTN_UNSUPPORTED;
    if (a.seq_k <= 0 || a.kv_heads <= 0 || a.heads % a.kv_heads != 0) return ATTN_UNSUPPORTED;
    if (a.type != ATTN_BF16 && a.type != ATTN_F16) return ATTN_UNSUPPORTED;
    switch (a.head_dim) {
        case 64: return launch_d64(*call, stream);
        case 128: return launch_d128(*call, stream);
        default: return ATTN_UNSUPPORTED;
    }
}
