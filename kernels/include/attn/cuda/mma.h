// The tensor cores as a warp uses them, from registers (PTX ISA, "ldmatrix", "mma"): Ampere and all that came after it.
//
// Lane l of a warp holds of an operand of 16-bit elements pairs that follow each other along the summed axis k. With
// g = l / 4 and t = l % 4:
//     a[16][16]: rows g, g + 8, g, g + 8 at k = 2 t, 2 t, 2 t + 8, 2 t + 8;
//     b[16][8]: column g at k = 2 t, 2 t + 8;
//     d[16][8], floats: columns 2 t and 2 t + 1 of row g, then of row g + 8.
#pragma once
#include "attn/cuda/shared.h"
#include "attn/cuda/vector.h"

namespace attn {

// Four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, a multiple of 16, and
// gets of each matrix elements 2 t and 2 t + 1 of row g.
ATTN_DEVICE void load_matrix_x4(SharedAddress row, uint32_t (&matrices)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row)
                 : "memory");
}

// The same of the transposed matrices: elements g of rows 2 t and 2 t + 1.
ATTN_DEVICE void load_matrix_x4_transposed(SharedAddress row, uint32_t (&matrices)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row)
                 : "memory");
}

// d[16][8] += a[16][16] b[16][8] in floats, for T = Bf16 or F16.
template <class T>
ATTN_DEVICE void mma_m16n8k16(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0,
                              uint32_t b1);

template <>
ATTN_DEVICE void mma_m16n8k16<Bf16>(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
ATTN_DEVICE void mma_m16n8k16<F16>(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Columns 8 at to 8 at + 15 of d[m] += a[m] b for each of `Strips` strips of 16 rows: d[m] has the accumulators of columns
// 0 to 2 N - 1, four for every eight; b is two operands, as load_matrix_x4 brings them.
template <class T, int Strips, int N>
ATTN_DEVICE void mma_strips(float (&d)[Strips][N], int at, const uint32_t (&a)[Strips][4], const uint32_t (&b)[4]) {
#pragma unroll
    for (int m = 0; m < Strips; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float* to = d[m] + 4 * (at + i);
            mma_m16n8k16<T>(to[0], to[1], to[2], to[3], a[m], b[2 * i], b[2 * i + 1]);
        }
    }
}

// Several at once.
template <int Count>
ATTN_DEVICE void load_matrices(const SharedAddress (&rows)[Count], uint32_t (&matrices)[Count][4]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) load_matrix_x4(rows[i], matrices[i]);
}

// All columns of d[m] += a[m] b: b is in shared memory, where load_matrix_x4 (or its transposing twin) finds sixteen columns
// at each of this lane's `rows`.
template <class T, bool Transposed, int Strips, int N>
ATTN_DEVICE void mma_shared(float (&d)[Strips][N], const uint32_t (&a)[Strips][4], const SharedAddress (&rows)[N / 8]) {
#pragma unroll
    for (int i = 0; i < N / 8; ++i) {
        uint32_t b[4];
        if constexpr (Transposed) {
            load_matrix_x4_transposed(rows[i], b);
        } else {
            load_matrix_x4(rows[i], b);
        }
        mma_strips<T>(d, 2 * i, a, b);
    }
}

// d[16][8] += a[16][32] b[32][8] of 8-bit integers. Lanes hold four neighbours along k where 16-bit elements have two, so
// matrices are loaded as if their elements had 16 bits.
ATTN_DEVICE void mma_m16n8k32_s8(int32_t& d0, int32_t& d1, int32_t& d2, int32_t& d3, const uint32_t (&a)[4], uint32_t b0,
                                 uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(d0), "+r"(d1), "+r"(d2), "+r"(d3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// As mma_shared, of 8-bit integers, not transposed.
template <int Strips, int N>
ATTN_DEVICE void mma_shared_s8(int32_t (&d)[Strips][N], const uint32_t (&a)[Strips][4],
                               const SharedAddress (&rows)[N / 8]) {
#pragma unroll
    for (int i = 0; i < N / 8; ++i) {
        uint32_t b[4];
        load_matrix_x4(rows[i], b);
#pragma unroll
        for (int m = 0; m < Strips; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int32_t* to = d[m] + 4 * (2 * i + half);
                mma_m16n8k32_s8(to[0], to[1], to[2], to[3], a[m], b[2 * half], b[2 * half + 1]);
            }
        }
    }
}

}  // namespace attn
