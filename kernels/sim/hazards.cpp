#include "hazards.h"

#include <algorithm>

#include "cta.h"
#include "fault.h"

namespace attn::sim {

void Hazards::reset() {
    granules_.assign((cta_.memory.bytes() + 15) / 16, Granule());
    operands_.resize(cta_.warpgroups);
    for (auto& marks : operands_) {
        marks.assign(granules_.size(), 0);
    }
    reads_.resize(cta_.threads / 32);
    for (auto& reads : reads_) {
        reads.clear();
    }
    known_.assign(static_cast<size_t>(cta_.threads / 32) * cta_.threads, 0);
    stores_.clear();
    unfenced_.resize(cta_.threads);
    for (auto& list : unfenced_) {
        list.clear();
    }
    places_.assign(cta_.clocks.size(), -1);
    touched_.clear();
}

size_t Hazards::index(SharedAddress address) const { return (address - cta_.memory.base()) / 16; }

SharedAddress Hazards::address_of(size_t index) const {
    return cta_.memory.base() + static_cast<SharedAddress>(index * 16);
}

void Hazards::before_overwrite(size_t index, const char* action) {
    const Clocks& clocks = cta_.clocks;
    const int me = cta_.scheduler.current();
    const Granule& granule = granules_[index];
    const SharedAddress where = address_of(index);
    if (granule.barriers != 0) {
        fault("%s overwrites a barrier at %s", action, name(where).text);
    }
    for (int warpgroup = 0; warpgroup < cta_.warpgroups; ++warpgroup) {
        const int32_t wgmmas = operands_[warpgroup][index];
        if (!clocks.knows(me, clocks.finished_wgmmas(warpgroup), wgmmas)) {
            fault(
                "WAR race: %s overwrites %s, an operand of wgmma %d of warpgroup %d, which this thread does not know "
                "to be finished",
                action, name(where).text, wgmmas - 1, warpgroup);
        }
    }
    if (granule.store >= 0) {
        const Store& store = stores_[granule.store];
        if (!clocks.knows(me, store.thread, store.drained_at)) {
            fault(
                "WAR race: %s overwrites %s, the source of a tma_store by thread %d that this thread does not know "
                "to have been read (tma_store_wait_read, then a barrier)",
                action, name(where).text, store.thread);
        }
    }
    for (const auto& reads : reads_) {
        if (reads.empty()) continue;
        const Read& read = reads[index];
        if (read.thread >= 0 && read.thread != me && !clocks.knows(me, read.thread, read.at)) {
            fault("WAR race: %s overwrites %s, which thread %d has read with no barrier in between", action,
                  name(where).text, read.thread);
        }
    }
    if (granule.written == Written::Filling) {
        fault("%s overwrites %s, which a copy of thread %d fills that it has not waited for", action, name(where).text,
              granule.writer);
    }
}

// An ordinary write: by a store, or a copy that is a thread's own.
void Hazards::before_write(size_t at, const char* action) {
    const Clocks& clocks = cta_.clocks;
    const int me = cta_.scheduler.current();
    before_overwrite(at, action);
    const Granule& granule = granules_[at];
    const SharedAddress where = address_of(at);
    if (granule.written == Written::Copied &&
        !clocks.knows(me, clocks.completed_phases(granule.writer), granule.written_at)) {
        fault("%s overwrites %s, which a tma_load fills that this thread has not waited for", action, name(where).text);
    }
    if (granule.written == Written::Stored && granule.writer != me &&
        !clocks.knows(me, granule.writer, granule.written_at)) {
        fault("%s overwrites %s, which thread %d has stored to with no barrier in between", action, name(where).text,
              granule.writer);
    }
}

void Hazards::written(size_t at) {
    const int me = cta_.scheduler.current();
    Granule& granule = granules_[at];
    granule.written = Written::Stored;
    granule.writer = static_cast<int16_t>(me);
    granule.written_at = cta_.clocks.now(me);
    granule.fenced_at = never;
    unfenced_[me].push_back(static_cast<uint32_t>(at));
}

void Hazards::store(SharedAddress address) {
    const size_t at = index(address);
    before_write(at, "an ordinary store");
    granules_[at].store = -1;
    written(at);
}

void Hazards::copy_begins(SharedAddress address) {
    const size_t at = index(address);
    before_write(at, "a copy");
    Granule& granule = granules_[at];
    granule.written = Written::Filling;
    granule.writer = static_cast<int16_t>(cta_.scheduler.current());
    granule.store = -1;
}

void Hazards::copy_arrives(SharedAddress address) { written(index(address)); }

void Hazards::load(SharedAddress address) {
    const int me = cta_.scheduler.current();
    may_read(me, cta_.scheduler.primitive(), address);
    read_by(me, index(address));
}

void Hazards::matrix_row(int lane, SharedAddress address) { read_by(lane, index(address)); }

void Hazards::read_by(int thread, size_t at) {
    std::vector<Read>& reads = reads_[thread / 32];
    if (reads.empty()) reads.resize(granules_.size());
    reads[at] = {static_cast<int16_t>(thread), cta_.clocks.now(thread)};
}

bool Hazards::warp_may_read(int warp, SharedAddress address) {
    const Granule& granule = granules_[index(address)];
    if (granule.written != Written::Stored) return granule.written == Written::Never;
    int32_t& known = known_[static_cast<size_t>(warp) * cta_.threads + granule.writer];
    if (known >= granule.written_at) return true;
    known = never;
    for (int lane = 32 * warp; lane < 32 * warp + 32; ++lane) {
        known = std::min(known, cta_.clocks.of(lane, granule.writer));
    }
    return known >= granule.written_at;
}

void Hazards::may_read(int thread, const char* primitive, SharedAddress address) const {
    const Clocks& clocks = cta_.clocks;
    const Granule& granule = granules_[index(address)];
    if (granule.written == Written::Copied &&
        !clocks.knows(thread, clocks.completed_phases(granule.writer), granule.written_at)) {
        fault_of(thread, primitive,
                 "reads %s before the barrier: a tma_load fills it that this thread has not waited for",
                 name(address).text);
    }
    if (granule.written == Written::Filling) {
        fault_of(thread, primitive, "reads %s, which a copy of thread %d fills that it has not waited for",
                 name(address).text, granule.writer);
    }
    if (granule.written == Written::Stored && granule.writer != thread &&
        !clocks.knows(thread, granule.writer, granule.written_at)) {
        fault_of(thread, primitive, "reads %s, which thread %d has stored to with no barrier in between",
                 name(address).text, granule.writer);
    }
}

void Hazards::fence() {
    const int me = cta_.scheduler.current();
    for (const uint32_t at : unfenced_[me]) {
        Granule& granule = granules_[at];
        if (granule.written == Written::Stored && granule.writer == me && granule.fenced_at == never) {
            granule.fenced_at = cta_.clocks.now(me);
        }
    }
    unfenced_[me].clear();
}

void Hazards::place_barrier(SharedAddress address) {
    granules_[index(address)].barriers |= (address - cta_.memory.base()) % 16 < 8 ? 1 : 2;
}

void Hazards::forbid_barrier(SharedAddress address, uint32_t bytes) const {
    for (SharedAddress at = address; at < address + bytes; at += 8) {
        if (granules_[index(at)].barriers & ((at - cta_.memory.base()) % 16 < 8 ? 1 : 2)) {
            fault("an ordinary store overwrites a barrier at %s", name(at).text);
        }
    }
}

void Hazards::fill(SharedAddress address, uint32_t bytes, int slot, int32_t phase) {
    const Clocks& clocks = cta_.clocks;
    const int me = cta_.scheduler.current();
    const size_t end = index(address + bytes);
    for (size_t at = index(address); at < end; ++at) {
        before_overwrite(at, "tma_load");
        Granule& granule = granules_[at];
        if (granule.written == Written::Copied &&
            !clocks.knows(me, clocks.completed_phases(granule.writer), granule.written_at)) {
            fault(
                "tma_load overwrites %s, which an earlier tma_load fills that nobody known to this thread has "
                "waited for",
                name(address_of(at)).text);
        }
        if (granule.written == Written::Stored && !clocks.knows(me, granule.writer, granule.fenced_at)) {
            fault(
                "tma_load overwrites %s, which thread %d has stored to with no fence_proxy_async and barrier in "
                "between",
                name(address_of(at)).text, granule.writer);
        }
        granule.written = Written::Copied;
        granule.writer = static_cast<int16_t>(slot);
        granule.written_at = phase;
        granule.store = -1;
    }
}

int Hazards::drain(SharedAddress address, uint32_t bytes) {
    const int store = static_cast<int>(stores_.size());
    stores_.push_back({cta_.scheduler.current(), never});
    Needs needs;
    const size_t end = index(address + bytes);
    for (size_t at = index(address); at < end; ++at) {
        need_granule(at, needs);
        granules_[at].store = store;
    }
    finish_needs();
    require(needs);
    return store;
}

void Hazards::drained(int store) { stores_[store].drained_at = cta_.clocks.now(stores_[store].thread); }

void Hazards::operand(int warpgroup, int32_t wgmma, SharedAddress address, Needs& needs) {
    const size_t at = index(address);
    need_granule(at, needs);
    operands_[warpgroup][at] = wgmma + 1;
}

void Hazards::need_granule(size_t at, Needs& needs) {
    const Granule& granule = granules_[at];
    const SharedAddress where = address_of(at);
    if (granule.written == Written::Filling) {
        fault("reads %s, which a copy of thread %d fills that it has not waited for", name(where).text, granule.writer);
    } else if (granule.written == Written::Copied) {
        need(cta_.clocks.completed_phases(granule.writer), granule.written_at, where, needs);
    } else if (granule.written == Written::Stored) {
        if (granule.fenced_at == never) {
            fault("reads %s, which thread %d has stored to with no fence_proxy_async since", name(where).text,
                  granule.writer);
        }
        need(granule.writer, granule.fenced_at, where, needs);
    }
}

void Hazards::need(int component, int32_t value, SharedAddress where, Needs& needs) {
    int& place = places_[component];
    if (place < 0) {
        place = static_cast<int>(needs.size());
        touched_.push_back(component);
        needs.push_back({component, value, where});
    } else if (needs[place].value < value) {
        needs[place] = {component, value, where};
    }
}

void Hazards::finish_needs() {
    for (const int component : touched_) {
        places_[component] = -1;
    }
    touched_.clear();
}

void Hazards::require(const Needs& needs) const {
    const Clocks& clocks = cta_.clocks;
    const int me = cta_.scheduler.current();
    for (const Need& need : needs) {
        if (clocks.knows(me, need.component, need.value)) continue;
        if (clocks.is_barrier(need.component)) {
            fault("reads %s before the barrier: a tma_load fills it whose barrier at %s this thread has not waited for",
                  name(need.where).text, name(cta_.barriers.address_of(clocks.slot_of(need.component))).text);
        }
        fault("reads %s, which thread %d has stored to and fenced, with no barrier in between", name(need.where).text,
              need.component);
    }
}

}  // namespace attn::sim
