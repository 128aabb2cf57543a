#include "launch.h"

namespace attn::flash::sm80 {

int launch_d32(const AttnAttention& call, void* stream) { return launch_type<32, 4, 2, 128>(call, stream); }

}  // namespace attn::flash::sm80
