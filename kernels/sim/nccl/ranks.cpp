// What is sent finds what is to be received. See ranks.h.

#include "ranks.h"

#include <algorithm>
#include <chrono>
#include <cstring>

std::mutex lock;
std::condition_variable changed;

namespace {

std::map<Comm*, std::shared_ptr<Comm>> communicators;
std::string told;

void fail(Comm* comm, ncclResult_t code, const std::string& text) {
    if (comm->error == ncclSuccess) comm->error = code;
    refuse(code, text);
}

// Pairs off what waits between two ranks.
void match(Ranks& ranks, int from, int to) {
    auto &sent = ranks.sent[{from, to}], &wanted = ranks.wanted[{from, to}];
    while (!sent.empty() && !wanted.empty()) {
        auto [source, sender] = sent.front();
        auto [target, receiver] = wanted.front();
        if (source->bytes != target->bytes || source->collective != target->collective) {
            // On GPUs this hangs or ruins memory. Here it hangs with an error that says why.
            std::string text = "rank " + std::to_string(from) + " sends " + std::to_string(source->bytes) +
                " bytes to rank " + std::to_string(to) + ", which wants " + std::to_string(target->bytes) +
                (source->collective != target->collective ? ", one of them by ncclAlltoAll" : "");
            fail(sender->comm.get(), ncclInvalidUsage, text);
            fail(receiver->comm.get(), ncclInvalidUsage, text);
            return;
        }
        if (source->bytes) std::memcpy(target->data, source->data, source->bytes);
        source->done = target->done = true;
        sent.pop_front();
        wanted.pop_front();
        changed.notify_all();
    }
}

void withdraw(Ranks& ranks, const Batch* batch) {
    for (auto* waiting : {&ranks.sent, &ranks.wanted}) {
        for (auto& [ends, halves] : *waiting) {
            halves.erase(std::remove_if(halves.begin(), halves.end(),
                                        [&](const auto& half) { return half.second == batch; }),
                         halves.end());
        }
    }
}

}  // namespace

void carry_out(const std::shared_ptr<Batch>& batch) {
    // Long enough for whoever forgot to wait for it to read what is not there yet.
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    std::unique_lock<std::mutex> held(lock);
    Comm& comm = *batch->comm;
    Ranks& ranks = *comm.ranks;
    changed.wait(held, [&] { return comm.aborted || comm.ended == batch->number; });
    if (!comm.aborted && batch->hangs) {
        changed.wait(held, [&] { return comm.aborted; });
    }
    if (!comm.aborted) {
        for (Half& half : batch->halves) {
            auto ends = half.sends ? std::pair(comm.rank, half.peer) : std::pair(half.peer, comm.rank);
            (half.sends ? ranks.sent : ranks.wanted)[ends].emplace_back(&half, batch.get());
            match(ranks, ends.first, ends.second);
        }
        changed.wait(held, [&] {
            return comm.aborted || std::all_of(batch->halves.begin(), batch->halves.end(),
                                               [](const Half& half) { return half.done; });
        });
        withdraw(ranks, batch.get());
    }
    comm.ended += 1;
    comm.device->outstanding -= 1;
    changed.notify_all();
}

void queue(const std::shared_ptr<Batch>& batch, std::unique_lock<std::mutex>& held) {
    auto work = [](void* argument) {
        std::unique_ptr<std::shared_ptr<Batch>> batch(static_cast<std::shared_ptr<Batch>*>(argument));
        carry_out(*batch);
    };
    auto* argument = new std::shared_ptr<Batch>(batch);
    held.unlock();
    if (batch->stream) {
        batch->stream->enqueue(batch->stream, work, argument);
    } else {
        work(argument);
    }
    held.lock();
}

void finish_split(Ranks& ranks, uint64_t number) {
    auto& parts = ranks.splits[number].parts;
    if (parts.size() < ranks.members.size()) return;
    std::map<int, std::vector<Ranks::Split::Part>> colors;
    for (const auto& part : parts) colors[part.color].push_back(part);
    for (auto& [color, members] : colors) {
        std::sort(members.begin(), members.end(), [](const auto& one, const auto& other) {
            return std::pair(one.key, one.comm->rank) < std::pair(other.key, other.comm->rank);
        });
        auto child_ranks = std::make_shared<Ranks>(static_cast<int>(members.size()));
        for (size_t rank = 0; rank < members.size(); ++rank) {
            const auto& part = members[rank];
            part.comm->splitting = false;
            if (!part.slot) continue;
            if (color < 0) {
                *part.slot = nullptr;
                continue;
            }
            auto child = std::make_shared<Comm>();
            child->ranks = child_ranks;
            child->device = part.comm->device;
            child->rank = static_cast<int>(rank);
            child->blocking = part.comm->blocking;
            child_ranks->members[rank] = child.get();
            child_ranks->arrived += 1;
            keep(child);
            *part.slot = child.get();
        }
    }
    ranks.splits.erase(number);
    changed.notify_all();
}

ncclResult_t refuse(ncclResult_t code, const std::string& text) {
    told = text;
    return code;
}

const char* last_error() {
    // Kept for the thread: another thread's error may replace the text while it is read.
    static thread_local std::string copy;
    copy = told;
    return copy.c_str();
}

std::shared_ptr<Comm> find(Comm* comm) {
    auto found = communicators.find(comm);
    return found == communicators.end() ? nullptr : found->second;
}

void keep(const std::shared_ptr<Comm>& comm) { communicators[comm.get()] = comm; }

void forget(Comm* comm) { communicators.erase(comm); }

size_t live() { return communicators.size(); }
