#include "launch.h"

namespace attn::flash::sm90 {

int launch_d96_overlapped(const AttnAttention& call, void* stream) {
    return launch_overlapped<96, 128, 176, 128>(call, stream);
}

}  // namespace attn::flash::sm90
