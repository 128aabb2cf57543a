#include "launch.h"

namespace attn::flash::sm90 {

int launch_d128_simple(const AttnAttention& call, void* stream) {
    return launch_form<128, 192, 112, 112, 96, Form::Simple>(call, stream);
}

}  // namespace attn::flash::sm90
