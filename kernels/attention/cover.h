// Covers: what an irregular mask leaves of each of a kernel's tiles.
#pragma once
#include "mask.h"

namespace attn {

// Tiles that a cover has room for are at least as large.
constexpr int least_cover_rows = 64, least_cover_keys = 64;

// Queues the kernel that fills call.mask.cover for tiles of `rows` queries and blocks of `keys` keys. The cover of a
// block heeds everything: also the band, the key lengths, and that there are no keys from seq_k on.
int launch_cover(const AttnAttention& call, int rows, int keys, void* stream);

}  // namespace attn
