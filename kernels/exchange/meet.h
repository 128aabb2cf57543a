// The first kernel of a message: one warp announces where boxes are to go, waits for the peers to do so, and makes the work
// of the second.
#pragma once
#include "../copy/box.h"
#include "member.h"

namespace attn {

// One message, as the host hands it over. Boxes stand peer by peer, first those that come, then those that go:
// `incoming[r]` and `outgoing[r]` are where those of rank r begin.
template <int Capacity>
struct Message {
    AttnExchangeGroup group;
    uint32_t peers, operation;
    // Whether it is the first of its call.
    uint32_t begins;
    uint32_t incoming[most_ranks + 1], outgoing[most_ranks + 1];
    // Boxes in this message and in those that follow it.
    uint32_t sends[most_ranks], receives[most_ranks];
    AttnExchangeBox box[Capacity];
};

// Most messages have few boxes, and need not pass more.
constexpr int small_message = 48;
constexpr int large_message = 2 * most_pieces;
static_assert(sizeof(Message<large_message>) <= 32764, "a launch takes at most 32764 bytes of parameters");

// Whose a box is.
ATTN_DEVICE uint32_t peer_of(const uint32_t (&begins)[most_ranks + 1], uint32_t box) {
    uint32_t peer = 0;
    while (begins[peer + 1] <= box) ++peer;
    return peer;
}

template <int Capacity>
ATTN_DEVICE void announce(const Message<Capacity>& message, const Member& m) {
    constexpr uint32_t vectors = sizeof(AttnExchangeBox) / 16;
    const uint32_t count = message.incoming[most_ranks] * vectors;
    for (uint32_t i = m.lane; i < count; i += 32) {
        const uint32_t box = i / vectors, peer = peer_of(message.incoming, box);
        const uint32_t* words = reinterpret_cast<const uint32_t*>(&message.box[box]) + i % vectors * 4;
        const uint32_t vector[4] = {words[0], words[1], words[2], words[3]};
        Inbox& inbox = mailbox_of(m.group, peer).inbox[m.group.me];
        store_global_16(reinterpret_cast<uint32_t*>(&inbox.box[box - message.incoming[peer]]) + i % vectors * 4, vector);
    }
    if (m.takes_part) store_global(&m.there.boxes, message.receives[m.lane]);
    // Each lane's flag stands for what all lanes have written.
    warp_sync();
    if (m.takes_part) store_release_system(&m.there.announced, m.number);
}

ATTN_DEVICE bool is_like(const AttnExchangeBox& sent, const AttnExchangeBox& expected) {
    return sent.extent[0] == expected.extent[0] && sent.extent[1] == expected.extent[1] &&
           sent.extent[2] == expected.extent[2] && sent.extent[3] == expected.extent[3] && sent.item == expected.item;
}

// The copy of a box to one that is like it.
ATTN_DEVICE Piece pair(const AttnExchangeBox& from, const AttnExchangeBox& to) {
    AttnCopy copy;
    copy.source = from.base;
    copy.destination = to.base;
    copy.item = from.item;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        copy.extent[i] = from.extent[i];
        copy.source_strides[i] = from.strides[i];
        copy.destination_strides[i] = to.strides[i];
    }
    CopyBox box = simplify(copy);
    // Items are aligned to their size, so a run longer than a vector was an axis, and has left one free.
    count_in_vectors(box, vector_bytes(box));
    return piece_of(box);
}

// A difference between what this rank sends and what a peer expects, for the report: of the box `sent`, or, without one,
// of their numbers. By one lane.
ATTN_DEVICE void describe(const Member& m, const AttnExchangeBox* sent, const AttnExchangeBox* expected, uint32_t box,
                          uint32_t sends, uint32_t expects) {
    AttnExchangeReport& to = *m.group.report;
    if (load_acquire_system(&to.set) != 0) return;
    to.box = box;
    to.sent = sends;
    to.expected = expects;
    if (sent == nullptr) return;
    for (int i = 0; i < 4; ++i) {
        to.sent_extent[i] = sent->extent[i];
        to.expected_extent[i] = expected->extent[i];
    }
    to.sent_item = sent->item;
    to.expected_item = expected->item;
}

// Pairs boxes that go with those that were announced, and writes down the copies. Returns a verdict, or 0.
template <int Capacity>
ATTN_DEVICE uint32_t pair_all(const Message<Capacity>& message, const Member& m) {
    const bool miscounted = m.takes_part && m.here.boxes != message.sends[m.lane];
    if (const uint32_t unlike = ballot(miscounted)) {
        const int peer = lowest(unlike);
        if (m.lane == peer) describe(m, nullptr, nullptr, ~0u, message.sends[peer], m.here.boxes);
        warp_sync();
        return make_verdict(ATTN_EXCHANGE_UNLIKE, m.group.me | uint32_t(peer) << 8);
    }

    Batch<most_pieces>& work = m.own.work;
    const uint32_t begin = message.outgoing[0], count = message.outgoing[most_ranks] - begin;
    uint32_t tiles_before = 0;
    for (uint32_t first = 0; first < count; first += 32) {
        const uint32_t index = first + m.lane;
        bool unlike = false;
        uint32_t tiles = 0, peer = 0;
        if (index < count) {
            const AttnExchangeBox& sent = message.box[begin + index];
            peer = peer_of(message.outgoing, begin + index);
            const uint32_t box = begin + index - message.outgoing[peer];
            const AttnExchangeBox& expected = m.own.inbox[peer].box[box];
            unlike = !is_like(sent, expected);
            if (!unlike) {
                work.piece[index] = pair(sent, expected);
                tiles = tiles_of(work.piece[index]);
            }
        }
        if (const uint32_t who = ballot(unlike)) {
            const int lane = lowest(who);
            if (m.lane == lane) {
                const uint32_t box = begin + index - message.outgoing[peer];
                describe(m, &message.box[begin + index], &m.own.inbox[peer].box[box], box, 0, 0);
            }
            warp_sync();
            return make_verdict(ATTN_EXCHANGE_UNLIKE, m.group.me | value_of_lane(peer, lane) << 8);
        }
        // Adds up the tiles of the lanes up to each.
        for (int step = 1; step < 32; step *= 2) {
            const uint32_t below = value_of_lane(tiles, m.lane >= step ? m.lane - step : m.lane);
            if (m.lane >= step) tiles += below;
        }
        if (index < count) work.first_tile[index + 1] = tiles_before + tiles;
        tiles_before += value_of_lane(tiles, 31);
    }
    if (m.lane == 0) {
        work.first_tile[0] = 0;
        work.count = count;
    }
    return 0;
}

}  // namespace attn
