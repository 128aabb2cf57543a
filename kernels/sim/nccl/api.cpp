// NCCL's functions, for ranks that are threads of one process and memory of the host. What NCCL leaves undefined (a
// communicator used after its end, by two threads at once, or on two streams of one GPU without an order) is an error.

#include "ranks.h"

#include <cstdlib>
#include <cstring>

namespace {

// Such as NCCL 2.28, the first with ncclAlltoAll.
constexpr int VERSION = 22800;
constexpr unsigned MAGIC = 0xcafebeef;

// Communicators being made, by their id.
std::map<std::string, std::shared_ptr<Ranks>> worlds;

thread_local struct {
    Fault fault = FAULT_NONE;
    size_t at = 0;
} planted;

// What this thread has put into its group so far.
thread_local int depth = 0;
thread_local std::vector<std::shared_ptr<Batch>> group;
thread_local ncclResult_t group_error = ncclSuccess;

ncclResult_t used_badly(const std::string& text) { return refuse(ncclInvalidUsage, text); }

// The communicator, if it may be called now.
std::shared_ptr<Comm> usable(ncclComm_t handle, const char* call, ncclResult_t& code) {
    auto comm = find(handle);
    if (!comm) {
        code = used_badly(std::string(call) + " of a communicator that was destroyed or aborted");
    } else if (!comm->ranks->complete() || comm->splitting) {
        code = used_badly(std::string(call) + " of a communicator that is still being made or split");
        comm = nullptr;
    } else if (comm->finalized) {
        code = used_badly(std::string(call) + " of a communicator that was finalized");
        comm = nullptr;
    }
    return comm;
}

void leave(Device& device) {
    if (device.calls && --device.calls == 0) device.caller = {};
}

ncclResult_t end_group() {
    std::unique_lock<std::mutex> held(lock);
    auto batches = std::move(group);
    group.clear();
    ncclResult_t outcome = group_error;
    group_error = ncclSuccess;
    for (const auto& batch : batches) {
        Comm& comm = *batch->comm;
        Device& device = *comm.device;
        leave(device);
        if (outcome != ncclSuccess && outcome != ncclInProgress) continue;
        device.groups += 1;
        bool now = device.fault_at == device.groups;
        if (now && device.fault == FAULT_CALL) {
            outcome = refuse(ncclSystemError, "planted: the call fails");
            continue;
        }
        if (now && device.fault == FAULT_ASYNC_ERROR) {
            comm.error = ncclRemoteError;
            refuse(ncclRemoteError, "planted: the connection is lost");
        }
        if (device.outstanding && device.stream != batch->stream) {
            outcome = used_badly("two streams of one GPU have groups under way: they run in no order");
            continue;
        }
        batch->hangs = now && device.fault != FAULT_NONE;
        batch->number = comm.queued++;
        device.outstanding += 1;
        device.stream = batch->stream;
        if (comm.connecting > 0 && !comm.blocking) {
            comm.deferred.push_back(batch);
            outcome = ncclInProgress;
        } else {
            queue(batch, held);
        }
    }
    return outcome;
}

ncclResult_t add(ncclComm_t handle, const char* call, cudaStream_t stream, std::vector<Half> halves) {
    bool alone = depth == 0;
    {
        std::unique_lock<std::mutex> held(lock);
        ncclResult_t code = ncclSuccess;
        auto comm = usable(handle, call, code);
        if (comm) {
            for (const Half& half : halves) {
                if (half.peer < 0 || half.peer >= static_cast<int>(comm->ranks->members.size())) {
                    code = refuse(ncclInvalidArgument, std::string(call) + ": there is no rank " + std::to_string(half.peer));
                } else if (half.bytes && !half.data) {
                    code = refuse(ncclInvalidArgument, std::string(call) + ": no buffer");
                }
            }
            Device& device = *comm->device;
            auto me = std::this_thread::get_id();
            if (device.calls && device.caller != me) {
                code = used_badly(std::string(call) + ": two threads are in groups of one GPU's communicators at once");
            }
            if (!comm->deferred.empty()) {
                code = used_badly(std::string(call) + " before the group before it is under way");
            }
            if (code == ncclSuccess) {
                auto same = [&](const auto& batch) { return batch->comm == comm && batch->stream == stream; };
                std::shared_ptr<Batch> batch;
                for (const auto& other : group) {
                    if (same(other)) batch = other;
                }
                if (!batch) {
                    batch = std::make_shared<Batch>(Batch{comm, stream, {}, 0, false});
                    group.push_back(batch);
                    device.caller = me;
                    device.calls += 1;
                }
                batch->halves.insert(batch->halves.end(), halves.begin(), halves.end());
            }
        }
        if (code != ncclSuccess) {
            group_error = alone ? ncclSuccess : code;
            return code;
        }
    }
    return alone ? end_group() : ncclSuccess;
}

size_t size_of(int type) {
    static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return type >= 0 && type < 12 ? sizes[type] : 0;
}

}  // namespace

extern "C" {

void attn_nccl_sim_fault(int fault, size_t at) {
    planted.fault = static_cast<Fault>(fault);
    planted.at = at;
}

size_t attn_nccl_sim_live() {
    std::unique_lock<std::mutex> held(lock);
    return live();
}

ncclResult_t ncclGetVersion(int* version) {
    *version = VERSION;
    return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t code) {
    switch (code) {
        case ncclSuccess: return "no error";
        case ncclUnhandledCudaError: return "unhandled cuda error";
        case ncclSystemError: return "unhandled system error";
        case ncclInternalError: return "internal error";
        case ncclInvalidArgument: return "invalid argument";
        case ncclInvalidUsage: return "invalid usage";
        case ncclRemoteError: return "remote process exited or there was a network error";
        case ncclInProgress: return "NCCL operation in progress";
    }
    return "unknown result code";
}

const char* ncclGetLastError(ncclComm_t) {
    std::unique_lock<std::mutex> held(lock);
    return last_error();
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    static uint64_t count = 0;
    std::unique_lock<std::mutex> held(lock);
    std::memset(id->internal, 0, sizeof id->internal);
    std::string name = "attn_nccl_sim " + std::to_string(++count);
    std::memcpy(id->internal, name.data(), name.size());
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* out, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
    std::unique_lock<std::mutex> held(lock);
    if (!config || config->magic != MAGIC || config->size < sizeof(ncclConfig_t)) {
        return refuse(ncclInvalidArgument, "the configuration was not initialised");
    }
    if (size < 1 || rank < 0 || rank >= size) return refuse(ncclInvalidArgument, "no such rank");
    std::string name(id.internal, sizeof id.internal);
    auto& ranks = worlds[name];
    if (!ranks) ranks = std::make_shared<Ranks>(size);
    if (static_cast<int>(ranks->members.size()) != size || ranks->members[rank]) {
        return refuse(ncclInvalidUsage, "ranks differ in the size of the communicator, or one came twice");
    }
    auto comm = std::make_shared<Comm>();
    comm->ranks = ranks;
    comm->device = std::make_shared<Device>();
    comm->device->fault = planted.fault;
    comm->device->fault_at = planted.at;
    planted = {};
    comm->rank = rank;
    comm->blocking = config->blocking != 0;
    keep(comm);
    *out = comm.get();
    ranks->members[rank] = comm.get();
    if (comm->device->fault != FAULT_ABSENT) ranks->arrived += 1;
    changed.notify_all();
    if (comm->blocking) {
        changed.wait(held, [&] { return comm->aborted || comm->ranks->complete(); });
        return ncclSuccess;
    }
    return ncclInProgress;
}

ncclResult_t ncclCommSplit(ncclComm_t handle, int color, int key, ncclComm_t* out, ncclConfig_t*) {
    std::unique_lock<std::mutex> held(lock);
    ncclResult_t code = ncclSuccess;
    auto comm = usable(handle, "ncclCommSplit", code);
    if (!comm) return code;
    if (color < -1 || key < 0) return refuse(ncclInvalidArgument, "ncclCommSplit: a color or a key below 0");
    comm->splitting = true;
    uint64_t number = comm->splits++;
    comm->ranks->splits[number].parts.push_back({comm.get(), color, key, out});
    finish_split(*comm->ranks, number);
    if (comm->blocking) {
        changed.wait(held, [&] { return comm->aborted || !comm->splitting; });
        return ncclSuccess;
    }
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* state) {
    std::unique_lock<std::mutex> held(lock);
    auto comm = find(handle);
    if (!comm) return used_badly("ncclCommGetAsyncError of a communicator that was destroyed or aborted");
    *state = comm->error;
    bool going = !comm->ranks->complete() || comm->splitting || (comm->finalized && comm->ended < comm->queued);
    if (comm->error == ncclSuccess && !comm->deferred.empty()) {
        if (--comm->connecting > 0) {
            going = true;
        } else {
            auto batches = std::move(comm->deferred);
            comm->deferred.clear();
            for (const auto& batch : batches) queue(batch, held);
        }
    }
    if (going && comm->error == ncclSuccess) *state = ncclInProgress;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
    std::unique_lock<std::mutex> held(lock);
    ncclResult_t code = ncclSuccess;
    auto comm = usable(handle, "ncclCommFinalize", code);
    if (!comm) return code;
    comm->finalized = true;
    return comm->ended < comm->queued ? ncclInProgress : ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t handle) {
    std::unique_lock<std::mutex> held(lock);
    auto comm = find(handle);
    if (!comm) return used_badly("ncclCommDestroy of a communicator that was destroyed or aborted");
    if (comm->ended < comm->queued) return used_badly("ncclCommDestroy while groups are under way");
    if (comm->registered) return used_badly("ncclCommDestroy while buffers are registered");
    forget(handle);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
    std::unique_lock<std::mutex> held(lock);
    auto comm = find(handle);
    if (!comm) return used_badly("ncclCommAbort of a communicator that was destroyed or aborted");
    comm->aborted = true;
    for (auto& [number, split] : comm->ranks->splits) {
        for (auto& part : split.parts) {
            if (part.comm == comm.get()) part.slot = nullptr;
        }
    }
    // What was never given to its stream has not begun.
    comm->device->outstanding -= comm->deferred.size();
    comm->ended += comm->deferred.size();
    comm->deferred.clear();
    // Others still point to it: while ranks exist, so do their members.
    static std::vector<std::shared_ptr<Comm>> aborted;
    aborted.push_back(comm);
    forget(handle);
    changed.notify_all();
    return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
    depth += 1;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
    if (depth == 0) {
        std::unique_lock<std::mutex> held(lock);
        return used_badly("ncclGroupEnd without ncclGroupStart");
    }
    return --depth == 0 ? end_group() : ncclSuccess;
}

ncclResult_t ncclSend(const void* data, size_t count, int type, int peer, ncclComm_t comm, cudaStream_t stream) {
    char* bytes = static_cast<char*>(const_cast<void*>(data));
    return add(comm, "ncclSend", stream, {{bytes, count * size_of(type), peer, true, false, false}});
}

ncclResult_t ncclRecv(void* data, size_t count, int type, int peer, ncclComm_t comm, cudaStream_t stream) {
    return add(comm, "ncclRecv", stream, {{static_cast<char*>(data), count * size_of(type), peer, false, false, false}});
}

ncclResult_t ncclAlltoAll(const void* from, void* to, size_t count, int type, ncclComm_t handle, cudaStream_t stream) {
    size_t ranks = 0, bytes = count * size_of(type);
    {
        std::unique_lock<std::mutex> held(lock);
        auto comm = find(handle);
        ranks = comm ? comm->ranks->members.size() : 1;
    }
    std::vector<Half> halves;
    for (size_t peer = 0; peer < ranks; ++peer) {
        char* source = static_cast<char*>(const_cast<void*>(from)) + peer * bytes;
        halves.push_back({source, bytes, static_cast<int>(peer), true, true, false});
        halves.push_back({static_cast<char*>(to) + peer * bytes, bytes, static_cast<int>(peer), false, true, false});
    }
    return add(handle, "ncclAlltoAll", stream, std::move(halves));
}

ncclResult_t ncclCommRegister(ncclComm_t handle, void* data, size_t bytes, void** registration) {
    std::unique_lock<std::mutex> held(lock);
    ncclResult_t code = ncclSuccess;
    auto comm = usable(handle, "ncclCommRegister", code);
    if (!comm) return code;
    if (!data || !bytes) return refuse(ncclInvalidArgument, "ncclCommRegister: no buffer");
    comm->registered += 1;
    *registration = data;
    return ncclSuccess;
}

ncclResult_t ncclCommDeregister(ncclComm_t handle, void* registration) {
    std::unique_lock<std::mutex> held(lock);
    auto comm = find(handle);
    if (!comm || !registration || !comm->registered) return used_badly("ncclCommDeregister of nothing");
    comm->registered -= 1;
    return ncclSuccess;
}

ncclResult_t ncclMemAlloc(void** data, size_t bytes) {
    *data = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
    if (!*data) return ncclSystemError;
    // Nobody may rely on what stands in fresh memory.
    std::memset(*data, 0xa5, bytes);
    return ncclSuccess;
}

ncclResult_t ncclMemFree(void* data) {
    std::free(data);
    return ncclSuccess;
}
}
