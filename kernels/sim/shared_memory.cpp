#include "shared_memory.h"

#include "fault.h"

namespace attn::sim {

void SharedMemory::reset(SharedAddress base, uint32_t bytes) {
    base_ = base;
    data_.assign(bytes, 0xff);
}

void SharedMemory::check(SharedAddress address, uint32_t bytes, uint32_t alignment) const {
    if (address % alignment != 0) {
        fault("%s is not aligned to %u bytes", name(address).text, alignment);
    }
    if (address < base_ || uint64_t(address) + bytes > uint64_t(base_) + data_.size()) {
        fault("%u bytes at %s are not inside the %zu bytes of shared memory", bytes, name(address).text, data_.size());
    }
}

}  // namespace attn::sim
