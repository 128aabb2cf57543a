#include "launch.h"

namespace attn::flash::sm90 {

int launch_d256_simple(const AttnAttention& call, void* stream) {
    return launch_simple<256, 128, 80, 80>(call, stream);
}

}  // namespace attn::flash::sm90
