#include "launch.h"

namespace attn::flash::sm90 {

int launch_d64_overlapped(const AttnAttention& call, void* stream) {
    return launch_overlapped<64, 192, 128, 128>(call, stream);
}

}  // namespace attn::flash::sm90
