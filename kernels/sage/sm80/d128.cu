#include "launch.h"

namespace attn::sage::sm80 {

int launch_d128(const AttnSage& call, void* stream) { return launch_type<128, 4, 2, 32>(call, stream); }

}  // namespace attn::sage::sm80
