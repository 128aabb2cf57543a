#include "launch.h"

namespace attn::flash::sm90 {

int launch_d256_irregular(const AttnAttention& call, void* stream) {
    return launch_irregular<256, 128, 64>(call, stream);
}

}  // namespace attn::flash::sm90
