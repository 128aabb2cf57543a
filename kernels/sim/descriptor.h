// The 64 bits by which a wgmma finds an operand in shared memory.
#pragma once
#include <cstdint>
#include <vector>

#include "shared_memory.h"

namespace attn::sim {

struct Cta;

// The operand's 16-byte chunks in shared memory, swizzled and checked. `rows` counts along M or N.
//
// K-major: 2 chunks for each row, [row][k / 8]. MN-major: rows / 8 chunks for each k, [k][row / 8].
void operand_chunks(const Cta& cta, const char* operand, uint64_t descriptor, bool mn_major, int rows,
                    std::vector<SharedAddress>& chunks);

}  // namespace attn::sim
