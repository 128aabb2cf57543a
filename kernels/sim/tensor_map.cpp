#include "attn_sim/host.h"

namespace attn {

namespace {

bool acceptable(const TensorMapShape& shape) {
    if (shape.base == nullptr || reinterpret_cast<uintptr_t>(shape.base) % 16 != 0) return false;
    if (shape.element_bytes != 1 && shape.element_bytes != 2) return false;
    if (shape.element_bytes == 2 && shape.type != ATTN_BF16 && shape.type != ATTN_F16) return false;
    for (int axis = 0; axis < 5; ++axis) {
        if (shape.extent[axis] < 1 || shape.extent[axis] > uint64_t(1) << 32) return false;
        if (shape.box[axis] < 1 || shape.box[axis] > 256) return false;
    }
    for (const uint64_t stride : shape.stride_bytes) {
        if (stride % 16 != 0 || stride >= uint64_t(1) << 40) return false;
    }
    const uint32_t row = shape.box[0] * static_cast<uint32_t>(shape.element_bytes);
    const int width = shape.swizzle_bytes;
    if (row % 16 != 0 || (width != 0 && width != 32 && width != 64 && width != 128)) return false;
    return width == 0 || row <= static_cast<uint32_t>(width);
}

}  // namespace

int encode_tensor_map(TensorMap* map, const TensorMapShape& shape) {
    if (!acceptable(shape)) return ATTN_TENSOR_REFUSED;
    map->base = static_cast<uint8_t*>(shape.base);
    for (int axis = 0; axis < 5; ++axis) {
        map->extent[axis] = shape.extent[axis];
        map->stride[axis] = axis == 0 ? static_cast<uint64_t>(shape.element_bytes) : shape.stride_bytes[axis - 1];
        map->box[axis] = shape.box[axis];
    }
    map->swizzle_bytes = shape.swizzle_bytes;
    map->magic = TensorMap::made;
    return ATTN_OK;
}

}  // namespace attn
