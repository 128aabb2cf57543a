#include "launch.h"

namespace attn::flash::sm80 {

int launch_d96(const AttnAttention& call, void* stream) { return launch_type<96, 4, 2, 64>(call, stream); }

}  // namespace attn::flash::sm80
