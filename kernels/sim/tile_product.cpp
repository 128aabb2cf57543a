#include "tile_product.h"

#include <cstring>

namespace attn::sim {

namespace {

constexpr int block = 4;

typedef float Lanes __attribute__((vector_size(32)));

// Products of two numbers of 16 bits or fewer are exact in float, so it makes no difference whether they are fused with the addition:
// every processor computes the same bits.
template <int depth>
__attribute__((always_inline)) inline void add_product(float* sums, const float* a, const float* b, int rows, int n) {
    for (int row = 0; row < rows; row += block) {
        for (int column = 0; column < n; column += 8) {
            Lanes sum[block];
            for (int i = 0; i < block; ++i) {
                std::memcpy(&sum[i], sums + (row + i) * n + column, sizeof(Lanes));
            }
            for (int k = 0; k < depth; ++k) {
                Lanes lanes;
                std::memcpy(&lanes, b + k * n + column, sizeof lanes);
                for (int i = 0; i < block; ++i) {
                    sum[i] += a[(row + i) * depth + k] * lanes;
                }
            }
            for (int i = 0; i < block; ++i) {
                std::memcpy(sums + (row + i) * n + column, &sum[i], sizeof(Lanes));
            }
        }
    }
}

#pragma GCC push_options
#pragma GCC optimize("O3")

template <int depth>
void with_baseline(float* sums, const float* a, const float* b, int rows, int n) {
    add_product<depth>(sums, a, b, rows, n);
}

#if defined(__x86_64__)
template <int depth>
__attribute__((target("avx2,fma"))) void with_avx2(float* sums, const float* a, const float* b, int rows, int n) {
    add_product<depth>(sums, a, b, rows, n);
}
#endif

#pragma GCC pop_options

using Product = void (*)(float*, const float*, const float*, int, int);

template <int depth>
Product best() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return with_avx2<depth>;
#endif
    return with_baseline<depth>;
}

}  // namespace

void add_tile_product(float* sums, const float* a, const float* b, int rows, int n, int depth) {
    static const Product of_16 = best<16>(), of_32 = best<32>();
    (depth == 16 ? of_16 : of_32)(sums, a, b, rows, n);
}

}  // namespace attn::sim
