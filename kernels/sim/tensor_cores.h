// wgmma: warpgroups multiply tiles, in the background.
//
// An instruction is carried out as late as its threads allow: when the first of them waits for it. Until a thread has
// waited, its accumulators hold signalling NaN. A result that comes from reading them is NaN, and an accumulator that
// is not the same signalling NaN when the wait ends has been written to meanwhile.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attn_sim/wgmma.h"
#include "hazards.h"

namespace attn::sim {

struct Cta;

class TensorCores {
  public:
    explicit TensorCores(Cta& cta) : cta_(cta) {}
    void reset();

    // By the current thread.
    void fence();
    void issue(const WgmmaInstruction& instruction, void* accumulators, const uint32_t* a_registers);
    void commit();
    // Until at most `pending` of the latest groups are unfinished.
    void wait(int pending);

    // How far the wgmma that a thread waits for is, for the report of a deadlock.
    std::string state(int warpgroup) const;
    // A fault if the thread leaves a wgmma that it has not committed or not waited for.
    void thread_ended(int thread) const;

  private:
    // The accumulators of a warpgroup, [64][n], while wgmmas on them are in flight. Those of S8 are the bits of int32_t.
    struct Tile {
        int n;
        // Threads that have not got their part yet.
        int holders;
        std::vector<float> sums;
    };

    struct Operation {
        WgmmaInstruction instruction;
        Tile* tile;
        // It is the first on its tile.
        bool opens_tile;
        int joined;
        Needs needs;
        std::vector<SharedAddress> a_chunks, b_chunks;
        uint32_t a_registers[128][4];
    };

    struct Warpgroup {
        // Operations that are not carried out yet. The first has number `executed`.
        std::vector<std::unique_ptr<Operation>> operations;
        int32_t executed = 0;
        // How many have been issued by all 128 threads.
        int32_t issued = 0;
        std::vector<int> waiting;
    };

    // Accumulators in flight of one thread.
    struct Holding {
        Tile* tile;
        float* accumulators;
        // One more than the number of the last wgmma on them.
        int32_t end;
    };

    struct Thread {
        bool fenced = false;
        // Counts of wgmmas.
        int32_t issued = 0, waited = 0;
        // `issued` at each commit, the finished ones taken off.
        std::vector<int32_t> groups;
        std::vector<Holding> holdings;
    };

    Operation& open(Warpgroup& warpgroup, int number, const WgmmaInstruction& instruction);
    void hold(Operation& operation, Thread& thread, bool first, float* accumulators);
    void execute(Warpgroup& warpgroup);
    void deliver(Thread& thread);
    void decode_a(const Operation& operation);
    void decode_b(const Operation& operation);

    Tile* take_tile(int n);

    Cta& cta_;
    std::vector<Warpgroup> warpgroups_;
    std::vector<Thread> threads_;
    std::vector<std::unique_ptr<Tile>> tiles_;
    std::vector<Tile*> free_tiles_;
    std::vector<std::unique_ptr<Operation>> free_operations_;
    // Operands of the operation being carried out: [64][depth] and [depth][n].
    float a_[64 * 32], b_[32 * 256];
};

}  // namespace attn::sim
