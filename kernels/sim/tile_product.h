// The arithmetic of one wgmma.
#pragma once

namespace attn::sim {

// sums[64][n] += a[64][depth] b[depth][n]. n is a multiple of 8, depth 16 or 32.
void add_tile_product(float* sums, const float* a, const float* b, int n, int depth);

}  // namespace attn::sim
