// What launchers need on the host, by the CUDA runtime.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "attn/abi.h"

namespace attn {

// A tensor of five axes, the first one dense, and the box that one copy moves.
struct TensorMapShape {
    void* base;
    // 2, of `type`, or 1: bytes as they are.
    int element_bytes;
    AttnType type;
    uint64_t extent[5];
    // Axes 1 to 4.
    uint64_t stride_bytes[4];
    uint32_t box[5];
    // 0, 32, 64 or 128.
    int swizzle_bytes;
};

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's encoder, found at run time: nothing here links against the driver.
inline EncodeTiled tensor_map_encoder() {
    static const EncodeTiled encoder = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
        const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                                    cudaEnableDefault, &found);
        const bool usable = status == cudaSuccess && found == cudaDriverEntryPointSuccess;
        return usable ? reinterpret_cast<EncodeTiled>(function) : nullptr;
    }();
    return encoder;
}

// Describes a tensor for the copy engine. Returns an AttnStatus.
inline int encode_tensor_map(CUtensorMap* map, const TensorMapShape& shape) {
    const EncodeTiled encode = tensor_map_encoder();
    if (encode == nullptr) return ATTN_NO_TENSOR_MAPS;
    const CUtensorMapDataType type = shape.element_bytes == 1    ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                     : shape.type == ATTN_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    const CUtensorMapSwizzle swizzle = shape.swizzle_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                       : shape.swizzle_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                       : shape.swizzle_bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                                   : CU_TENSOR_MAP_SWIZZLE_NONE;
    const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
    cuuint64_t extent[5], strides[4];
    for (int axis = 0; axis < 5; ++axis) extent[axis] = shape.extent[axis];
    for (int axis = 0; axis < 4; ++axis) strides[axis] = shape.stride_bytes[axis];
    // How much the L2 cache fetches at a time: no more than a row, or it would fetch a neighbour's.
    const bool long_rows = shape.extent[0] * shape.extent[2] * shape.element_bytes >= 256;
    const CUtensorMapL2promotion promotion =
        long_rows ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
    const CUresult result =
        encode(map, type, 5, shape.base, extent, strides, shape.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
               promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? ATTN_OK : ATTN_TENSOR_REFUSED;
}

struct LaunchShape {
    int blocks, threads, shared_bytes;
};

// Shared memory that a launch gets without asking.
constexpr int default_shared_bytes = 48 * 1024;

// Queues a kernel. Returns a cudaError_t.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), LaunchShape shape, void* stream, Arguments&&... arguments) {
    if (shape.shared_bytes > default_shared_bytes) {
        const cudaError_t status =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
        if (status != cudaSuccess) return status;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    return cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...);
}

// Loads a kernel that a launch would load, which may wait for other kernels to end. Returns a cudaError_t.
template <class... Parameters>
int load(void (*kernel)(Parameters...)) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, kernel);
}

// A property of the current device, asked for once per device. Returns a cudaError_t.
template <cudaDeviceAttr Attribute>
int device_attribute(int* value) {
    constexpr int most_devices = 64;
    static std::atomic<int> known[most_devices];
    int device = 0;
    if (const cudaError_t status = cudaGetDevice(&device)) return status;
    const bool remembered = device < most_devices;
    *value = remembered ? known[device].load(std::memory_order_relaxed) : 0;
    if (*value > 0) return cudaSuccess;
    if (const cudaError_t status = cudaDeviceGetAttribute(value, Attribute, device)) return status;
    if (remembered) known[device].store(*value, std::memory_order_relaxed);
    return cudaSuccess;
}

inline int multiprocessors(int* count) { return device_attribute<cudaDevAttrMultiProcessorCount>(count); }

inline int l2_cache_bytes(int* bytes) { return device_attribute<cudaDevAttrL2CacheSize>(bytes); }

}  // namespace attn
