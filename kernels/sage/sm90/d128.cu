#include "launch.h"

namespace attn::sage::sm90 {

int launch_d128(const AttnSage& call, void* stream) { return launch_tile<Tile<128>>(call, stream); }

}  // namespace attn::sage::sm90
