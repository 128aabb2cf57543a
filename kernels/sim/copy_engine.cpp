#include "copy_engine.h"

#include <algorithm>
#include <cstring>

#include "cta.h"
#include "fault.h"

namespace attn::sim {

namespace {

int element_bytes(const TensorMap& map) { return static_cast<int>(map.stride[0]); }

uint32_t box_bytes(const TensorMap& map) {
    return map.box[0] * map.box[1] * map.box[2] * map.box[3] * map.box[4] * element_bytes(map);
}

// Calls `chunk(address, global, skip, bytes)` for each 16 bytes of the box: where they lie in shared memory, where the
// first of them that is inside the tensor lies in global memory, how many before it are not, and how many are.
template <class Chunk>
void for_each_chunk(const TensorMap& map, const int (&corner)[5], SharedAddress address, Chunk chunk) {
    uint32_t box[5];
    const int width = element_bytes(map), in_chunk = 16 / width;
    for (box[4] = 0; box[4] < map.box[4]; ++box[4]) {
        for (box[3] = 0; box[3] < map.box[3]; ++box[3]) {
            for (box[2] = 0; box[2] < map.box[2]; ++box[2]) {
                for (box[1] = 0; box[1] < map.box[1]; ++box[1]) {
                    bool inside = true;
                    int64_t row = 0;
                    for (int axis = 1; axis < 5; ++axis) {
                        const int64_t at = int64_t(corner[axis]) + box[axis];
                        inside = inside && at >= 0 && at < int64_t(map.extent[axis]);
                        row += at * int64_t(map.stride[axis]);
                    }
                    for (uint32_t i = 0; i < map.box[0]; i += in_chunk, address += 16) {
                        const int64_t at = int64_t(corner[0]) + i;
                        const int64_t first = std::clamp<int64_t>(-at, 0, in_chunk);
                        const int64_t end = std::clamp<int64_t>(int64_t(map.extent[0]) - at, first, in_chunk);
                        const bool some = inside && first < end;
                        chunk(swizzle(address, map.swizzle_bytes),
                              some ? map.base + row + (at + first) * width : nullptr, static_cast<int>(first) * width,
                              some ? static_cast<int>(end - first) * width : 0);
                    }
                }
            }
        }
    }
}

}  // namespace

void CopyEngine::reset() {
    loads_.clear();
    next_due_ = UINT64_MAX;
    bulks_.resize(cta_.threads);
    for (Bulk& bulk : bulks_) {
        bulk.stores.clear();
        bulk.groups.clear();
        bulk.read_groups = 0;
    }
}

void CopyEngine::check(const TensorMap& map, SharedAddress address) const {
    if (map.magic != TensorMap::made) {
        fault("the tensor map was not made by encode_tensor_map");
    }
    cta_.memory.check(address, box_bytes(map), 128);
}

void CopyEngine::load(SharedAddress destination, const TensorMap& map, SharedAddress barrier, const int (&corner)[5]) {
    check(map, destination);
    Random& random = cta_.scheduler.random();
    Load load;
    load.due = cta_.scheduler.now() + (random.below(8) == 0 ? random.below(20000) : random.below(400));
    load.thread = cta_.scheduler.current();
    load.destination = destination;
    load.map = map;
    std::copy(corner, corner + 5, load.corner);
    load.slot = cta_.barriers.begin_load(barrier);
    load.phase = cta_.barriers.phase(load.slot);
    const uint32_t bytes = box_bytes(map);
    cta_.hazards.fill(destination, bytes, load.slot, load.phase + 1);
    std::memset(cta_.memory.at(destination), 0xff, bytes);
    loads_.push_back(load);
    next_due_ = std::min(next_due_, load.due);
}

void CopyEngine::deliver(const Load& load) {
    for_each_chunk(load.map, load.corner, load.destination,
                   [&](SharedAddress address, const uint8_t* global, int skip, int bytes) {
                       uint8_t* to = cta_.memory.at(address);
                       std::memset(to, 0, 16);
                       if (bytes > 0) std::memcpy(to + skip, global, bytes);
                   });
    cta_.barriers.complete_load(load.slot, load.phase, static_cast<int>(box_bytes(load.map)), load.thread);
}

void CopyEngine::deliver_due(uint64_t now) {
    while (next_due_ <= now) {
        deliver_next();
    }
}

bool CopyEngine::deliver_next() {
    if (loads_.empty()) return false;
    const auto sooner = [](const Load& a, const Load& b) { return a.due < b.due; };
    const auto next = std::min_element(loads_.begin(), loads_.end(), sooner);
    const Load load = *next;
    *next = loads_.back();
    loads_.pop_back();
    next_due_ = loads_.empty() ? UINT64_MAX : std::min_element(loads_.begin(), loads_.end(), sooner)->due;
    deliver(load);
    return true;
}

void CopyEngine::store(const TensorMap& map, SharedAddress source, const int (&corner)[5]) {
    check(map, source);
    Store store;
    store.source = source;
    store.map = map;
    std::copy(corner, corner + 5, store.corner);
    store.number = cta_.hazards.drain(source, box_bytes(map));
    bulks_[cta_.scheduler.current()].stores.push_back(std::move(store));
}

void CopyEngine::commit() {
    Bulk& bulk = bulks_[cta_.scheduler.current()];
    bulk.groups.push_back(bulk.stores.size());
}

void CopyEngine::wait_read(int pending) {
    Bulk& bulk = bulks_[cta_.scheduler.current()];
    for (; bulk.read_groups + pending < bulk.groups.size(); ++bulk.read_groups) {
        const size_t begin = bulk.read_groups == 0 ? 0 : bulk.groups[bulk.read_groups - 1];
        for (size_t i = begin; i < bulk.groups[bulk.read_groups]; ++i) {
            read(bulk.stores[i]);
        }
    }
}

void CopyEngine::wait_written(int pending) {
    wait_read(pending);
    Bulk& bulk = bulks_[cta_.scheduler.current()];
    const size_t groups = bulk.groups.size() > size_t(pending) ? bulk.groups.size() - pending : 0;
    for (size_t i = 0; groups > 0 && i < bulk.groups[groups - 1]; ++i) {
        write(bulk.stores[i]);
    }
}

void CopyEngine::read(Store& store) {
    store.bytes.resize(box_bytes(store.map));
    size_t at = 0;
    for_each_chunk(store.map, store.corner, store.source, [&](SharedAddress address, uint8_t*, int, int) {
        std::memcpy(store.bytes.data() + at, cta_.memory.at(address), 16);
        at += 16;
    });
    store.read = true;
    cta_.hazards.drained(store.number);
    if (cta_.scheduler.random().below(2) == 0) write(store);
}

void CopyEngine::write(Store& store) {
    if (store.written) return;
    const uint8_t* from = store.bytes.data();
    for_each_chunk(store.map, store.corner, store.source, [&](SharedAddress, uint8_t* global, int skip, int bytes) {
        if (bytes > 0) std::memcpy(global, from + skip, bytes);
        from += 16;
    });
    store.written = true;
    store.bytes = std::vector<uint8_t>();
}

void CopyEngine::thread_ended(int thread) const {
    const Bulk& bulk = bulks_[thread];
    const size_t committed = bulk.groups.empty() ? 0 : bulk.groups.back();
    if (committed < bulk.stores.size()) {
        fault("the thread ends with %zu tma_stores that it has not committed", bulk.stores.size() - committed);
    }
    const size_t read = bulk.read_groups == 0 ? 0 : bulk.groups[bulk.read_groups - 1];
    if (read < bulk.stores.size()) {
        fault(
            "the thread ends with %zu tma_stores whose shared memory it has not waited to be read "
            "(tma_store_wait_read)",
            bulk.stores.size() - read);
    }
}

void CopyEngine::ended() {
    for (Bulk& bulk : bulks_) {
        for (Store& store : bulk.stores) {
            write(store);
        }
    }
}

}  // namespace attn::sim
