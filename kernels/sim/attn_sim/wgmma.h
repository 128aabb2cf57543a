// What a wgmma instruction says, apart from its registers.
#pragma once
#include <cstdint>

namespace attn::sim {

enum class Element : uint8_t { Bf16, F16 };

struct WgmmaInstruction {
    int n;
    Element element;
    bool a_from_registers, b_mn_major, accumulate;
    uint64_t a, b;

    bool operator==(const WgmmaInstruction& other) const {
        return n == other.n && element == other.element && a_from_registers == other.a_from_registers &&
               b_mn_major == other.b_mn_major && accumulate == other.accumulate && a == other.a && b == other.b;
    }
};

// `accumulators` are n / 2 floats of the current thread; `a_registers` four words, or null.
void issue_wgmma(const WgmmaInstruction& instruction, float* accumulators, const uint32_t* a_registers);

}  // namespace attn::sim
