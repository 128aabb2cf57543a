// Communicators whose ranks are threads of this process, and how what they send finds what is to be received.
//
// A send and a receive are over when both have come and the bytes are copied: nothing is buffered, so an order of calls
// that works on GPUs by the grace of a buffer alone hangs here. The n-th send from one rank to another is the n-th
// receive there of it. All of a group moves at once; groups of one communicator one after the other.
#pragma once

#include "nccl.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

// Everything here is behind this one lock; who waits, waits for `changed`.
extern std::mutex lock;
extern std::condition_variable changed;

struct Batch;

// One half of a message.
struct Half {
    char* data;
    size_t bytes;
    int peer;
    bool sends;
    // Part of ncclAlltoAll, which does not pair with ncclSend and ncclRecv.
    bool collective;
    bool done;
};

// The ranks of one communicator.
struct Ranks {
    explicit Ranks(int size) : members(size) {}

    std::vector<Comm*> members;
    int arrived = 0;
    // Halves that wait, by (from, to).
    std::map<std::pair<int, int>, std::deque<std::pair<Half*, Batch*>>> sent, wanted;
    // Splits under way, by their number.
    struct Split {
        struct Part {
            Comm* comm;
            int color, key;
            ncclComm_t* slot;
        };
        std::vector<Part> parts;
    };
    std::map<uint64_t, Split> splits;

    bool complete() const { return arrived == static_cast<int>(members.size()); }
};

// What all communicators of a rank share: they are of one GPU.
struct Device {
    Fault fault = FAULT_NONE;
    size_t fault_at = 0;
    size_t groups = 0;
    // Groups that were given to a stream and have not ended, and that stream.
    size_t outstanding = 0;
    cudaStream_t stream = nullptr;
    // Who is inside a group.
    std::thread::id caller;
    size_t calls = 0;
};

struct Comm {
    std::shared_ptr<Ranks> ranks;
    std::shared_ptr<Device> device;
    int rank = 0;
    bool blocking = false;
    bool aborted = false;
    bool splitting = false;
    bool finalized = false;
    uint64_t splits = 0;
    // Numbers of groups: given to a stream, and ended.
    uint64_t queued = 0, ended = 0;
    // The first group goes out only when it was asked so often whether the connections stand.
    int connecting = 2;
    std::vector<std::shared_ptr<Batch>> deferred;
    ncclResult_t error = ncclSuccess;
    size_t registered = 0;
};

// A group of sends and receives of one communicator.
struct Batch {
    std::shared_ptr<Comm> comm;
    cudaStream_t stream;
    std::vector<Half> halves;
    uint64_t number;
    bool hangs;
};

// Carries out a batch; called on the stream, without the lock.
void carry_out(const std::shared_ptr<Batch>& batch);
// Gives a batch to its stream; with the lock, which it lets go meanwhile.
void queue(const std::shared_ptr<Batch>& batch, std::unique_lock<std::mutex>& held);
// Makes the communicators of a split whose ranks have all come; with the lock.
void finish_split(Ranks& ranks, uint64_t number);
// Puts down what ncclGetLastError tells, and returns the code.
ncclResult_t refuse(ncclResult_t code, const std::string& text);
// The text that was put down last.
const char* last_error();
// The owner of a communicator that is neither destroyed nor aborted; null if there is none.
std::shared_ptr<Comm> find(Comm* comm);
void keep(const std::shared_ptr<Comm>& comm);
void forget(Comm* comm);
size_t live();
