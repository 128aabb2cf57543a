// The part of NCCL's C interface that this library has, over memory of the host: names, types and meanings are NCCL's.
#pragma once

#include <cstddef>

extern "C" {

enum ncclResult_t {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
};

struct ncclUniqueId {
    char internal[128];
};

// As of NCCL 2.18; later ones have more behind it, and say so by `size`.
struct ncclConfig_t {
    size_t size;
    unsigned magic;
    unsigned version;
    int blocking;
    int cgaClusterSize;
    int minCTAs;
    int maxCTAs;
    const char* netName;
    int splitShare;
};

// What a stream is here: something that runs work in order on a thread of its own. Null runs it at once.
struct SimStream {
    void (*enqueue)(SimStream* stream, void (*work)(void*), void* argument);
};

typedef struct Comm* ncclComm_t;
typedef SimStream* cudaStream_t;

// Faults, planted in the communicators of one rank: in the next one that the calling thread initialises, and in those
// split off it. `at` counts the rank's groups of sends and receives from 1, and is not looked at where it means nothing.
enum Fault {
    FAULT_NONE = 0,
    // Initialisation never sees this rank.
    FAULT_ABSENT = 1,
    // The group never ends, and the communicator has an asynchronous error.
    FAULT_ASYNC_ERROR = 2,
    // The call that ends the group fails.
    FAULT_CALL = 3,
    // The group never ends.
    FAULT_HANG = 4,
};

void attn_nccl_sim_fault(int fault, size_t at);
// How many communicators there are that were neither destroyed nor aborted.
size_t attn_nccl_sim_live();
}
