#include "launch.h"

namespace attn::flash::sm90 {

int launch_d32_overlapped(const AttnAttention& call, void* stream) {
    return launch_overlapped<32, 192, 128, 128>(call, stream);
}

}  // namespace attn::flash::sm90
