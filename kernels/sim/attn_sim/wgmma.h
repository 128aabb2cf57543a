// What a wgmma instruction says, apart from its registers.
#pragma once
#include <cstdint>

namespace attn::sim {

enum class Element : uint8_t { Bf16, F16, S8, E4m3 };

// The k of one instruction: 32 bytes of each row.
constexpr int depth_of(Element element) { return element == Element::Bf16 || element == Element::F16 ? 16 : 32; }

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

// `accumulators` are n / 2 floats of the current thread, or int32_t for S8; `a_registers` four words, or null.
void issue_wgmma(const WgmmaInstruction& instruction, void* accumulators, const uint32_t* a_registers);

}  // namespace attn::sim
