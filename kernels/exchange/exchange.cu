// attn_exchange: ranks write their parts of an exchange straight into each other's tensors. mailbox.h says how they agree.
//
// meet_kernel: one block of one warp, lane r for rank r. push_kernel: at most pushing_blocks blocks of copy_threads threads
// on each multiprocessor, which do what copy/move.h says; the last one to end tells the peers. withdraw_kernel: one warp.
// No shared memory.
#include <cstdint>

#include "../copy/move.h"
#include "attn/abi.h"
#include "attn/host.h"
#include "meet.h"

namespace attn {
namespace {

constexpr uint32_t announcing = 0, writing = 1;

// Fewer than the copy kernel's: pieces that were made on the GPU are read into registers.
constexpr int pushing_blocks = 4;

template <int Capacity>
ATTN_KERNEL(32, 1) meet_kernel(ATTN_GRID_CONSTANT const Message<Capacity> message) {
    const Member m = member(message.group, message.peers, message.operation);
    if (m.lane == 0) {
        m.own.calls += message.begins;
        m.own.met = 0;
    }
    warp_sync();
    uint32_t verdict = verdict_told(m);
    if (verdict != 0) {
        report(m, verdict, announcing);
        return;
    }
    announce(message, m);
    verdict = wait_for(m, &m.here.announced);
    if (verdict == 0) verdict = pair_all(message, m);
    if (verdict == 0 && !claim(m)) {
        // Whoever has revoked says why, behind that.
        const uint32_t own = make_verdict(ATTN_EXCHANGE_WITHDRAWN, m.group.me);
        give_up(m, own);
        verdict = wait_for_reason(m);
        report(m, verdict != 0 ? verdict : own, announcing);
        return;
    }
    if (verdict != 0) {
        give_up(m, verdict);
        report(m, verdict, announcing);
        return;
    }
    if (m.lane == 0) m.own.met = 1;
}

struct Push {
    AttnExchangeGroup group;
    uint32_t peers, operation;
};

ATTN_KERNEL(copy_threads, pushing_blocks) push_kernel(ATTN_GRID_CONSTANT const Push push) {
    Mailbox& own = mailbox_of(push.group, push.group.me);
    if (own.met == 0) return;
    move_tiles(own.work);
    block_sync();
    if (thread_index() >= 32) return;
    uint32_t before = 0;
    if (thread_index() == 0) {
        fence_system();
        before = add_to_counter(&own.blocks_done, 1);
    }
    if (value_of_lane(before, 0) + 1 != uint32_t(grid_size())) return;
    // What the counter tells one lane, all lanes know.
    warp_sync();

    const Member m = member(push.group, push.peers, push.operation);
    if (m.lane == 0) own.blocks_done = 0;
    if (m.takes_part) store_release_system(&m.there.written, m.number);
    if (const uint32_t verdict = wait_for(m, &m.here.written)) {
        give_up(m, verdict);
        report(m, verdict, writing);
        return;
    }
    if (m.takes_part) ++own.messages[m.lane];
}

ATTN_KERNEL(32, 1) withdraw_kernel(ATTN_GRID_CONSTANT const AttnExchangeGroup group) {
    // If the present message was announced to anybody, and is not over, peers may be writing.
    const Member m = member(group, (1u << group.size) - 1, 0);
    if (load_acquire_system(&m.own.inbox[group.me].verdict) != 0) return;
    const uint32_t told = verdict_told(m);
    give_up(m, told != 0 ? told : make_verdict(ATTN_EXCHANGE_WITHDRAWN, group.me));
}

// Queues message number `turn` of a call, if boxes are left or it is the first. `more` tells whether it was.
template <int Capacity>
class Turn {
  public:
    Turn(const AttnExchange& call, uint32_t turn) : call_(call) {
        message_.group = call.group;
        message_.operation = call.operation;
        message_.begins = turn == 0;
        message_.peers = turn == 0 ? call.peers : 0;
        const uint32_t skipped = turn * most_boxes;
        for (int rank = 0; rank < most_ranks; ++rank) {
            message_.sends[rank] = left(call.sends[rank], skipped);
            message_.receives[rank] = left(call.receives[rank], skipped);
            if (message_.sends[rank] + message_.receives[rank] > 0) message_.peers |= 1u << rank;
        }
        uint32_t count = 0;
        append(call.incoming, call.receives, skipped, message_.incoming, &count);
        outgoing_ = count;
        append(call.outgoing, call.sends, skipped, message_.outgoing, &count);
    }

    static bool fits(uint32_t boxes) { return boxes <= Capacity; }

    int launch_both(void* stream) const {
        const int met = launch(meet_kernel<Capacity>, LaunchShape{1, 32, 0}, stream, message_);
        if (met != ATTN_OK) return met;
        int blocks = 0;
        if (const int status = multiprocessors(&blocks)) return status;
        const uint64_t tiles = most_tiles();
        blocks *= pushing_blocks;
        if (tiles < uint64_t(blocks)) blocks = int(tiles);
        const Push push = {call_.group, message_.peers, call_.operation};
        return launch(push_kernel, LaunchShape{blocks, copy_threads, 0}, stream, push);
    }

  private:
    static uint32_t left(uint32_t count, uint32_t skipped) { return count > skipped ? count - skipped : 0; }

    void append(const AttnExchangeBox* boxes, const uint32_t (&counts)[most_ranks], uint32_t skipped,
                uint32_t (&begins)[most_ranks + 1], uint32_t* count) {
        for (int rank = 0; rank < most_ranks; ++rank) {
            begins[rank] = *count;
            for (uint32_t i = skipped; i < counts[rank] && i < skipped + most_boxes; ++i) {
                message_.box[(*count)++] = boxes[i];
            }
            boxes += counts[rank];
        }
        begins[most_ranks] = *count;
    }

    // At least one: a block has to tell the peers. If vectors turn out to be shorter, blocks take several.
    uint64_t most_tiles() const {
        uint64_t tiles = 1;
        for (uint32_t i = outgoing_; i < message_.outgoing[most_ranks]; ++i) {
            const AttnExchangeBox& box = message_.box[i];
            uint64_t bytes = box.item;
            for (int axis = 0; axis < 4; ++axis) bytes *= box.extent[axis];
            tiles += bytes / (16 * tile_vectors) + (i > outgoing_);
        }
        return tiles;
    }

    const AttnExchange& call_;
    Message<Capacity> message_ = {};
    uint32_t outgoing_;
};

uint32_t boxes_in(const AttnExchange& call, uint32_t turn) {
    uint32_t boxes = 0;
    for (int rank = 0; rank < most_ranks; ++rank) {
        for (const uint32_t count : {call.sends[rank], call.receives[rank]}) {
            if (count <= turn * most_boxes) continue;
            const uint32_t left = count - turn * most_boxes;
            boxes += left < uint32_t(most_boxes) ? left : most_boxes;
        }
    }
    return boxes;
}

}  // namespace
}  // namespace attn

extern "C" int attn_exchange(const AttnExchange* call, void* stream) {
    using namespace attn;
    if (call->group.size > uint32_t(most_ranks)) return ATTN_UNSUPPORTED;
    for (uint32_t turn = 0;; ++turn) {
        const uint32_t boxes = boxes_in(*call, turn);
        if (turn > 0 && boxes == 0) return ATTN_OK;
        const bool small = Turn<small_message>::fits(boxes);
        const int status = small ? Turn<small_message>(*call, turn).launch_both(stream)
                                 : Turn<large_message>(*call, turn).launch_both(stream);
        if (status != ATTN_OK) return status;
    }
}

extern "C" int attn_exchange_withdraw(const AttnExchangeGroup* group, void* stream) {
    using namespace attn;
    return launch(withdraw_kernel, LaunchShape{1, 32, 0}, stream, *group);
}

extern "C" int attn_exchange_prepare(void) {
    using namespace attn;
    if (const int status = load(meet_kernel<small_message>)) return status;
    if (const int status = load(meet_kernel<large_message>)) return status;
    if (const int status = load(push_kernel)) return status;
    return load(withdraw_kernel);
}

extern "C" size_t attn_exchange_mailbox_bytes(void) { return sizeof(attn::Mailbox); }
