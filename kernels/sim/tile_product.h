// The arithmetic of the tensor cores.
#pragma once

namespace attn::sim {

// sums[rows][n] += a[rows][16] b[16][n]. `rows` is a multiple of 4, n of 8.
void add_tile_product(float* sums, const float* a, const float* b, int rows, int n);

}  // namespace attn::sim
