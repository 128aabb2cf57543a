// mbarriers: counted arrivals and transaction bytes, phase by phase.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "clocks.h"
#include "shared_memory.h"

namespace attn::sim {

struct Cta;

class Barriers {
  public:
    explicit Barriers(Cta& cta) : cta_(cta) {}
    void reset();

    // By the current thread.
    void init(SharedAddress address, int arrivals);
    void fence_init();
    void expect(SharedAddress address, int bytes);
    void arrive(SharedAddress address);
    void wait(SharedAddress address, uint32_t parity);

    // For a load that the current thread issues: the barrier's slot, which the load now keeps busy.
    int begin_load(SharedAddress address);
    // The phase that is under way.
    int32_t phase(int slot) const { return barriers_[slot].phases; }
    // A load of `thread` that began in `phase` has delivered its bytes.
    void complete_load(int slot, int32_t phase, int bytes, int thread);

    SharedAddress address_of(int slot) const { return barriers_[slot].address; }
    // Where the barrier stands, for the report of a deadlock.
    std::string state(SharedAddress address) const;
    // A fault if a load or an expected byte is left over.
    void ended() const;

  private:
    struct Barrier {
        SharedAddress address;
        int arrivals, pending;
        int64_t bytes = 0;
        // Completed phases, and the most that a thread has seen completed.
        int32_t phases = 0, seen = 0;
        // The last phase that a load takes part in, -1 if none has.
        int32_t loaded = -1;
        int loads_in_flight = 0;
        int initialiser;
        int32_t fenced_at = never;
        Clock arriving, completed;
        std::vector<int> waiting;
    };

    int find(SharedAddress address) const;
    int usable(SharedAddress address) const;
    void arrive_at(Barrier& barrier);
    void add_bytes(Barrier& barrier, int64_t bytes);
    void complete_if_done(Barrier& barrier);

    Cta& cta_;
    std::vector<Barrier> barriers_;
    // For every eight bytes of shared memory: the slot of the barrier there, or -1.
    std::vector<int16_t> slots_;
};

}  // namespace attn::sim
