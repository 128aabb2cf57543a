// The copy engine: boxes of tensors into shared memory, and back.
//
// A load fills its destination with NaN at once and delivers some turns later: soon or, now and then, late. A store
// reads shared memory only when its thread waits for that (tma_store_wait_read), and may reach global memory as late
// as the end of the CTA.
#pragma once
#include <cstdint>
#include <vector>

#include "attn_sim/tensor_map.h"
#include "shared_memory.h"

namespace attn::sim {

struct Cta;

class CopyEngine {
  public:
    explicit CopyEngine(Cta& cta) : cta_(cta) {}
    void reset();

    // By the current thread.
    void load(SharedAddress destination, const TensorMap& map, SharedAddress barrier, const int (&corner)[5]);
    void store(const TensorMap& map, SharedAddress source, const int (&corner)[5]);
    void commit();
    // Until at most `pending` of the latest groups have not been read, or not been written.
    void wait_read(int pending);
    void wait_written(int pending);

    // Delivers the loads whose time has come.
    void deliver_due(uint64_t now);
    // Delivers the next load whatever the time. False if there is none.
    bool deliver_next();

    // A fault if the thread leaves a store that is not committed or not waited for.
    void thread_ended(int thread) const;
    // The last moment for what has not reached global memory.
    void ended();

  private:
    struct Load {
        uint64_t due;
        int thread;
        SharedAddress destination;
        TensorMap map;
        int corner[5];
        int slot;
        int32_t phase;
    };

    struct Store {
        SharedAddress source;
        TensorMap map;
        int corner[5];
        // In Hazards.
        int number;
        std::vector<uint8_t> bytes;
        bool read = false, written = false;
    };

    // The stores of one thread in the order of issue, and after how many of them each group ends.
    struct Bulk {
        std::vector<Store> stores;
        std::vector<size_t> groups;
        size_t read_groups = 0;
    };

    void check(const TensorMap& map, SharedAddress address) const;
    void deliver(const Load& load);
    void read(Store& store);
    void write(Store& store);

    Cta& cta_;
    std::vector<Load> loads_;
    uint64_t next_due_ = UINT64_MAX;
    std::vector<Bulk> bulks_;
};

}  // namespace attn::sim
