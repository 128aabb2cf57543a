#include "launch.h"

namespace attn::flash::sm90 {

int launch_d64_overlapped(const AttnAttention& call, void* stream) {
    return launch_form<64, 192, 128, 128, 128, Form::Overlapped>(call, stream);
}

}  // namespace attn::flash::sm90
