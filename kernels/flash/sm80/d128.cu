#include "launch.h"

namespace attn::flash::sm80 {

int launch_d128(const AttnAttention& call, void* stream) { return launch_type<128, 4, 2, 32>(call, stream); }

}  // namespace attn::flash::sm80
