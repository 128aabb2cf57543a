#include "launch.h"

namespace attn::flash::sm90 {

int launch_d64_simple(const AttnAttention& call, void* stream) {
    return launch_form<64, 192, 128, 128, 128, Form::Simple>(call, stream);
}

}  // namespace attn::flash::sm90
