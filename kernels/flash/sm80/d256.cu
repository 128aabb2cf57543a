#include "launch.h"

namespace attn::flash::sm80 {

int launch_d256(const AttnAttention& call, void* stream) { return launch_type<256, 4, 1, 64>(call, stream); }

}  // namespace attn::flash::sm80
