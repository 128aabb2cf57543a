// wgmma: layouts, accumulators in flight, operands that change too early.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>

#include "harness.h"

namespace attn::selftest {

constexpr int depth = 64;

// d[64][n] = a[64][depth] b[depth][n]. Elements are small integers: sums are exact.
struct Product {
    float a[64 * depth], b[depth * 256], d[64 * 256];
};

template <class T>
ATTN_DEVICE uint32_t pair(const float* from, int step) {
    return pack2<T>(from[0], from[step]);
}

// Element (line, along) of an operand is from[line * line_step + along * step]; `along` is contiguous in shared memory,
// in slabs of `swizzle` bytes.
template <class T>
ATTN_DEVICE void lay(SharedAddress to, int swizzle, int lines, int length, const float* from, int line_step, int step) {
    const int slab = swizzle / 2;
    for (int at = thread_index(); at < lines * length / 8; at += 128) {
        const int line = at / (length / 8), along = at % (length / 8) * 8;
        const SharedAddress plain = to + along / slab * lines * swizzle + line * swizzle + along % slab * 2;
        const SharedAddress address = plain ^ ((plain >> 7 & (swizzle / 16 - 1)) << 4);
        const float* e = from + line * line_step + along * step;
        store_shared_16(address, pair<T>(e, step), pair<T>(e + 2 * step, step), pair<T>(e + 4 * step, step),
                        pair<T>(e + 6 * step, step));
    }
}

template <int N>
ATTN_DEVICE void write_accumulators(const float (&d)[N / 2], float* to) {
    const int me = thread_index(), row = me / 32 * 16 + me % 32 / 4, column = me % 4 * 2;
    for (int i = 0; i < N / 2; ++i) to[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = d[i];
}

template <class T, int N, int Swizzle, bool MnMajor, bool Registers>
ATTN_KERNEL(128, 1)
layout_kernel(Product* product) {
    const SharedAddress a = aligned_base(), b = a + 64 * depth * 2;
    const int me = thread_index();
    lay<T>(a, Swizzle, 64, depth, product->a, depth, 1);
    if (MnMajor) {
        lay<T>(b, Swizzle, depth, N, product->b, N, 1);
    } else {
        lay<T>(b, Swizzle, N, depth, product->b, 1, N);
    }
    fence_proxy_async();
    block_sync();
    const uint64_t code = Swizzle == 128 ? 1 : Swizzle == 64 ? 2 : 3;
    float d[N / 2];
    wgmma_fence();
    for (int k = 0; k < depth; k += 16) {
        const SharedAddress slab = k * 2 / Swizzle, rest = k * 2 % Swizzle;
        const uint64_t da = descriptor(a + slab * 64 * Swizzle + rest, 0, 8 * Swizzle, code);
        const uint64_t db = MnMajor ? descriptor(b + k * Swizzle, depth * Swizzle, 8 * Swizzle, code)
                                    : descriptor(b + slab * N * Swizzle + rest, 0, 8 * Swizzle, code);
        if constexpr (Registers) {
            const float* row = product->a + (me / 32 * 16 + me % 32 / 4) * depth + k + me % 4 * 2;
            Wgmma<T, N, MnMajor>::rs(d, pair<T>(row, 1), pair<T>(row + 8 * depth, 1), pair<T>(row + 8, 1),
                                     pair<T>(row + 8 * depth + 8, 1), db, k != 0);
        } else {
            Wgmma<T, N, MnMajor>::ss(d, da, db, k != 0);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    write_accumulators<N>(d, product->d);
}

template <class T, int N, int Swizzle, bool MnMajor, bool Registers>
void test_layout(Product* product) {
    std::fill(std::begin(product->d), std::end(product->d), NAN);
    passes("a product", layout_kernel<T, N, Swizzle, MnMajor, Registers>, LaunchShape{1, 128, 56 * 1024}, product);
    bool right = true;
    for (int row = 0; row < 64; ++row) {
        for (int column = 0; column < N; ++column) {
            float sum = 0;
            for (int k = 0; k < depth; ++k) sum += product->a[row * depth + k] * product->b[k * N + column];
            right = right && product->d[row * N + column] == sum;
        }
    }
    const std::string found = "N " + std::to_string(N) + ", swizzle " + std::to_string(Swizzle) +
                              (MnMajor ? ", B MN-major" : ", B K-major") + (Registers ? ", A in registers" : "");
    expect(right, "a product's layouts", found);
}

template <class T, int N, int Swizzle>
void test_layouts(Product* product) {
    test_layout<T, N, Swizzle, false, false>(product);
    test_layout<T, N, Swizzle, true, false>(product);
    test_layout<T, N, Swizzle, false, true>(product);
    test_layout<T, N, Swizzle, true, true>(product);
}

// The same of 8-bit elements, k contiguous in both operands.
constexpr int depth8 = 128;

struct Product8 {
    float a[64 * depth8], b[depth8 * 256], d[64 * 256];
};

// Four neighbours along k.
template <class T>
ATTN_DEVICE uint32_t four(const float* from, int step) {
    return pack4<T>(from[0], from[step], from[2 * step], from[3 * step]);
}

template <class T>
ATTN_DEVICE void lay8(SharedAddress to, int swizzle, int lines, const float* from, int line_step, int step) {
    for (int at = thread_index(); at < lines * depth8 / 16; at += 128) {
        const int line = at / (depth8 / 16), along = at % (depth8 / 16) * 16;
        const SharedAddress plain = to + along / swizzle * lines * swizzle + line * swizzle + along % swizzle;
        const SharedAddress address = plain ^ ((plain >> 7 & (swizzle / 16 - 1)) << 4);
        const float* e = from + line * line_step + along * step;
        store_shared_16(address, four<T>(e, step), four<T>(e + 4 * step, step), four<T>(e + 8 * step, step),
                        four<T>(e + 12 * step, step));
    }
}

template <class T, int N, int Swizzle, bool Registers>
ATTN_KERNEL(128, 1)
layout8_kernel(Product8* product) {
    const SharedAddress a = aligned_base(), b = a + 64 * depth8;
    const int me = thread_index();
    lay8<T>(a, Swizzle, 64, product->a, depth8, 1);
    lay8<T>(b, Swizzle, N, product->b, 1, N);
    fence_proxy_async();
    block_sync();
    const uint64_t code = Swizzle == 128 ? 1 : Swizzle == 64 ? 2 : 3;
    std::conditional_t<std::is_same_v<T, S8>, int32_t, float> d[N / 2];
    wgmma_fence();
    for (int k = 0; k < depth8; k += 32) {
        const SharedAddress slab = k / Swizzle, rest = k % Swizzle;
        const uint64_t da = descriptor(a + slab * 64 * Swizzle + rest, 0, 8 * Swizzle, code);
        const uint64_t db = descriptor(b + slab * N * Swizzle + rest, 0, 8 * Swizzle, code);
        if constexpr (Registers) {
            const float* row = product->a + (me / 32 * 16 + me % 32 / 4) * depth8 + k + me % 4 * 4;
            Wgmma8<T, N>::rs(d, four<T>(row, 1), four<T>(row + 8 * depth8, 1), four<T>(row + 16, 1),
                             four<T>(row + 8 * depth8 + 16, 1), db, k != 0);
        } else {
            Wgmma8<T, N>::ss(d, da, db, k != 0);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    float sums[N / 2];
    for (int i = 0; i < N / 2; ++i) sums[i] = static_cast<float>(d[i]);
    write_accumulators<N>(sums, product->d);
}

template <class T, int N, int Swizzle, bool Registers>
void test_layout8(Product8* product) {
    std::fill(std::begin(product->d), std::end(product->d), NAN);
    passes("a product of 8 bits", layout8_kernel<T, N, Swizzle, Registers>, LaunchShape{1, 128, 56 * 1024}, product);
    bool right = true;
    for (int row = 0; row < 64; ++row) {
        for (int column = 0; column < N; ++column) {
            float sum = 0;
            for (int k = 0; k < depth8; ++k) sum += product->a[row * depth8 + k] * product->b[k * N + column];
            right = right && product->d[row * N + column] == sum;
        }
    }
    const std::string found = "N " + std::to_string(N) + ", swizzle " + std::to_string(Swizzle) +
                              (std::is_same_v<T, S8> ? ", integers" : ", floats") +
                              (Registers ? ", A in registers" : "");
    expect(right, "the layouts of a product of 8 bits", found);
}

// 127 * 127 * 32 added up again and again.
ATTN_KERNEL(128, 1)
large_sums_kernel(int times, int32_t* sum) {
    const SharedAddress a = aligned_base(), b = a + 64 * 128;
    for (int at = thread_index() * 16; at < 2 * 64 * 128; at += 128 * 16) {
        store_shared_16(a + at, 0x7f7f7f7f, 0x7f7f7f7f, 0x7f7f7f7f, 0x7f7f7f7f);
    }
    fence_proxy_async();
    block_sync();
    int32_t d[32];
    wgmma_fence();
    for (int i = 0; i < times; ++i) {
        Wgmma8<S8, 64>::ss(d, descriptor(a, 0, 1024), descriptor(b, 0, 1024), i != 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    *sum = d[0];
}

enum class Wgmmas {
    Right,
    FromSums,
    NoFence,
    NoFenceAfterWait,
    NotCommitted,
    NotWaitedFor,
    ReadEarly,
    WrittenEarly,
    Overlapping,
    OneThreadLess,
    OneWarpLess,
    OperandsDiffer,
    AccumulatorsDiffer,
    FifthWarp,
    Misaligned,
    StrideOffAtom,
    LeadingOffAtom,
    NoSwizzle,
    Reserved,
    Outside,
    NotFenced,
    NotMet,
    StoredOver,
    LoadedOver,
    ReadBeforeLoad,
    ReleasedEarly,
};

// d = a b twice over on the same accumulators, a and b 64 x 64 of zeros by stores, b by a load if `Loads`.
template <Wgmmas Is>
ATTN_KERNEL(160, 1)
wgmma_kernel(ATTN_GRID_CONSTANT const TensorMap map, int* not_numbers) {
    constexpr bool loads = Is == Wgmmas::ReadBeforeLoad || Is == Wgmmas::ReleasedEarly || Is == Wgmmas::LoadedOver;
    const SharedAddress a = aligned_base(), b = a + 8192, full = b + 8192, empty = full + 8;
    const int me = thread_index();
    make_barriers(full, 2, 1);
    if (me >= 128 && Is != Wgmmas::FifthWarp) {
        if (me == 128 && loads) {
            barrier_expect(full, 8192);
            tma_load(b, map, full, 0, 0, 0, 0, 0, 0);
            barrier_wait(empty, 0);
            barrier_expect(full, 8192);
            tma_load(b, map, full, 0, 0, 0, 0, 0, 0);
            barrier_wait(full, 1);
        }
        return;
    }
    if (Is == Wgmmas::FifthWarp && me < 128) return;
    for (int at = me * 16; at < (loads ? 8192 : 16384); at += 128 * 16) store_shared_16(a + at, 0, 0, 0, 0);
    if (Is != Wgmmas::NotFenced) fence_proxy_async();
    if (Is != Wgmmas::NotMet && Is != Wgmmas::FifthWarp) named_sync(1, 128);
    if (loads && Is != Wgmmas::ReadBeforeLoad) barrier_wait(full, 0);

    if (Is == Wgmmas::OneThreadLess && me == 77) return;
    if (Is == Wgmmas::OneWarpLess && me / 32 == 2) return;
    float d[33] = {}, other[32] = {};
    float (&sums)[32] = *reinterpret_cast<float (*)[32]>(d);
    sums[3] = 2.0f;
    uint64_t da = descriptor(a, 0, 1024), db = descriptor(b, 0, 1024);
    if (Is == Wgmmas::OperandsDiffer && me == 127) db = da;
    if (Is == Wgmmas::Misaligned) da += 128 >> 4;
    if (Is == Wgmmas::StrideOffAtom) db = descriptor(b, 0, 512);
    if (Is == Wgmmas::NoSwizzle) db = descriptor(b, 0, 1024, 0);
    if (Is == Wgmmas::Reserved) db |= uint64_t(1) << 49;
    if (Is == Wgmmas::Outside) db = descriptor(b + 65536, 0, 1024);
    if (Is != Wgmmas::NoFence) wgmma_fence();
    Wgmma<Bf16, 64, 0>::ss(sums, da, db, Is == Wgmmas::FromSums);
    Wgmma<Bf16, 64, 0>::ss(sums, da + 2, db + 2, true);
    wgmma_commit();
    Wgmma<Bf16, 64, 0>::ss(Is == Wgmmas::AccumulatorsDiffer && me == 127 ? other : sums, da + 4, db + 4, true);
    if (Is == Wgmmas::Overlapping) {
        Wgmma<Bf16, 64, 0>::ss(*reinterpret_cast<float (*)[32]>(d + 1), da, db, true);
    }
    if (Is == Wgmmas::LeadingOffAtom) Wgmma<Bf16, 64, 1>::ss(other, da, descriptor(b, 128, 256, 3), false);
    if (Is != Wgmmas::NotCommitted) wgmma_commit();
    wgmma_wait<1>();
    if (Is == Wgmmas::ReadEarly && std::isnan(sums[3])) ++*not_numbers;
    if (Is == Wgmmas::WrittenEarly) sums[5] *= 2.0f;
    if (Is == Wgmmas::StoredOver && me == 0) store_shared_16(b + 64, 0, 0, 0, 0);
    if ((Is == Wgmmas::ReleasedEarly || Is == Wgmmas::ReadBeforeLoad) && me == 0) barrier_arrive(empty);
    if (Is != Wgmmas::NotWaitedFor) wgmma_wait<0>();
    if (Is == Wgmmas::LoadedOver && me == 0) barrier_arrive(empty);
    if (Is == Wgmmas::NoFenceAfterWait) {
        Wgmma<Bf16, 64, 0>::ss(sums, da, db, false);
        wgmma_commit();
        wgmma_wait<0>();
    }
    if (sums[3] != (Is == Wgmmas::FromSums ? 2.0f : 0.0f)) ++*not_numbers;
}

inline void test_products8() {
    const auto product = std::make_unique<Product8>();
    // Whole numbers that e4m3 holds; sums are exact.
    for (int i = 0; i < 64 * depth8; ++i) product->a[i] = static_cast<float>(i * 37 % 23 - 11);
    for (int i = 0; i < depth8 * 256; ++i) product->b[i] = static_cast<float>(i * 29 % 19 - 9);
    test_layout8<S8, 128, 128, false>(product.get());
    test_layout8<S8, 128, 64, false>(product.get());
    test_layout8<S8, 16, 32, false>(product.get());
    test_layout8<E4m3, 128, 128, false>(product.get());
    test_layout8<E4m3, 64, 64, false>(product.get());
    test_layout8<E4m3, 128, 128, true>(product.get());
    test_layout8<E4m3, 64, 32, true>(product.get());
    const LaunchShape shape = {1, 128, 20 * 1024};
    int32_t sum = 0;
    passes("integers are summed exactly", large_sums_kernel, shape, 32, &sum);
    expect(sum == 127 * 127 * 32 * 32, "a sum of integers below 2^24", std::to_string(sum));
    faults("a sum of integers stays exact", "beyond 2^24", large_sums_kernel, shape, 34, &sum);
}

inline void test_products() {
    const auto product = std::make_unique<Product>();
    for (int i = 0; i < 64 * depth; ++i) product->a[i] = static_cast<float>(i * 37 % 23 - 11);
    for (int i = 0; i < depth * 256; ++i) product->b[i] = static_cast<float>(i * 29 % 19 - 9);
    test_layouts<Bf16, 128, 128>(product.get());
    test_layouts<F16, 256, 128>(product.get());
    test_layouts<F16, 64, 64>(product.get());
    test_layouts<Bf16, 96, 64>(product.get());
    test_layouts<Bf16, 80, 32>(product.get());
    test_layout<Bf16, 8, 128, false, false>(product.get());

    const auto tensor = std::make_unique<Tensor>();
    std::fill(std::begin(tensor->elements), std::end(tensor->elements), uint16_t(0));
    const TensorMap map = tensor->map(64);
    const LaunchShape shape = {1, 160, 20 * 1024};
    int not_numbers = 0;
    passes("a chain of products", wgmma_kernel<Wgmmas::Right>, shape, map, &not_numbers);
    passes("an operand is loaded anew when it has been read", wgmma_kernel<Wgmmas::LoadedOver>, shape, map,
           &not_numbers);
    passes("a chain goes on from sums", wgmma_kernel<Wgmmas::FromSums>, shape, map, &not_numbers);
    expect(not_numbers == 0, "a chain has the right sums");
    passes("accumulators can be looked at in flight", wgmma_kernel<Wgmmas::ReadEarly>, shape, map, &not_numbers);
    expect(not_numbers == 128 * static_cast<int>(seeds), "accumulators in flight are not numbers");
    const auto wrong = [&](const char* claim, const char* text, auto kernel) {
        faults(claim, text, kernel, shape, map, &not_numbers);
    };
    wrong("a wgmma needs a fence", "without a wgmma_fence", wgmma_kernel<Wgmmas::NoFence>);
    wrong("and another after a wait", "without a wgmma_fence", wgmma_kernel<Wgmmas::NoFenceAfterWait>);
    wrong("wgmmas are committed", "1 wgmmas that it has not committed", wgmma_kernel<Wgmmas::NotCommitted>);
    wrong("wgmmas are waited for", "1 wgmmas that it has not waited for", wgmma_kernel<Wgmmas::NotWaitedFor>);
    wrong("accumulators in flight are left alone", "were written to", wgmma_kernel<Wgmmas::WrittenEarly>);
    wrong("accumulators in flight do not overlap", "overlap", wgmma_kernel<Wgmmas::Overlapping>);
    wrong("all threads of a warpgroup issue", "issued by 127 of 128", wgmma_kernel<Wgmmas::OneThreadLess>);
    wrong("all warps of a warpgroup issue", "issued by 96 of 128", wgmma_kernel<Wgmmas::OneWarpLess>);
    wrong("the warpgroup agrees on operands", "differ inside", wgmma_kernel<Wgmmas::OperandsDiffer>);
    wrong("the warpgroup agrees on accumulators", "accumulators of wgmma 2 differ",
          wgmma_kernel<Wgmmas::AccumulatorsDiffer>);
    wrong("a warpgroup has four warps", "not complete", wgmma_kernel<Wgmmas::FifthWarp>);
    wrong("an operand begins at an atom", "operand A begins at", wgmma_kernel<Wgmmas::Misaligned>);
    wrong("an operand goes on by atoms", "stride byte offset of operand B", wgmma_kernel<Wgmmas::StrideOffAtom>);
    wrong("an operand's slabs are atoms", "leading byte offset of operand B", wgmma_kernel<Wgmmas::LeadingOffAtom>);
    wrong("an operand is swizzled", "names no swizzle", wgmma_kernel<Wgmmas::NoSwizzle>);
    wrong("a descriptor's other bits are zero", "reserved bits", wgmma_kernel<Wgmmas::Reserved>);
    wrong("an operand is in shared memory", "outside", wgmma_kernel<Wgmmas::Outside>);
    wrong("stores to an operand are fenced", "no fence_proxy_async", wgmma_kernel<Wgmmas::NotFenced>);
    wrong("the writers of an operand are met", "no barrier in between|no fence_proxy_async|WAR race",
          wgmma_kernel<Wgmmas::NotMet>);
    wrong("an operand in use is not stored to", "WAR race: an ordinary store", wgmma_kernel<Wgmmas::StoredOver>);
    wrong("an operand in use is not loaded to", "WAR race: tma_load", wgmma_kernel<Wgmmas::ReleasedEarly>);
    wrong("an operand's load is waited for", "before the barrier|WAR race", wgmma_kernel<Wgmmas::ReadBeforeLoad>);
}

}  // namespace attn::selftest
