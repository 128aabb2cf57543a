#include "launch.h"

namespace attn::flash::sm90 {

int launch_d64_irregular(const AttnAttention& call, void* stream) {
    return launch_irregular<64, 192, 128>(call, stream);
}

}  // namespace attn::flash::sm90
