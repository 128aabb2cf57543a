// Faults: the kernel did what the hardware forbids or leaves undefined. A fault ends its launch.
#pragma once
#include <cstdint>

namespace attn::sim {

// Thrown by a fault outside of the threads: in the copy engine, and in what is checked at the end of a CTA.
struct Fault {};

// Writes the report of the current launch (CTA, thread, primitive, then this text) and leaves the thread for good.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

// For a fault that belongs to `thread` and is found when another one, or none, runs.
[[noreturn]] void fault_of(int thread, const char* primitive, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

// An address as reports print it: its offset from shared_base, and itself.
struct AddressName {
    char text[48];
};
AddressName name(uint32_t address);

}  // namespace attn::sim
