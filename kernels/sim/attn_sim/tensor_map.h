// The copy engine's description of a tensor.
#pragma once
#include <cstdint>

namespace attn {

// Up to five axes, the first dense, of elements of 1 or 2 bytes. `box` is what one load or store moves.
struct TensorMap {
    uint8_t* base;
    uint64_t extent[5];
    // Bytes. The first is the size of an element.
    uint64_t stride[5];
    uint32_t box[5];
    int32_t swizzle_bytes;
    // Tells a map that encode_tensor_map made from memory that happens to lie there.
    uint32_t magic;

    static constexpr uint32_t made = 0x7e45012a;
};

}  // namespace attn
