// The arithmetic of the tensor cores.
#pragma once

namespace attn::sim {

// sums[rows][n] += a[rows][depth] b[depth][n]. `rows` is a multiple of 4, n of 8, depth 16 or 32.
void add_tile_product(float* sums, const float* a, const float* b, int rows, int n, int depth);

}  // namespace attn::sim
