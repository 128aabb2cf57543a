#include "launch.h"

namespace attn::sage::sm90 {

int launch_d64(const AttnSage& call, void* stream) { return launch_tile<Tile<64>>(call, stream); }

}  // namespace attn::sage::sm90
