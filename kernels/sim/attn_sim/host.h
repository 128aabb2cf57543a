// What launchers need from the host, under the simulator: tensor maps, launches, the device's size.
#pragma once
#include <attn/abi.h>

#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "tensor_map.h"

namespace attn {

struct TensorMapShape {
    void* base;
    // 2, of `type`, or 1: bytes as they are.
    int element_bytes;
    AttnType type;
    // Innermost axis first; the strides are those of axes 1 to 4.
    uint64_t extent[5];
    uint64_t stride_bytes[4];
    uint32_t box[5];
    // 0, 32, 64 or 128.
    int swizzle_bytes;
};

// ATTN_TENSOR_REFUSED where the driver would refuse.
int encode_tensor_map(TensorMap* map, const TensorMapShape& shape);

struct LaunchShape {
    int blocks;
    int threads;
    int shared_bytes;
};

namespace sim {

// Runs every CTA to its end. 0 or ATTN_SIM_FAULT.
int run_launch(LaunchShape shape, void (*kernel)(void*), void* arguments);

}  // namespace sim

template <class... P, class... A>
int launch(void (*kernel)(P...), LaunchShape shape, void*, A&&... arguments) {
    static_assert(sizeof...(P) == sizeof...(A), "a launch gives the kernel's parameters, each once");
    struct Call {
        void (*kernel)(P...);
        std::tuple<std::decay_t<P>...> arguments;
    } call{kernel, std::tuple<std::decay_t<P>...>(std::forward<A>(arguments)...)};
    const auto thread = [](void* pointer) {
        const Call& bound = *static_cast<const Call*>(pointer);
        std::apply(bound.kernel, bound.arguments);
    };
    return sim::run_launch(shape, thread, &call);
}

// There is nothing to load.
template <class... P>
int load(void (*)(P...)) {
    return ATTN_OK;
}

int multiprocessors(int* count);
int l2_cache_bytes(int* bytes);

}  // namespace attn
