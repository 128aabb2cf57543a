// What ranks write into each other's memory when they exchange, and in which order.
//
// Every rank owns a mailbox, which all others reach. An exchange is one or several messages; in each, every rank
//
//   announces   writes to each peer's mailbox where the peer's boxes are to go, and releases `announced`: in the order of
//               its stream, so whatever used these places before is over;
//   meets       waits until all its peers have announced, pairs their boxes with its own, and claims them;
//   pushes      copies its boxes into its peers' tensors, which never waits for anybody;
//   tells       releases `written` to each peer, and waits until all of them have: what its stream does next finds the
//               tensors whole.
//
// A message has a number, counted for each pair of ranks in the mailboxes themselves, and every flag holds the number of
// the last message that it was set for. So nothing is reset, no host takes part, and a captured graph can be replayed.
// Numbers may overflow: they are compared for equality alone.
//
// A mailbox holds one message of each peer. The next is announced by a launch behind the one that waited for `written`,
// which the peer released after it had read all that was announced.
//
// **Giving up.** A rank that waits too long, finds boxes unlike its own, or is told to by its host, gives up for good. But a
// peer may be about to write into its tensors, which the host will free. So whoever gives up first revokes what it has
// announced, and whoever is about to write first claims it. Each of the two stores its own word, then loads the
// other's, with a fence for a total order in between: one at least sees the other. A rank that sees itself revoked
// writes nothing and gives up. One that gives up leaves its verdict in every mailbox, where all waits look, and then waits
// for those by whom it was claimed, until they have written or left a verdict themselves. That wait has no limit and needs
// none: a push waits for nobody, and a verdict is left before anything is waited for. If a peer's GPU has failed in
// between, its host says that it is gone.
//
// **No deadlock on one GPU.** Ranks may be streams of one GPU. At any time at most one block of a rank waits: the only
// block of the kernel that meets, then the last block of the kernel that pushes, when its others have ended. So as long as
// there are more multiprocessors than ranks, each of whatever else is queued finds one where nobody waits.
#pragma once
#include <cstdint>

#include "../copy/piece.h"
#include "attn/abi.h"
#include "attn/device.h"

namespace attn {

constexpr int most_ranks = ATTN_EXCHANGE_RANKS;
constexpr int most_boxes = ATTN_EXCHANGE_BOXES;
constexpr int most_pieces = most_ranks * most_boxes;

static_assert(most_ranks <= 16, "a verdict has 16 bits for ranks, and a warp a lane for each");
static_assert(sizeof(AttnExchangeBox) == 64, "a box is written as four vectors of 16 bytes");

// What one peer leaves.
struct alignas(16) Inbox {
    // Where its boxes are to go, and how many there are in this message and in those that follow it.
    AttnExchangeBox box[most_boxes];
    uint32_t boxes;
    // Numbers of messages.
    uint32_t announced, claimed, revoked, written;
    // Why the peer has given up; 0 if it has not.
    uint32_t verdict;
};

struct Mailbox {
    // Written by peers.
    Inbox inbox[most_ranks];
    // The owner's own: messages that are over, by peer; calls; whether the last meeting went well, and what it found to
    // do; blocks that have done their part of that.
    uint32_t messages[most_ranks];
    uint32_t calls;
    uint32_t met;
    uint32_t blocks_done;
    Batch<most_pieces> work;
};

// A reason, and what belongs to it: a bit for each rank that is late, or who sends (and, above, who receives).
ATTN_DEVICE uint32_t make_verdict(AttnExchangeReason reason, uint32_t ranks) { return uint32_t(reason) | ranks << 16; }

}  // namespace attn
