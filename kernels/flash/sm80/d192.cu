#include "launch.h"

namespace attn::flash::sm80 {

int launch_d192(const AttnAttention& call, void* stream) { return launch_type<192, 8, 1, 64>(call, stream); }

}  // namespace attn::flash::sm80
