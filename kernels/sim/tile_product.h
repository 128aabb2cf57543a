// The arithmetic of one wgmma.
#pragma once

namespace attn::sim {

// sums[64][n] += a[64][16] b[16][n]. n is a multiple of 8.
void add_tile_product(float* sums, const float* a, const float* b, int n);

}  // namespace attn::sim
