#include "launch.h"

namespace attn::flash::sm80 {

int launch_d256(const AttnAttention& call, void* stream) { return launch_type<256, 8, 1, 32>(call, stream); }

}  // namespace attn::flash::sm80
