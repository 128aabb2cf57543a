#include "warps.h"

#include <cstring>

#include "cta.h"
#include "fault.h"

namespace attn::sim {

void Warps::reset() {
    warps_.resize(cta_.threads / 32);
    for (Warp& warp : warps_) {
        warp.arrived = 0;
    }
}

Warps::Warp& Warps::mine() { return warps_[cta_.scheduler.current() / 32]; }

Warps::Lane& Warps::my_lane() { return mine().lanes[cta_.scheduler.current() % 32]; }

bool Warps::meet(const char* meeting, int argument) {
    Warp& warp = mine();
    if (warp.arrived == 0) {
        warp.meeting = meeting;
        warp.argument = argument;
    } else if (warp.meeting != meeting || warp.argument != argument) {
        fault("divergence: this lane is at %s (%d), and %d lanes of its warp are at %s (%d)", meeting, argument,
              warp.arrived, warp.meeting, warp.argument);
    }
    if (++warp.arrived == 32) return true;
    const uint32_t now = warp.meetings;
    while (warp.meetings == now) {
        cta_.scheduler.block({Wait::Warp, static_cast<uint32_t>(cta_.scheduler.current() / 32), 0});
    }
    return false;
}

void Warps::finish(Warp& warp) {
    const int me = cta_.scheduler.current();
    for (int thread = me / 32 * 32; thread < me / 32 * 32 + 32; ++thread) {
        if (thread != me) cta_.scheduler.wake(thread);
    }
    warp.arrived = 0;
    ++warp.meetings;
}

void Warps::sync() {
    static const char meeting[] = "warp_sync";
    if (meet(meeting, 0)) {
        const int first = cta_.scheduler.current() / 32 * 32;
        Clock known(cta_.clocks.size(), 0);
        for (int thread = first; thread < first + 32; ++thread) {
            cta_.clocks.release(thread, known);
        }
        for (int thread = first; thread < first + 32; ++thread) {
            cta_.clocks.acquire(thread, known);
        }
        finish(mine());
    }
}

// A shuffle moves values and orders no memory: it leaves the clocks alone.
float Warps::shuffle_xor(float value, int mask) {
    static const char meeting[] = "shuffle_xor";
    if (mask < 0 || mask > 31) {
        fault("a lane mask is 0 to 31, not %d", mask);
    }
    my_lane().value = value;
    if (meet(meeting, mask)) {
        Warp& warp = mine();
        float values[32];
        for (int lane = 0; lane < 32; ++lane) {
            values[lane] = warp.lanes[lane ^ mask].value;
        }
        for (int lane = 0; lane < 32; ++lane) {
            warp.lanes[lane].value = values[lane];
        }
        finish(warp);
    }
    return my_lane().value;
}

uint32_t Warps::value_of_lane(uint32_t value, int lane) {
    static const char meeting[] = "value_of_lane";
    if (lane < 0 || lane > 31) {
        fault("lanes are 0 to 31: there is no lane %d", lane);
    }
    my_lane().bits = value;
    my_lane().from = lane;
    if (meet(meeting, 0)) {
        Warp& warp = mine();
        uint32_t values[32];
        for (int each = 0; each < 32; ++each) {
            values[each] = warp.lanes[warp.lanes[each].from].bits;
        }
        for (int each = 0; each < 32; ++each) {
            warp.lanes[each].bits = values[each];
        }
        finish(warp);
    }
    return my_lane().bits;
}

uint32_t Warps::ballot(bool holds) {
    static const char meeting[] = "ballot";
    my_lane().bits = holds;
    if (meet(meeting, 0)) {
        Warp& warp = mine();
        uint32_t votes = 0;
        for (int each = 0; each < 32; ++each) {
            votes |= warp.lanes[each].bits << each;
        }
        for (int each = 0; each < 32; ++each) {
            warp.lanes[each].bits = votes;
        }
        finish(warp);
    }
    return my_lane().bits;
}

// Lane l gets of matrix i two elements of row l / 4; of the transposed matrix, one of each of two rows.
void Warps::load_matrices(int count, const SharedAddress* rows, uint32_t (*matrices)[4]) {
    static const char meeting[] = "load_matrix_x4";
    my_lane().rows = rows;
    my_lane().matrices = matrices;
    together(meeting, count, [&] {
        const Lane* lanes = mine().lanes;
        for (int n = 0; n < count; ++n) {
            SharedAddress at[32];
            for (int lane = 0; lane < 32; ++lane) {
                at[lane] = lanes[lane].rows[n];
            }
            check_matrices(meeting, at, false);
            for (int lane = 0; lane < 32; ++lane) {
                for (int i = 0; i < 4; ++i) {
                    const uint8_t* from = cta_.memory.at(at[8 * i + lane / 4]) + lane % 4 * 4;
                    std::memcpy(&lanes[lane].matrices[n][i], from, 4);
                }
            }
        }
    });
}

void Warps::load_matrix_x4_transposed(SharedAddress row, uint32_t (&matrices)[4]) {
    static const char meeting[] = "load_matrix_x4_transposed";
    my_lane().rows = &row;
    my_lane().matrices = &matrices;
    together(meeting, 0, [&] {
        const Lane* lanes = mine().lanes;
        SharedAddress at[32];
        for (int lane = 0; lane < 32; ++lane) {
            at[lane] = *lanes[lane].rows;
        }
        check_matrices(meeting, at, true);
        for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 4; ++i) {
                uint16_t pair[2];
                for (int part = 0; part < 2; ++part) {
                    const uint8_t* from = cta_.memory.at(at[8 * i + lane % 4 * 2 + part]) + lane / 4 * 2;
                    std::memcpy(&pair[part], from, 2);
                }
                lanes[lane].matrices[0][i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
            }
        }
    });
}

void Warps::check_matrices(const char* primitive, const SharedAddress (&rows)[32], bool transposed) {
    const int first = cta_.scheduler.current() / 32 * 32;
    for (int from = 0; from < 32; ++from) {
        const SharedAddress row = rows[from];
        cta_.memory.check(row, 16, 16);
        cta_.hazards.matrix_row(first + from, row);
        const int in_matrix = from % 8;
        if (!cta_.hazards.warp_may_read(first / 32, row)) {
            // Those who get a part of it: four neighbours, or every fourth lane.
            for (int i = 0; i < (transposed ? 8 : 4); ++i) {
                const int lane = transposed ? in_matrix / 2 + 4 * i : 4 * in_matrix + i;
                cta_.hazards.may_read(first + lane, primitive, row);
            }
        }
        for (int other = from - in_matrix; other < from; ++other) {
            if ((rows[other] ^ row) % 128 == 0 && rows[other] != row) {
                fault("bank conflict: rows at %s and %s of one matrix are in the same banks", name(rows[other]).text,
                      name(row).text);
            }
        }
    }
}

// Row r of matrix i is 16 bytes: four bytes from each of lanes 4r to 4r + 3, at the address that lane 8i + r gives.
//
// The row counts as written by the lane that gives its address. A kernel in which any lane forgets its fence is
// caught then, whichever lane that is.
void Warps::store_matrix_x4(SharedAddress row, const uint32_t (&fragments)[4]) {
    static const char meeting[] = "store_matrix_x4";
    cta_.memory.check(row, 16, 16);
    std::memcpy(my_lane().fragments, fragments, sizeof fragments);
    if (meet(meeting, 0)) {
        Warp& warp = mine();
        uint32_t chunks[32][4];
        for (int lane = 0; lane < 32; ++lane) {
            for (int part = 0; part < 4; ++part) {
                chunks[lane][part] = warp.lanes[4 * (lane % 8) + part].fragments[lane / 8];
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            std::memcpy(warp.lanes[lane].fragments, chunks[lane], sizeof chunks[lane]);
        }
        finish(warp);
    }
    cta_.hazards.store(row);
    std::memcpy(cta_.memory.at(row), my_lane().fragments, 16);
}

std::string Warps::state(int warp) const { return std::to_string(warps_[warp].arrived) + " of 32 lanes are there"; }

}  // namespace attn::sim
