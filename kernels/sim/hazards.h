// Who reads and writes shared memory, and whether one may follow the other: the rules of ordering and of the two
// proxies (ordinary instructions on one side; the copy engine and the tensor cores, "asynchronous", on the other).
//
// Memory is watched in granules of 16 bytes. Each remembers its last writer, the last ordinary reader of each warp, the
// last store of the copy engine and the last wgmma of each warpgroup that read it. Whether one thread's action follows another's
// is asked of the vector clocks, not of the order in which the threads happened to run.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "clocks.h"
#include "shared_memory.h"

namespace attn::sim {

struct Cta;

// What threads must know before an operand can be read: collected once, checked for each thread.
struct Need {
    int component;
    int32_t value;
    SharedAddress where;
};
using Needs = std::vector<Need>;

class Hazards {
  public:
    explicit Hazards(Cta& cta) : cta_(cta) {}
    void reset();

    // Ordinary access to one granule by the current thread.
    void store(SharedAddress granule);
    void load(SharedAddress granule);
    // A lane of the current thread's warp has named the granule as a row of a matrix that the warp loads.
    void matrix_row(int lane, SharedAddress granule);
    // A fault if a thread that gets what the granule holds does not know it to be there.
    void may_read(int thread, const char* primitive, SharedAddress granule) const;
    // Whether all lanes of a warp are sure to; if not, each has to be asked.
    bool warp_may_read(int warp, SharedAddress granule);
    // A copy of the current thread begins to fill the granule; has filled it, as the thread now knows.
    void copy_begins(SharedAddress granule);
    void copy_arrives(SharedAddress granule);
    // fence_proxy_async by the current thread.
    void fence();
    // A barrier occupies eight bytes from here on.
    void place_barrier(SharedAddress address);
    // A fault if a barrier lies there.
    void forbid_barrier(SharedAddress address, uint32_t bytes) const;

    // The current thread lets the copy engine fill memory; that ends with `phase` of barrier `slot`.
    void fill(SharedAddress address, uint32_t bytes, int slot, int32_t phase);
    // The current thread lets the copy engine read memory. Returns the store's number, for `drained`.
    int drain(SharedAddress address, uint32_t bytes);
    // The current thread knows that the store has read its memory.
    void drained(int store);

    // wgmma number `wgmma` of the warpgroup reads the granule. Appends what its threads need to know.
    void operand(int warpgroup, int32_t wgmma, SharedAddress granule, Needs& needs);
    void finish_needs();
    // A fault if the current thread does not know it all.
    void require(const Needs& needs) const;

  private:
    // Copied: by the copy engine. Filling: by a copy of a thread that has not waited for it.
    enum class Written : uint8_t { Never, Stored, Copied, Filling };

    struct Granule {
        Written written = Written::Never;
        // Bit 0 and 1: a barrier in the first or second half.
        uint8_t barriers = 0;
        // Stored, Filling: the thread. Copied: the barrier's slot.
        int16_t writer = -1;
        // Stored: the writer's time. Copied: how many phases the barrier has had when the load is complete.
        int32_t written_at = 0;
        // Stored: the writer's time at its next fence_proxy_async.
        int32_t fenced_at = never;
        int32_t store = -1;
    };

    struct Store {
        int thread;
        int32_t drained_at;
    };

    // Of a granule, in one warp.
    struct Read {
        int16_t thread = -1;
        int32_t at = 0;
    };

    size_t index(SharedAddress address) const;
    SharedAddress address_of(size_t index) const;
    void before_overwrite(size_t index, const char* action);
    void before_write(size_t index, const char* action);
    void written(size_t index);
    void read_by(int thread, size_t index);
    void need(int component, int32_t value, SharedAddress where, Needs& needs);
    void need_granule(size_t index, Needs& needs);

    Cta& cta_;
    std::vector<Granule> granules_;
    // For each warpgroup and granule: one more than the number of the last wgmma that reads it.
    std::vector<std::vector<int32_t>> operands_;
    // For each warp and granule; empty for a warp that has read nothing.
    std::vector<std::vector<Read>> reads_;
    // For each warp and thread: up to when all lanes of the warp knew what the thread has done, when that was asked last.
    std::vector<int32_t> known_;
    std::vector<Store> stores_;
    // For each thread: the granules it has stored to since its last fence.
    std::vector<std::vector<uint32_t>> unfenced_;
    // For each component: its place in the list of needs being collected, or -1.
    std::vector<int> places_;
    std::vector<int> touched_;
};

}  // namespace attn::sim
