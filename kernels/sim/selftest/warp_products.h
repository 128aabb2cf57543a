// What a warp multiplies by itself: copies of threads, matrix loads, mma.
#pragma once
#include <algorithm>
#include <memory>

#include "harness.h"

namespace attn::selftest {

enum class Copies {
    Right,
    NotCommitted,
    NotWaitedFor,
    OneGroupEarly,
    ReadEarly,
    NotMet,
    StoredOver,
    CopiedOver,
    CopiedOverRead,
    CopiedOverUnmet,
    Misaligned,
    SourceMisaligned,
    TooManyBytes,
    Outside,
};

// Each of 64 threads copies twice 16 bytes in groups of their own, of which 4 thread % 20 count; the thread beside it looks
// at the first ones, then at the others.
template <Copies Is>
ATTN_KERNEL(64, 1)
copies_kernel(const uint8_t* from, uint8_t* image) {
    const int me = thread_index(), neighbour = me ^ 1, across = me ^ 32;
    const SharedAddress own = shared_base() + 16 * me, second = own + 1024;
    if (Is == Copies::CopiedOverRead) {
        uint32_t value[4];
        load_shared_16(shared_base() + 16 * across, value);
    }
    if (Is == Copies::CopiedOverUnmet) store_shared_16(shared_base() + 16 * across, 0, 0, 0, 0);
    const int bytes = Is == Copies::TooManyBytes ? 17 : std::min(4 * me % 20, 16);
    copy_async_16(Is == Copies::Misaligned ? own + 8 : Is == Copies::Outside ? own + 4096 : own,
                  from + 16 * me + (Is == Copies::SourceMisaligned ? 8 : 0), bytes);
    copy_async_commit();
    copy_async_16(Is == Copies::CopiedOver ? own : second, from + 16 * me);
    if (Is != Copies::NotCommitted) copy_async_commit();
    if (Is == Copies::StoredOver) store_shared_16(own, 1, 1, 1, 1);
    if (Is == Copies::NotCommitted) copy_async_wait<0>();
    if (Is != Copies::ReadEarly) copy_async_wait<1>();
    if (Is != Copies::NotMet) block_sync();
    uint32_t value[4];
    load_shared_16(Is == Copies::OneGroupEarly ? shared_base() + 1024 + 16 * neighbour
                                               : shared_base() + 16 * neighbour, value);
    std::memcpy(image + 16 * neighbour, value, 16);
    if (Is == Copies::NotWaitedFor || Is == Copies::NotCommitted) return;
    copy_async_wait<0>();
    block_sync();
    load_shared_16(shared_base() + 1024 + 16 * neighbour, value);
    std::memcpy(image + 1024 + 16 * neighbour, value, 16);
}

inline void test_copies() {
    alignas(16) uint8_t from[1024 + 16], image[2048];
    for (int i = 0; i < 1024; ++i) from[i] = static_cast<uint8_t>(i * 7 % 251 + 1);
    const LaunchShape shape = {2, 64, 2048};
    passes("copies of threads arrive", copies_kernel<Copies::Right>, shape, from, image);
    bool right = true;
    for (int i = 0; i < 1024; ++i) {
        const bool counts = i % 16 < i / 16 * 4 % 20;
        right = right && image[i] == (counts ? from[i] : 0) && image[1024 + i] == from[i];
    }
    expect(right, "a copy has its bytes, and zeros behind them");
    const auto wrong = [&](const char* claim, const char* text, auto kernel) {
        faults(claim, text, kernel, shape, from, image);
    };
    wrong("a copy is committed", "1 copies that it has not committed", copies_kernel<Copies::NotCommitted>);
    wrong("a copy is waited for", "1 copies that it has not waited for", copies_kernel<Copies::NotWaitedFor>);
    wrong("a pending group has not arrived", "fills that it has not waited for", copies_kernel<Copies::OneGroupEarly>);
    wrong("a read waits for the copy", "fills that it has not waited for", copies_kernel<Copies::ReadEarly>);
    wrong("others meet who has copied", "no barrier in between|has not waited for|WAR race",
          copies_kernel<Copies::NotMet>);
    wrong("a store waits for the copy", "an ordinary store overwrites", copies_kernel<Copies::StoredOver>);
    wrong("a copy waits for the copy before", "a copy overwrites", copies_kernel<Copies::CopiedOver>);
    wrong("a copy over what was read needs a barrier", "which thread|fills that it has not waited for",
          copies_kernel<Copies::CopiedOverRead>);
    wrong("a copy over what was stored needs a barrier", "has stored to with no barrier|fills that it has not waited",
          copies_kernel<Copies::CopiedOverUnmet>);
    wrong("a copy goes to a multiple of 16", "not aligned to 16", copies_kernel<Copies::Misaligned>);
    wrong("a copy comes from a multiple of 16", "not aligned to 16", copies_kernel<Copies::SourceMisaligned>);
    wrong("a copy has 16 bytes", "0 to 16 bytes, not 17", copies_kernel<Copies::TooManyBytes>);
    wrong("a copy goes to shared memory", "not inside", copies_kernel<Copies::Outside>);
}

enum class Reads { Right, OfAnotherWarp };

// Two warps read what a third one then copies over; it has met one of them only, or both.
template <Reads Is>
ATTN_KERNEL(96, 1)
readers_kernel(const uint8_t* from) {
    const SharedAddress line = shared_base();
    const int warp = thread_index() / 32;
    if (thread_index() == 95) store_shared_16(line, 0, 0, 0, 0);
    block_sync();
    if (warp < 2) {
        uint32_t value[4];
        if (thread_index() % 32 == 0) load_shared_16(line, value);
        warp_sync();
        if (warp == 0 || Is == Reads::Right) named_arrive(1 + warp, 64);
    } else {
        named_sync(1, 64);
        if (Is == Reads::Right) named_sync(2, 64);
        if (thread_index() == 95) copy_async_16(line, from);
        copy_async_commit();
        copy_async_wait<0>();
    }
}

constexpr int mma_depth = 64, mma_rows = 32;

// d[32][16] = a[32][64] b, small integers. b: [16][64], or [64][16] as `transposed` loads take it.
struct WarpProduct {
    alignas(16) uint16_t a[mma_rows * mma_depth], b[16 * mma_depth];
    float d[mma_rows * 16];
};

enum class Matrices {
    Right,
    LaneEnds,
    Diverges,
    OtherElements,
    Misaligned,
    Outside,
    Conflict,
    NotMet,
    NotWaitedFor,
    OverwrittenWhileRead,
    LoadDiverges,
};

// Chunk `chunk` of a row of 128 bytes, or of 32: four rows make up a line.
ATTN_DEVICE SharedAddress chunk_at(SharedAddress base, int row, int chunk, int row_bytes, bool conflict) {
    const int turn = conflict ? 0 : row_bytes == 128 ? row & 7 : row >> 2 & 1;
    return base + row * row_bytes + ((chunk ^ turn) << 4);
}

// One warp, beside another one that copies. `Shared`: b goes from shared memory straight into the product.
template <class T, bool Transposed, Matrices Is, bool Shared = false>
ATTN_KERNEL(64, 1)
matrices_kernel(WarpProduct* product) {
    const SharedAddress a = (shared_base() + 127) & ~127u, b = a + mma_rows * mma_depth * 2;
    const int me = thread_index(), lane = me & 31;
    const bool conflict = Is == Matrices::Conflict;
    const int b_row = Transposed ? 32 : 128, b_chunks = b_row / 16;
    if (me >= 32) {
        for (int at = lane; at < mma_rows * 8; at += 32) {
            copy_async_16(chunk_at(a, at / 8, at % 8, 128, conflict), product->a + 8 * at);
        }
        for (int at = lane; at < 16 * 8; at += 32) {
            copy_async_16(chunk_at(b, at / b_chunks, at % b_chunks, b_row, false), product->b + 8 * at);
        }
        copy_async_commit();
        if (Is != Matrices::NotWaitedFor) copy_async_wait<0>();
        if (Is != Matrices::NotMet) block_sync();
        if (Is == Matrices::OverwrittenWhileRead) copy_async_16(chunk_at(a, lane, 0, 128, false), product->a);
        copy_async_commit();
        copy_async_wait<0>();
        return;
    }
    if (Is != Matrices::NotMet) block_sync();
    if (Is == Matrices::LaneEnds && lane == 31) return;
    float d[2][8] = {};
    for (int k = 0; k < mma_depth / 16; ++k) {
        uint32_t strips[2][4], columns[4];
        if constexpr (Shared) {
            const SharedAddress rows[2] = {chunk_at(a, lane % 16, 2 * k + lane / 16, 128, false),
                                           chunk_at(a, 16 + lane % 16, 2 * k + lane / 16, 128, false)};
            load_matrices(rows, strips);
            const int row = lane % 8 + lane / 16 * 8;
            SharedAddress of_b[1] = {Transposed ? chunk_at(b, 16 * k + lane % 16, lane / 16, 32, false)
                                                : chunk_at(b, row, 2 * k + lane / 8 % 2, 128, false)};
            if (Is == Matrices::Misaligned) of_b[0] += 8;
            if (Is == Matrices::Conflict) of_b[0] = b + lane % 8 * 128;
            if (Is == Matrices::Diverges && lane == 3) shuffle_xor(0.0f, 1);
            mma_shared<T, Transposed>(d, strips, of_b);
            continue;
        }
        for (int m = 0; m < 2; ++m) {
            SharedAddress row = chunk_at(a, 16 * m + lane % 16, 2 * k + lane / 16, 128, conflict);
            if (Is == Matrices::Misaligned) row += 8;
            if (Is == Matrices::Outside) row += 65536;
            if (Is == Matrices::LoadDiverges && lane == 5) {
                load_matrix_x4_transposed(row, strips[m]);
            } else {
                load_matrix_x4(row, strips[m]);
            }
        }
        if (Transposed) {
            load_matrix_x4_transposed(chunk_at(b, 16 * k + lane % 16, lane / 16, 32, false), columns);
        } else {
            const int row = lane % 8 + lane / 16 * 8;
            load_matrix_x4(chunk_at(b, row, 2 * k + lane / 8 % 2, 128, false), columns);
        }
        if (Is == Matrices::Diverges && lane == 3) shuffle_xor(0.0f, 1);
        if (Is == Matrices::OtherElements && lane == 3) {
            mma_strips<std::conditional_t<std::is_same_v<T, Bf16>, F16, Bf16>>(d, 0, strips, columns);
        } else {
            mma_strips<T>(d, 0, strips, columns);
        }
    }
    for (int m = 0; m < 2; ++m) {
        for (int i = 0; i < 8; ++i) {
            const int row = 16 * m + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            product->d[row * 16 + column] = d[m][i];
        }
    }
}

template <class T, bool Transposed, bool Shared>
void test_warp_product(WarpProduct* product) {
    const auto number = [](int value) { return static_cast<uint16_t>(pack2<T>(static_cast<float>(value), 0.0f)); };
    const auto a = [](int i) { return i * 37 % 23 - 11; };
    const auto b = [](int i) { return i * 29 % 19 - 9; };
    for (int i = 0; i < mma_rows * mma_depth; ++i) product->a[i] = number(a(i));
    for (int i = 0; i < 16 * mma_depth; ++i) product->b[i] = number(b(i));
    std::fill(std::begin(product->d), std::end(product->d), NAN);
    const LaunchShape shape = {1, 64, 8 * 1024};
    passes("a warp multiplies", matrices_kernel<T, Transposed, Matrices::Right, Shared>, shape, product);
    bool right = true;
    for (int row = 0; row < mma_rows; ++row) {
        for (int column = 0; column < 16; ++column) {
            int sum = 0;
            for (int k = 0; k < mma_depth; ++k) {
                sum += a(row * mma_depth + k) * b(Transposed ? k * 16 + column : column * mma_depth + k);
            }
            right = right && product->d[row * 16 + column] == static_cast<float>(sum);
        }
    }
    expect(right, Transposed ? "the layouts of a warp's product, b transposed" : "the layouts of a warp's product");
}

// Of bytes: d[16][16] = a[16][32] b[32][16], each row of a and column of b 32 bytes in shared
// memory, 48 bytes apart: in banks of their own.
struct ByteProduct {
    int8_t a[16 * 32], b[16 * 32];
    int32_t d[16 * 16];
};

ATTN_KERNEL(32, 1) byte_product_kernel(ByteProduct* product) {
    constexpr int apart = 48;
    const SharedAddress a = aligned_base(), b = a + 16 * apart;
    const int lane = thread_index();
    uint32_t words[4];
    for (int of = 0; of < 2; ++of) {
        std::memcpy(words, (of == 0 ? product->a : product->b) + lane * 16, 16);
        store_shared_16((of == 0 ? a : b) + lane / 2 * apart + lane % 2 * 16, words[0], words[1], words[2], words[3]);
    }
    warp_sync();
    // Matrices of a: rows 0 to 7 and 8 to 15, then the same 16 bytes on; of b: 16 bytes on, then columns 8 to 15.
    uint32_t fragment[1][4];
    load_matrices<1>({a + lane % 16 * apart + lane / 16 * 16}, fragment);
    int32_t d[1][8] = {};
    mma_shared_s8(d, fragment, {b + (lane % 8 + lane / 16 * 8) * apart + lane / 8 % 2 * 16});
    for (int i = 0; i < 8; ++i) {
        product->d[(lane / 4 + i / 2 % 2 * 8) * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[0][i];
    }
}

inline void test_byte_product() {
    ByteProduct product;
    for (int i = 0; i < 16 * 32; ++i) {
        product.a[i] = static_cast<int8_t>(i * 37 % 256 - 128);
        product.b[i] = static_cast<int8_t>(i * 29 % 251 - 120);
    }
    passes("a warp's product of bytes", byte_product_kernel, LaunchShape{1, 32, 4096}, &product);
    bool right = true;
    for (int at = 0; at < 16 * 16; ++at) {
        int sum = 0;
        for (int k = 0; k < 32; ++k) sum += product.a[at / 16 * 32 + k] * product.b[at % 16 * 32 + k];
        right = right && product.d[at] == sum;
    }
    expect(right, "the layout of a warp's product of bytes");
}

inline void test_warp_products() {
    test_byte_product();
    const auto product = std::make_unique<WarpProduct>();
    test_warp_product<Bf16, false, false>(product.get());
    test_warp_product<F16, true, false>(product.get());
    test_warp_product<F16, false, true>(product.get());
    test_warp_product<Bf16, true, true>(product.get());
    const LaunchShape shape = {1, 64, 8 * 1024};
    const auto wrong = [&](const char* claim, const char* text, auto kernel) {
        faults(claim, text, kernel, shape, product.get());
    };
    wrong("all lanes load a matrix", "31 of 32 lanes", matrices_kernel<Bf16, false, Matrices::LaneEnds>);
    wrong("all lanes multiply", "divergence", matrices_kernel<Bf16, false, Matrices::Diverges>);
    wrong("all lanes load the same way", "divergence", matrices_kernel<Bf16, false, Matrices::LoadDiverges>);
    wrong("all lanes multiply alike", "divergence", matrices_kernel<Bf16, false, Matrices::OtherElements>);
    wrong("a row is a multiple of 16", "not aligned to 16", matrices_kernel<Bf16, false, Matrices::Misaligned>);
    wrong("a row is in shared memory", "not inside", matrices_kernel<Bf16, false, Matrices::Outside>);
    wrong("rows of a matrix are in banks of their own", "bank conflict", matrices_kernel<F16, false, Matrices::Conflict>);
    wrong("rows of a matrix are in banks of their own, also in a product", "bank conflict",
          matrices_kernel<F16, false, Matrices::Conflict, true>);
    wrong("a product's row is a multiple of 16", "not aligned to 16", matrices_kernel<F16, true, Matrices::Misaligned, true>);
    wrong("all lanes multiply what is shared", "divergence", matrices_kernel<F16, true, Matrices::Diverges, true>);
    wrong("who multiplies a row has met who copied it", "no barrier in between|has not waited for",
          matrices_kernel<F16, true, Matrices::NotMet, true>);
    wrong("who gets a row has met who copied it", "no barrier in between|has not waited for",
          matrices_kernel<Bf16, false, Matrices::NotMet>);
    wrong("a row has arrived", "has not waited for|no barrier in between", matrices_kernel<Bf16, true, Matrices::NotWaitedFor>);
    wrong("rows being read are left alone", "has read with no barrier|has not waited for|has stored to with no barrier",
          matrices_kernel<Bf16, false, Matrices::OverwrittenWhileRead>);

    alignas(16) uint8_t line[16] = {};
    const LaunchShape warps = {1, 96, 1024};
    passes("readers of several warps are met", readers_kernel<Reads::Right>, warps, line);
    faults("a reader of each warp is remembered", "WAR race: a copy|WAR race", readers_kernel<Reads::OfAnotherWarp>,
           warps, line);
}

}  // namespace attn::selftest
