#include "launch.h"

namespace attn::flash::sm90 {

int launch_d192_overlapped(const AttnAttention& call, void* stream) {
    return launch_overlapped<192, 128, 112, 112>(call, stream);
}

}  // namespace attn::flash::sm90
