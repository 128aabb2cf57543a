#include "tensor_cores.h"

#include <algorithm>
#include <cstring>

#include "cta.h"
#include "descriptor.h"
#include "elements.h"
#include "fault.h"
#include "tile_product.h"

namespace attn::sim {

namespace {

// Signalling: arithmetic turns it into another NaN.
constexpr uint32_t in_flight = 0x7fa0dead;

struct InFlight {
    uint32_t pattern[128];

    InFlight() { std::fill(std::begin(pattern), std::end(pattern), in_flight); }
};

const InFlight& poison() {
    static const InFlight all;
    return all;
}

// Where the accumulators of a thread of the warpgroup lie in the tile: calls each(index of a pair, row, column).
template <class Each>
void for_each_pair(int thread, int n, Each each) {
    const int row = thread / 32 * 16 + thread % 32 / 4;
    const int column = thread % 4 * 2;
    for (int i = 0; i < n / 8; ++i) {
        each(2 * i, row, 8 * i + column);
        each(2 * i + 1, row + 8, 8 * i + column);
    }
}

}  // namespace

void TensorCores::reset() {
    for (Warpgroup& warpgroup : warpgroups_) {
        for (auto& operation : warpgroup.operations) {
            free_operations_.push_back(std::move(operation));
        }
    }
    warpgroups_.clear();
    warpgroups_.resize(cta_.warpgroups);
    threads_.resize(cta_.threads);
    for (Thread& thread : threads_) {
        thread.fenced = false;
        thread.issued = thread.waited = 0;
        thread.groups.clear();
        thread.holdings.clear();
    }
    free_tiles_.clear();
    for (auto& tile : tiles_) {
        free_tiles_.push_back(tile.get());
    }
}

void TensorCores::fence() { threads_[cta_.scheduler.current()].fenced = true; }

void TensorCores::issue(const WgmmaInstruction& instruction, void* accumulators, const uint32_t* a_registers) {
    const int me = cta_.scheduler.current();
    if (me / 128 >= cta_.warpgroups) {
        fault("the warpgroup of this thread is not complete");
    }
    Thread& thread = threads_[me];
    Warpgroup& warpgroup = warpgroups_[me / 128];
    if (!thread.fenced) {
        fault("a wgmma without a wgmma_fence since this thread's last wgmma_wait");
    }
    const int32_t number = thread.issued++;
    const bool first = static_cast<size_t>(number - warpgroup.executed) == warpgroup.operations.size();
    Operation& operation =
        first ? open(warpgroup, number, instruction) : *warpgroup.operations[number - warpgroup.executed];
    if (!(operation.instruction == instruction)) {
        fault("the operands of wgmma %d differ inside the warpgroup", number);
    }
    cta_.hazards.require(operation.needs);
    hold(operation, thread, first, static_cast<float*>(accumulators));
    if (a_registers != nullptr) std::memcpy(operation.a_registers[me % 128], a_registers, 16);
    if (++operation.joined == 128) {
        warpgroup.issued = number + 1;
        for (const int waiting : warpgroup.waiting) {
            cta_.scheduler.wake(waiting);
        }
        warpgroup.waiting.clear();
    }
}

TensorCores::Operation& TensorCores::open(Warpgroup& warpgroup, int number, const WgmmaInstruction& instruction) {
    if (free_operations_.empty()) free_operations_.push_back(std::make_unique<Operation>());
    std::unique_ptr<Operation> operation = std::move(free_operations_.back());
    free_operations_.pop_back();
    operation->instruction = instruction;
    operation->tile = nullptr;
    operation->joined = 0;
    operation->needs.clear();
    operation->a_chunks.clear();
    const int index = cta_.scheduler.current() / 128;
    if (!instruction.a_from_registers) {
        operand_chunks(cta_, "operand A", instruction.a, false, 64, operation->a_chunks);
    }
    operand_chunks(cta_, "operand B", instruction.b, instruction.b_mn_major, instruction.n, operation->b_chunks);
    for (const SharedAddress chunk : operation->a_chunks) {
        cta_.hazards.operand(index, number, chunk, operation->needs);
    }
    for (const SharedAddress chunk : operation->b_chunks) {
        cta_.hazards.operand(index, number, chunk, operation->needs);
    }
    cta_.hazards.finish_needs();
    warpgroup.operations.push_back(std::move(operation));
    return *warpgroup.operations.back();
}

// The thread's accumulators become part of the operation's tile, unless they are already.
void TensorCores::hold(Operation& operation, Thread& thread, bool first, float* accumulators) {
    const int me = cta_.scheduler.current();
    const int n = operation.instruction.n;
    Holding* held = nullptr;
    for (Holding& holding : thread.holdings) {
        if (holding.accumulators == accumulators && holding.tile->n == n) {
            held = &holding;
        } else if (accumulators < holding.accumulators + holding.tile->n / 2 &&
                   holding.accumulators < accumulators + n / 2) {
            fault("the accumulators overlap those of a wgmma in flight");
        }
    }
    if (first) {
        operation.opens_tile = held == nullptr;
        operation.tile = held != nullptr ? held->tile : take_tile(n);
    }
    if (operation.opens_tile != (held == nullptr) || (held != nullptr && held->tile != operation.tile)) {
        fault("the accumulators of wgmma %d differ inside the warpgroup", thread.issued - 1);
    }
    if (held != nullptr) {
        held->end = thread.issued;
        return;
    }
    if (operation.instruction.accumulate) {
        float* sums = operation.tile->sums.data();
        for_each_pair(me % 128, n, [&](int pair, int row, int column) {
            std::memcpy(sums + row * n + column, accumulators + 2 * pair, 8);
        });
    }
    std::memcpy(accumulators, poison().pattern, n / 2 * sizeof(float));
    thread.holdings.push_back({operation.tile, accumulators, thread.issued});
}

TensorCores::Tile* TensorCores::take_tile(int n) {
    if (free_tiles_.empty()) {
        tiles_.push_back(std::make_unique<Tile>());
        free_tiles_.push_back(tiles_.back().get());
    }
    Tile* tile = free_tiles_.back();
    free_tiles_.pop_back();
    tile->n = n;
    tile->holders = 128;
    tile->sums.resize(64 * n);
    return tile;
}

void TensorCores::commit() {
    Thread& thread = threads_[cta_.scheduler.current()];
    thread.groups.push_back(thread.issued);
}

void TensorCores::wait(int pending) {
    const int me = cta_.scheduler.current();
    Thread& thread = threads_[me];
    thread.fenced = false;
    if (thread.groups.size() <= static_cast<size_t>(pending)) return;
    const auto unfinished = thread.groups.end() - pending;
    const int32_t end = *(unfinished - 1);
    thread.groups.erase(thread.groups.begin(), unfinished);
    Warpgroup& warpgroup = warpgroups_[me / 128];
    while (warpgroup.issued < end) {
        warpgroup.waiting.push_back(me);
        cta_.scheduler.block({Wait::Wgmma, static_cast<uint32_t>(me / 128), static_cast<uint32_t>(end)});
    }
    while (warpgroup.executed < end) {
        execute(warpgroup);
    }
    thread.waited = end;
    cta_.clocks.learn(me, cta_.clocks.finished_wgmmas(me / 128), end);
    deliver(thread);
}

void TensorCores::execute(Warpgroup& warpgroup) {
    const Operation& operation = *warpgroup.operations.front();
    decode_a(operation);
    decode_b(operation);
    std::vector<float>& sums = operation.tile->sums;
    const bool integers = operation.instruction.element == Element::S8;
    if (!operation.instruction.accumulate) {
        std::fill(sums.begin(), sums.end(), 0.0f);
    } else if (integers) {
        to_floats(sums.data(), static_cast<int>(sums.size()));
    }
    add_tile_product(sums.data(), a_, b_, 64, operation.instruction.n, depth_of(operation.instruction.element));
    if (integers) to_integers(sums.data(), static_cast<int>(sums.size()));
    free_operations_.push_back(std::move(warpgroup.operations.front()));
    warpgroup.operations.erase(warpgroup.operations.begin());
    ++warpgroup.executed;
}

void TensorCores::decode_a(const Operation& operation) {
    const Element element = operation.instruction.element;
    const int depth = depth_of(element), in_chunk = depth / 2, in_word = depth / 8;
    if (!operation.instruction.a_from_registers) {
        float* to = a_;
        for (const SharedAddress chunk : operation.a_chunks) {
            widen(element, cta_.memory.at(chunk), 16, to, 1);
            to += in_chunk;
        }
        return;
    }
    // A register holds four bytes of neighbours along k.
    for (int thread = 0; thread < 128; ++thread) {
        for (int i = 0; i < 4; ++i) {
            const int row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8;
            const int k = thread % 4 * in_word + i / 2 * in_chunk;
            uint8_t bytes[4];
            std::memcpy(bytes, &operation.a_registers[thread][i], 4);
            widen(element, bytes, 4, a_ + row * depth + k, 1);
        }
    }
}

void TensorCores::decode_b(const Operation& operation) {
    const Element element = operation.instruction.element;
    const int n = operation.instruction.n, in_chunk = depth_of(element) / 2;
    const bool mn_major = operation.instruction.b_mn_major;
    for (size_t c = 0; c < operation.b_chunks.size(); ++c) {
        // MN-major chunks are pieces of b_ in order; K-major ones are pieces of its columns.
        float* to = mn_major ? b_ + c * in_chunk : b_ + c % 2 * in_chunk * n + c / 2;
        widen(element, cta_.memory.at(operation.b_chunks[c]), 16, to, mn_major ? 1 : n);
    }
}

// The thread gets the accumulators on which nothing that it has issued is in flight any more.
void TensorCores::deliver(Thread& thread) {
    const int me = cta_.scheduler.current();
    for (size_t i = 0; i < thread.holdings.size();) {
        const Holding holding = thread.holdings[i];
        if (holding.end > thread.waited) {
            ++i;
            continue;
        }
        const int n = holding.tile->n;
        if (std::memcmp(holding.accumulators, poison().pattern, n / 2 * sizeof(float)) != 0) {
            fault("the accumulators were written to while a wgmma on them was in flight");
        }
        const float* sums = holding.tile->sums.data();
        for_each_pair(me % 128, n, [&](int pair, int row, int column) {
            std::memcpy(holding.accumulators + 2 * pair, sums + row * n + column, 8);
        });
        if (--holding.tile->holders == 0) free_tiles_.push_back(holding.tile);
        thread.holdings[i] = thread.holdings.back();
        thread.holdings.pop_back();
    }
}

std::string TensorCores::state(int warpgroup) const {
    const Warpgroup& one = warpgroups_[warpgroup];
    const size_t next = one.issued - one.executed;
    const int joined = next < one.operations.size() ? one.operations[next]->joined : 0;
    return "wgmma " + std::to_string(one.issued) + " has been issued by " + std::to_string(joined) + " of 128 threads";
}

void TensorCores::thread_ended(int index) const {
    const Thread& thread = threads_[index];
    const int32_t committed = thread.groups.empty() ? thread.waited : thread.groups.back();
    if (committed < thread.issued) {
        fault("the thread ends with %d wgmmas that it has not committed", thread.issued - committed);
    }
    if (thread.waited < thread.issued) {
        fault("the thread ends with %d wgmmas that it has not waited for", thread.issued - thread.waited);
    }
}

}  // namespace attn::sim
