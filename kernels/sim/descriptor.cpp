#include "descriptor.h"

#include "cta.h"
#include "fault.h"

namespace attn::sim {

namespace {

constexpr uint64_t field = 0x3fff;
// Start, leading and stride byte offset, swizzle. All others are zero: reserved, or the base offset.
constexpr uint64_t known_bits = field | field << 16 | field << 32 | uint64_t(3) << 62;

struct Descriptor {
    SharedAddress start;
    // Between repetitions of the swizzle's atom: along rows and, if MN-major, along k and rows the other way round.
    uint32_t leading, stride;
    // Of the swizzle, in bytes.
    uint32_t width;
};

Descriptor decode(const char* operand, uint64_t bits) {
    if (bits & ~known_bits) {
        fault("descriptor %016llx of %s has reserved bits or a base offset", static_cast<unsigned long long>(bits),
              operand);
    }
    if (bits >> 62 == 0) {
        fault("descriptor %016llx of %s names no swizzle, which the simulator does not model",
              static_cast<unsigned long long>(bits), operand);
    }
    return {static_cast<SharedAddress>((bits & field) << 4), static_cast<uint32_t>((bits >> 16 & field) << 4),
            static_cast<uint32_t>((bits >> 32 & field) << 4), 256u >> (bits >> 62)};
}

// The hardware takes a row's number within the swizzle from address bits, so with a base offset of 0 every atom of
// eight rows begins at a multiple of its size.
void check_alignment(const char* operand, const Descriptor& d, bool mn_major, int rows) {
    const uint32_t atom = 8 * d.width;
    const uint32_t rest = d.start % atom;
    // A K-major operand goes on along k inside the first row.
    const bool inside_first_row = !mn_major && rest < d.width && rest % 32 == 0;
    if (rest != 0 && !inside_first_row) {
        fault("%s begins at %s, which is not at an atom of its %u-byte swizzle (%u bytes): %u bytes beyond one",
              operand, name(d.start).text, d.width, atom, rest);
    }
    const bool repeats = mn_major || rows > 8;
    if (repeats && d.stride % atom != 0) {
        fault("the stride byte offset of %s, %u, is not a multiple of an atom of its %u-byte swizzle (%u bytes)",
              operand, d.stride, d.width, atom);
    }
    if (mn_major && rows > static_cast<int>(d.width / 2) && d.leading % atom != 0) {
        fault("the leading byte offset of %s, %u, is not a multiple of an atom of its %u-byte swizzle (%u bytes)",
              operand, d.leading, d.width, atom);
    }
}

}  // namespace

void operand_chunks(const Cta& cta, const char* operand, uint64_t bits, bool mn_major, int rows,
                    std::vector<SharedAddress>& chunks) {
    const Descriptor d = decode(operand, bits);
    check_alignment(operand, d, mn_major, rows);
    chunks.clear();
    const auto add = [&](SharedAddress address) {
        const SharedAddress chunk = swizzle(address, static_cast<int>(d.width));
        if (chunk < cta.memory.base() || chunk + 16 > cta.memory.base() + cta.memory.bytes()) {
            fault("%s reads %s, outside the %u bytes of shared memory", operand, name(chunk).text, cta.memory.bytes());
        }
        chunks.push_back(chunk);
    };
    if (mn_major) {
        const uint32_t group = d.width / 2;
        for (uint32_t k = 0; k < 16; ++k) {
            for (uint32_t row = 0; row < static_cast<uint32_t>(rows); row += 8) {
                add(d.start + row / group * d.leading + row % group * 2 + k / 8 * d.stride + k % 8 * d.width);
            }
        }
    } else {
        for (uint32_t row = 0; row < static_cast<uint32_t>(rows); ++row) {
            for (uint32_t k = 0; k < 16; k += 8) {
                add(d.start + row / 8 * d.stride + row % 8 * d.width + k * 2);
            }
        }
    }
}

}  // namespace attn::sim
