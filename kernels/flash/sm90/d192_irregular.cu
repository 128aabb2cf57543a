#include "launch.h"

namespace attn::flash::sm90 {

int launch_d192_irregular(const AttnAttention& call, void* stream) {
    return launch_irregular<192, 128, 112>(call, stream);
}

}  // namespace attn::flash::sm90
