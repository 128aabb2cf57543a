// cp.async: copies of single threads, which go on without them.
//
// What a copy fills is NaN from its beginning until its thread waits for its group, and nobody may read or overwrite it
// meanwhile. From then on it is like something that the thread has stored: others have to meet it first.
#pragma once
#include <cstdint>
#include <vector>

#include "shared_memory.h"

namespace attn::sim {

struct Cta;

class ThreadCopies {
  public:
    explicit ThreadCopies(Cta& cta) : cta_(cta) {}
    void reset();

    // By the current thread.
    void begin(SharedAddress to, const void* from, int bytes);
    void commit();
    // Until at most `pending` of the latest groups have not arrived.
    void wait(int pending);

    // A fault if the thread leaves a copy that it has not committed, or not waited for.
    void thread_ended(int thread) const;

  private:
    struct Copy {
        SharedAddress to;
        const void* from;
        int bytes;
    };

    // The copies of one thread that have not arrived, in order, and after how many of them each group ends.
    struct Thread {
        std::vector<Copy> copies;
        std::vector<size_t> groups;
    };

    Cta& cta_;
    std::vector<Thread> threads_;
};

}  // namespace attn::sim
