// One rank's view of its group, from one warp: lane r speaks with rank r. How it waits, and how it gives up.
#pragma once
#include "mailbox.h"

namespace attn {

// Polls between two looks at what could end a wait.
constexpr uint32_t polls_between_looks = 8;
constexpr uint32_t pause_nanoseconds = 64;

struct Member {
    const AttnExchangeGroup& group;
    Mailbox& own;
    // What this rank leaves with the lane's peer, and what the peer has left here. Lanes without a peer have their own.
    Inbox& there;
    Inbox& here;
    int lane;
    // Whether this lane's peer takes part in the message, a bit for each that does, and the message's number.
    bool takes_part;
    uint32_t peers;
    uint32_t number;
    uint32_t operation;
};

ATTN_DEVICE Mailbox& mailbox_of(const AttnExchangeGroup& group, uint32_t rank) {
    return *static_cast<Mailbox*>(group.mailbox[rank]);
}

ATTN_DEVICE Member member(const AttnExchangeGroup& group, uint32_t peers, uint32_t operation) {
    const int lane = thread_index();
    const uint32_t rank = uint32_t(lane) < group.size ? uint32_t(lane) : group.me;
    Mailbox& own = mailbox_of(group, group.me);
    // Odd, and so never what a flag holds that was not set yet.
    const uint32_t number = 2 * (own.messages[rank] + group.first) + 1;
    return {group, own,   mailbox_of(group, rank).inbox[group.me], own.inbox[rank], lane, (peers >> lane & 1) != 0,
            peers, number, operation};
}

ATTN_DEVICE int lowest(uint32_t bits) {
    int at = 0;
    while ((bits >> at & 1) == 0) ++at;
    return at;
}

// Whether so long ago. A clock that steps back has not passed anything.
ATTN_DEVICE bool has_passed(uint64_t began, uint64_t limit) {
    const uint64_t now = nanoseconds();
    return now > began && now - began > limit;
}

// The verdict of a rank that has given up, this one included; 0 if none has.
ATTN_DEVICE uint32_t verdict_told(const Member& m) {
    const uint32_t verdict = load_acquire_system(&m.here.verdict);
    const uint32_t told = ballot(verdict != 0);
    return told != 0 ? value_of_lane(verdict, lowest(told)) : 0;
}

// Waits until every peer has set its flag to the message's number. Returns why it did not, or 0.
ATTN_DEVICE uint32_t wait_for(const Member& m, const uint32_t* flag) {
    const uint64_t began = nanoseconds();
    for (uint32_t polls = 1;; ++polls) {
        const uint32_t missing = ballot(m.takes_part && load_acquire_system(flag) != m.number);
        if (missing == 0) break;
        if (polls % polls_between_looks == 0) {
            if (const uint32_t verdict = verdict_told(m)) return verdict;
            // A rank may have set its flag before it left.
            const uint32_t gone = missing & load_acquire_system(&m.group.report->gone);
            const uint32_t lost = ballot((gone >> m.lane & 1) != 0 && load_acquire_system(flag) != m.number);
            if (lost != 0) return make_verdict(ATTN_EXCHANGE_WITHDRAWN, uint32_t(lowest(lost)));
            const bool aborted = m.lane == 0 && load_acquire_system(&m.group.report->abort) != 0;
            if (ballot(aborted) != 0) return make_verdict(ATTN_EXCHANGE_WITHDRAWN, m.group.me);
            const bool late = m.lane == 0 && has_passed(began, m.group.limit_nanoseconds);
            if (ballot(late) != 0) return make_verdict(ATTN_EXCHANGE_LATE, missing);
        }
        pause_for(pause_nanoseconds);
    }
    // What a lane has acquired, all lanes know.
    warp_sync();
    return 0;
}

// Writes the report, by one lane, unless there is one.
ATTN_DEVICE void report(const Member& m, uint32_t verdict, uint32_t phase) {
    AttnExchangeReport& to = *m.group.report;
    if (m.lane != 0 || load_acquire_system(&to.set) != 0) return;
    to.reason = verdict & 0xff;
    to.operation = m.operation;
    to.calls = m.own.calls;
    to.phase = phase;
    to.ranks = verdict >> 16;
    to.sender = verdict >> 16 & 0xff;
    to.receiver = verdict >> 24;
    store_release_system(&to.set, 1);
}

// Takes part no more: this rank will write into nobody's tensors, which it tells everybody before it waits for anything.
// When it returns, nobody writes into its own tensors any more.
ATTN_DEVICE void give_up(const Member& m, uint32_t verdict) {
    // What all lanes have written stands before any lane's word.
    warp_sync();
    if (m.takes_part) store_relaxed_system(&m.there.revoked, m.number);
    store_release_system(&m.there.verdict, verdict);
    fence_system_total();
    bool writes = m.takes_part && load_acquire_system(&m.here.claimed) == m.number;
    while (ballot(writes) != 0) {
        if (writes) {
            writes = load_acquire_system(&m.here.written) != m.number && load_acquire_system(&m.here.verdict) == 0 &&
                     (load_acquire_system(&m.group.report->gone) >> m.lane & 1) == 0;
        }
        pause_for(pause_nanoseconds);
    }
    warp_sync();
}

// Another rank's verdict, for a rank that knows that there is one. 0 if it does not come in time.
ATTN_DEVICE uint32_t wait_for_reason(const Member& m) {
    const uint64_t began = nanoseconds();
    for (;;) {
        const uint32_t verdict = uint32_t(m.lane) != m.group.me ? load_acquire_system(&m.here.verdict) : 0;
        const uint32_t told = ballot(verdict != 0 && uint32_t(m.lane) < m.group.size);
        if (told != 0) return value_of_lane(verdict, lowest(told));
        const bool late = m.lane == 0 && has_passed(began, m.group.limit_nanoseconds);
        if (ballot(late) != 0) return 0;
        pause_for(pause_nanoseconds);
    }
}

// Tells the peers that this rank is about to write what they have announced. False if one of them has revoked it.
ATTN_DEVICE bool claim(const Member& m) {
    if (m.takes_part) store_relaxed_system(&m.there.claimed, m.number);
    fence_system_total();
    return ballot(m.takes_part && load_acquire_system(&m.here.revoked) == m.number) == 0;
}

}  // namespace attn
