// The bytes of a CTA's shared memory, at addresses of the shared window.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attn::sim {

using SharedAddress = uint32_t;

// What a swizzle of `width` bytes (128, 64, 32; 0 for none) does to an address: the 16-byte chunks of a row change
// places with the row's number, which the hardware takes from the address itself.
inline SharedAddress swizzle(SharedAddress address, int width) {
    const uint32_t rows = width / 16;
    return rows == 0 ? address : address ^ (((address >> 7) & (rows - 1)) << 4);
}

class SharedMemory {
  public:
    // All bytes 0xff: as bf16, f16 or float they are NaN.
    void reset(SharedAddress base, uint32_t bytes);

    SharedAddress base() const { return base_; }
    uint32_t bytes() const { return static_cast<uint32_t>(data_.size()); }
    // A fault if [address, address + bytes) is not all inside, or address is not a multiple of `alignment`.
    void check(SharedAddress address, uint32_t bytes, uint32_t alignment) const;

    // For addresses that have been checked.
    uint8_t* at(SharedAddress address) { return data_.data() + (address - base_); }

  private:
    SharedAddress base_ = 0;
    std::vector<uint8_t> data_;
};

}  // namespace attn::sim
