#include "launch.h"

namespace attn::flash::sm90 {

int launch_d96_irregular(const AttnAttention& call, void* stream) {
    return launch_irregular<96, 128, 128>(call, stream);
}

}  // namespace attn::flash::sm90
