// The copy engine: loads, stores, and who may touch their memory meanwhile.
#pragma once
#include <algorithm>
#include <memory>

#include "harness.h"

namespace attn::selftest {

enum class Load {
    Right,
    MapNotMade,
    Misaligned,
    Outside,
    ExpectsTooFew,
    ExpectsTooMany,
    TooFewForTwo,
    NotWaitedFor,
    ReadEarly,
    StoredOver,
    LoadedOver,
    OverStores,
    OverReads,
    OverBarrier,
};

// Loads rows -3 to 4 twice, into two places, and copies what stands there to `image`.
template <Load Is>
ATTN_KERNEL(64, 1)
load_kernel(ATTN_GRID_CONSTANT const TensorMap map, uint8_t* image) {
    constexpr int bytes = 8 * 128;
    const SharedAddress tile = aligned_base();
    const SharedAddress barriers = Is == Load::OverBarrier ? tile + 512 : tile + 8192;
    if (thread_index() == 0) tma_prefetch(map);
    make_barriers(barriers, 2, 1);
    const int me = thread_index();
    if (Is == Load::OverStores && me == 32) store_shared_16(tile, 0, 0, 0, 0);
    if (Is == Load::OverStores) block_sync();
    if (Is == Load::OverReads && me == 32) {
        uint32_t value[4];
        load_shared_16(tile, value);
    }
    if (me == 0) {
        const SharedAddress to = Is == Load::Misaligned ? tile + 64 : Is == Load::Outside ? tile + 16 * 1024 : tile;
        if (Is == Load::TooFewForTwo) {
            barrier_expect(barriers, bytes);
            tma_load(to, map, barriers, 0, -3, 0, 0, 0, 0);
            tma_load(tile + 2048, map, barriers, 0, -3, 0, 0, 0, 0);
        } else {
            barrier_expect(barriers, Is == Load::ExpectsTooFew ? 512 : Is == Load::ExpectsTooMany ? 1040 : bytes);
            tma_load(to, map, barriers, 0, -3, 0, 0, 0, 0);
            barrier_expect(barriers + 8, bytes);
            tma_load(Is == Load::LoadedOver ? tile : tile + 2048, map, barriers + 8, 0, -3, 0, 0, 0, 0);
        }
    }
    if (Is == Load::StoredOver && me == 0) store_shared_16(tile + 16, 0, 0, 0, 0);
    if (Is != Load::ReadEarly) barrier_wait(barriers, 0);
    if (Is != Load::NotWaitedFor && Is != Load::TooFewForTwo) barrier_wait(barriers + 8, 0);
    for (int at = me * 16; at < bytes; at += 64 * 16) {
        uint32_t value[4];
        load_shared_16(tile + at, value);
        store_global_16(image + at, value);
    }
}

enum class Store {
    Right,
    NotWaitedFor,
    StoredOver,
    LoadedOver,
    NotFenced,
    NotMet,
    FencedByAnother,
    ReadsBeforeLoad,
};

// 64 threads lay 8 rows out, thread 0 stores them to rows 96 to 103 of 100.
template <Store Is>
ATTN_KERNEL(64, 1)
store_kernel(ATTN_GRID_CONSTANT const TensorMap map) {
    const SharedAddress tile = aligned_base(), barrier = tile + 4096;
    make_barriers(barrier, 1, 1);
    const int me = thread_index();
    if (Is == Store::ReadsBeforeLoad) {
        if (me == 0) {
            barrier_expect(barrier, 1024);
            tma_load(tile, map, barrier, 0, 0, 0, 0, 0, 0);
        }
        if (me != 0) barrier_wait(barrier, 0);
    } else {
        // Row me / 8, chunk me % 8, swizzled.
        const uint32_t value = 0x10001 * me;
        store_shared_16(tile + me / 8 * 128 + ((me ^ me / 8) & 7) * 16, value, value, value, value);
        if (Is == Store::FencedByAnother ? me == 0 : Is != Store::NotFenced) fence_proxy_async();
        if (Is != Store::NotMet) block_sync();
    }
    if (me == 0) {
        tma_store(map, tile, 0, 96, 0, 0, 0);
        tma_store_commit();
        if (Is == Store::StoredOver) store_shared_16(tile + 256, 0, 0, 0, 0);
        if (Is == Store::LoadedOver) {
            barrier_expect(barrier, 1024);
            tma_load(tile, map, barrier, 0, 0, 0, 0, 0, 0);
        }
        if (Is != Store::NotWaitedFor) tma_store_wait_read<0>();
    }
    block_sync();
    store_shared_16(tile + me * 16, 0, 0, 0, 0);
}

enum class Groups { Right, OverwritesYounger, NotCommitted, NotWaitedFor };

// Two groups: when at most one is pending, the older has been read, and only that may be overwritten.
template <Groups Is>
ATTN_KERNEL(32, 1)
groups_kernel(ATTN_GRID_CONSTANT const TensorMap map) {
    const SharedAddress tile = aligned_base();
    for (int at = thread_index() * 16; at < 2048; at += 512) store_shared_16(tile + at, 0, 0, 0, 0);
    fence_proxy_async();
    warp_sync();
    if (thread_index() != 0) return;
    for (int group = 0; group < 2; ++group) {
        tma_store(map, tile + group * 1024, 0, 8 * group, 0, 0, 0);
        if (group == 0 || Is != Groups::NotCommitted) tma_store_commit();
    }
    if (Is != Groups::NotCommitted) tma_store_wait_read<1>();
    if (Is == Groups::NotCommitted || Is == Groups::NotWaitedFor) return;
    store_shared_16(Is == Groups::OverwritesYounger ? tile + 1024 : tile, 1, 1, 1, 1);
    tma_store_wait<0>();
}

inline void test_loads() {
    const auto tensor = std::make_unique<Tensor>();
    for (int i = 0; i < Tensor::rows * 64; ++i) tensor->elements[i] = static_cast<uint16_t>(i + 1);
    alignas(16) uint8_t image[1024];
    const LaunchShape shape = {1, 64, 16 * 1024};
    const TensorMap map = tensor->map(8);
    passes("a load completes its barrier", load_kernel<Load::Right>, shape, map, image);
    bool right = true;
    for (int row = 0; row < 8; ++row) {
        for (int column = 0; column < 64; ++column) {
            uint16_t found;
            std::memcpy(&found, image + row * 128 + (column / 8 ^ row) * 16 + column % 8 * 2, 2);
            right = right && found == (row < 3 ? 0 : (row - 3) * 64 + column + 1);
        }
    }
    expect(right, "a load swizzles, and fills with zeros outside the tensor");
    // The same bytes as bytes, of which each row has 100.
    const TensorMapShape of_bytes = {tensor->elements, 1, ATTN_BF16, {100, Tensor::rows, 1, 1, 1}, {128, 12800, 12800, 12800},
                                     {128, 8, 1, 1, 1}, 128};
    TensorMap bytes;
    expect(encode_tensor_map(&bytes, of_bytes) == ATTN_OK, "a tensor map of bytes is made");
    passes("a load of bytes completes its barrier", load_kernel<Load::Right>, shape, bytes, image);
    right = true;
    for (int row = 0; row < 8; ++row) {
        for (int column = 0; column < 128; ++column) {
            const auto* line = reinterpret_cast<const uint8_t*>(tensor->elements + (row - 3) * 64);
            const uint8_t found = image[row * 128 + (column / 16 ^ row) * 16 + column % 16];
            right = right && found == (row < 3 || column >= 100 ? 0 : line[column]);
        }
    }
    expect(right, "a load of bytes ends at a byte");
    TensorMap unmade = map;
    unmade.magic = 0;
    faults("a map is made by encode_tensor_map", "not made", load_kernel<Load::Right>, shape, unmade, image);
    faults("global vectors are aligned", "not aligned to 16", load_kernel<Load::Right>, shape, map, image + 8);
    faults("a box goes to 128-byte lines", "not aligned to 128", load_kernel<Load::Misaligned>, shape, map, image);
    faults("a box goes to shared memory", "not inside", load_kernel<Load::Outside>, shape, map, image);
    faults("bytes beyond the expected are found", "more than it was told to expect", load_kernel<Load::ExpectsTooFew>,
           shape, map, image);
    faults("bytes that never come are a deadlock", "lacks 0 of 1 arrivals and 16 bytes",
           load_kernel<Load::ExpectsTooMany>, shape, map, image);
    faults("a phase must expect all its loads",
           "arrive in phase 1|in flight|more than it was told|never told to expect", load_kernel<Load::TooFewForTwo>,
           shape, map, image);
    faults("somebody waits for every load", "no thread has waited|in flight", load_kernel<Load::NotWaitedFor>, shape,
           map, image);
    faults("a read waits for the load", "before the barrier", load_kernel<Load::ReadEarly>, shape, map, image);
    faults("a store waits for the load", "this thread has not waited for", load_kernel<Load::StoredOver>, shape, map,
           image);
    faults("a load waits for the load before", "an earlier tma_load", load_kernel<Load::LoadedOver>, shape, map, image);
    faults("a load over stores needs their fence", "with no fence_proxy_async", load_kernel<Load::OverStores>, shape,
           map, image);
    faults("a load over reads needs a barrier", "which thread 32 has read|reads shared", load_kernel<Load::OverReads>,
           shape, map, image);
    faults("a load must spare barriers", "overwrites a barrier", load_kernel<Load::OverBarrier>, shape, map, image);
}

inline void test_stores() {
    const auto tensor = std::make_unique<Tensor>();
    const LaunchShape shape = {1, 64, 16 * 1024};
    const TensorMap map = tensor->map(8);
    std::fill(std::begin(tensor->elements), std::end(tensor->elements), uint16_t(7));
    passes("a store reaches memory", store_kernel<Store::Right>, shape, map);
    bool right = true;
    for (int i = 0; i < Tensor::rows * 64; ++i) {
        right = right && tensor->elements[i] == (i < 96 * 64 ? 7 : i / 8 % 64);
    }
    expect(right, "a store undoes the swizzle, and stops at the tensor's bounds");
    faults("a store is waited for", "has not waited to be read|WAR race", store_kernel<Store::NotWaitedFor>, shape,
           map);
    faults("a store is read before its memory is stored to", "WAR race: an ordinary store",
           store_kernel<Store::StoredOver>, shape, map);
    faults("a store is read before its memory is loaded to", "WAR race: tma_load", store_kernel<Store::LoadedOver>,
           shape, map);
    faults("a store reads fenced memory", "no fence_proxy_async", store_kernel<Store::NotFenced>, shape, map);
    faults("each thread fences its own stores", "no fence_proxy_async", store_kernel<Store::FencedByAnother>, shape,
           map);
    faults("a store meets those who wrote", "no barrier in between|no fence_proxy_async|WAR race",
           store_kernel<Store::NotMet>, shape, map);
    faults("a store waits for the load", "before the barrier", store_kernel<Store::ReadsBeforeLoad>, shape, map);
    const LaunchShape warp = {1, 32, 4096};
    passes("groups of stores are read in order", groups_kernel<Groups::Right>, warp, map);
    faults("a pending group is not read", "WAR race", groups_kernel<Groups::OverwritesYounger>, warp, map);
    faults("a store is committed", "1 tma_stores that it has not committed", groups_kernel<Groups::NotCommitted>, warp,
           map);
    faults("a store is read before its thread ends", "1 tma_stores whose shared memory",
           groups_kernel<Groups::NotWaitedFor>, warp, map);
}

inline void test_tensor_maps() {
    alignas(16) static uint16_t memory[64];
    const TensorMapShape good = {memory, 2, ATTN_F16, {64, 1, 1, 1, 1}, {128, 128, 128, 128}, {64, 1, 1, 1, 1}, 128};
    TensorMap map;
    expect(encode_tensor_map(&map, good) == ATTN_OK, "a tensor map is made");
    const auto refused = [&](const char* claim, auto change) {
        TensorMapShape shape = good;
        change(shape);
        expect(encode_tensor_map(&map, shape) == ATTN_TENSOR_REFUSED, claim);
    };
    refused("a base is a multiple of 16", [](auto& s) { s.base = memory + 1; });
    refused("a stride is a multiple of 16", [](auto& s) { s.stride_bytes[2] = 24; });
    refused("a stride is below 2^40", [](auto& s) { s.stride_bytes[3] = uint64_t(1) << 40; });
    refused("a box has at most 256", [](auto& s) { s.box[1] = 257; });
    refused("a box has at least 1", [](auto& s) { s.box[1] = 0; });
    refused("a box is not wider than the swizzle", [](auto& s) { s.swizzle_bytes = 64; });
    refused("an extent is at least 1", [](auto& s) { s.extent[4] = 0; });
    refused("an extent is at most 2^32", [](auto& s) { s.extent[4] = (uint64_t(1) << 32) + 1; });
    refused("elements have 1 or 2 bytes", [](auto& s) { s.element_bytes = 4; });
}

}  // namespace attn::selftest
