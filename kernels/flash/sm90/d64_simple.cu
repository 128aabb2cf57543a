#include "launch.h"

namespace attn::flash::sm90 {

int launch_d64_simple(const AttnAttention& call, void* stream) {
    return launch_simple<64, 192, 128, 128>(call, stream);
}

}  // namespace attn::flash::sm90
