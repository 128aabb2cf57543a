#include "launch.h"

namespace attn::sage::sm80 {

int launch_d64(const AttnSage& call, void* stream) { return launch_type<64, 4, 2, 64>(call, stream); }

}  // namespace attn::sage::sm80
