// What the 32 lanes of a warp do together: shuffles, warp_sync, matrix loads and stores.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "shared_memory.h"

namespace attn::sim {

struct Cta;

class Warps {
  public:
    explicit Warps(Cta& cta) : cta_(cta) {}
    void reset();

    // By the current thread. Each returns when all 32 lanes have called it.
    void sync();
    float shuffle_xor(float value, int mask);
    uint32_t value_of_lane(uint32_t value, int lane);
    uint32_t ballot(bool holds);
    void load_matrices(int count, const SharedAddress* rows, uint32_t (*matrices)[4]);
    void load_matrix_x4_transposed(SharedAddress row, uint32_t (&matrices)[4]);
    void store_matrix_x4(SharedAddress row, const uint32_t (&fragments)[4]);

    // The last of the 32 lanes that call this with the same name and argument does the work.
    template <class Work>
    void together(const char* meeting, int argument, Work work) {
        if (!meet(meeting, argument)) return;
        work();
        finish(mine());
    }

    // By the last lane, of four matrices of which each lane gives a row, one of its `rows`: every lane that gets a part of a row
    // knows it to be there, and rows of one matrix are in different banks.
    void check_matrices(const char* primitive, const SharedAddress (&rows)[32], bool transposed);

    // How far the meeting of a warp is, for the report of a deadlock.
    std::string state(int warp) const;

  private:
    struct Lane {
        // What the lane brings to the meeting, then what it takes away.
        float value;
        uint32_t bits;
        int from;
        uint32_t fragments[4];
        // Where the lane keeps the rows that it names, and takes what it gets: it stands still meanwhile.
        const SharedAddress* rows;
        uint32_t (*matrices)[4];
    };

    struct Warp {
        const char* meeting = "";
        int argument = 0, arrived = 0;
        uint32_t meetings = 0;
        Lane lanes[32];
    };

    // Joins the warp's meeting of that name and argument. True for the last lane, which does the work for all before
    // it lets the others go on (finish); the others come back when that is done.
    bool meet(const char* meeting, int argument);
    void finish(Warp& warp);
    Warp& mine();
    Lane& my_lane();

    Cta& cta_;
    std::vector<Warp> warps_;
};

}  // namespace attn::sim
