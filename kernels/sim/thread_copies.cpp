#include "thread_copies.h"

#include <cstring>

#include "cta.h"
#include "fault.h"

namespace attn::sim {

void ThreadCopies::reset() {
    threads_.resize(cta_.threads);
    for (Thread& thread : threads_) {
        thread.copies.clear();
        thread.groups.clear();
    }
}

void ThreadCopies::begin(SharedAddress to, const void* from, int bytes) {
    cta_.memory.check(to, 16, 16);
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
        fault("global address %p is not aligned to 16 bytes", from);
    }
    if (bytes < 0 || bytes > 16) {
        fault("a copy reads 0 to 16 bytes, not %d", bytes);
    }
    cta_.hazards.copy_begins(to);
    std::memset(cta_.memory.at(to), 0xff, 16);
    threads_[cta_.scheduler.current()].copies.push_back({to, from, bytes});
}

void ThreadCopies::commit() {
    Thread& thread = threads_[cta_.scheduler.current()];
    thread.groups.push_back(thread.copies.size());
}

void ThreadCopies::wait(int pending) {
    Thread& thread = threads_[cta_.scheduler.current()];
    if (thread.groups.size() <= static_cast<size_t>(pending)) return;
    const auto unfinished = thread.groups.end() - pending;
    const size_t arrived = *(unfinished - 1);
    for (size_t i = 0; i < arrived; ++i) {
        const Copy& copy = thread.copies[i];
        uint8_t* to = cta_.memory.at(copy.to);
        std::memset(to, 0, 16);
        if (copy.bytes > 0) std::memcpy(to, copy.from, copy.bytes);
        cta_.hazards.copy_arrives(copy.to);
    }
    thread.groups.erase(thread.groups.begin(), unfinished);
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<ptrdiff_t>(arrived));
    for (size_t& end : thread.groups) {
        end -= arrived;
    }
}

void ThreadCopies::thread_ended(int index) const {
    const Thread& thread = threads_[index];
    const size_t committed = thread.groups.empty() ? 0 : thread.groups.back();
    if (committed < thread.copies.size()) {
        fault("the thread ends with %zu copies that it has not committed", thread.copies.size() - committed);
    }
    if (!thread.copies.empty()) {
        fault("the thread ends with %zu copies that it has not waited for", thread.copies.size());
    }
}

}  // namespace attn::sim
