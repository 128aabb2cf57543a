#include "launch.h"

namespace attn::flash::sm90 {

int launch_d128_simple(const AttnAttention& call, void* stream) {
    return launch_simple<128, 192, 112, 96>(call, stream);
}

}  // namespace attn::flash::sm90
