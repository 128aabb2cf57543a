// The primitives of attn_sim/device.h: each is a step of the current thread on one unit of its CTA.
#include "attn_sim/device.h"

#include <chrono>
#include <thread>

#include "cta.h"
#include "fault.h"

namespace attn {

namespace {

sim::Cta& step(const char* primitive) {
    sim::Cta& cta = sim::cta();
    cta.scheduler.step(primitive);
    return cta;
}

}  // namespace

int thread_index() { return sim::cta().scheduler.current(); }
int block_index() { return sim::cta().block; }
int grid_size() { return sim::cta().grid; }
SharedAddress shared_base() { return sim::cta().memory.base(); }

void block_sync() { step("block_sync").named_barriers.block_sync(); }
void warp_sync() { step("warp_sync").warps.sync(); }
void named_sync(int id, int threads) { step("named_sync").named_barriers.sync(id, threads); }
void named_arrive(int id, int threads) { step("named_arrive").named_barriers.arrive(id, threads); }

void barrier_init(SharedAddress barrier, int arrivals) { step("barrier_init").barriers.init(barrier, arrivals); }
void barrier_init_fence() { step("barrier_init_fence").barriers.fence_init(); }
void barrier_expect(SharedAddress barrier, int bytes) { step("barrier_expect").barriers.expect(barrier, bytes); }
void barrier_arrive(SharedAddress barrier) { step("barrier_arrive").barriers.arrive(barrier); }
void barrier_wait(SharedAddress barrier, uint32_t parity) { step("barrier_wait").barriers.wait(barrier, parity); }

void tma_prefetch(const TensorMap& map) {
    step("tma_prefetch");
    if (map.magic != TensorMap::made) sim::fault("the tensor map was not made by encode_tensor_map");
}

void tma_load(SharedAddress destination, const TensorMap& map, SharedAddress barrier, int c0, int c1, int c2, int c3,
              int c4, uint64_t) {
    step("tma_load").copy_engine.load(destination, map, barrier, {c0, c1, c2, c3, c4});
}

void tma_store(const TensorMap& map, SharedAddress source, int c0, int c1, int c2, int c3, int c4) {
    step("tma_store").copy_engine.store(map, source, {c0, c1, c2, c3, c4});
}

void tma_store_commit() { step("tma_store_commit").copy_engine.commit(); }

void copy_async_16(SharedAddress to, const void* from) { copy_async_16(to, from, 16); }
void copy_async_16(SharedAddress to, const void* from, int bytes) {
    step("copy_async_16").thread_copies.begin(to, from, bytes);
}
void copy_async_commit() { step("copy_async_commit").thread_copies.commit(); }

void fence_proxy_async() { step("fence_proxy_async").hazards.fence(); }

void store_shared_16(SharedAddress address, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    sim::Cta& cta = step("store_shared_16");
    cta.memory.check(address, 16, 16);
    cta.hazards.store(address);
    const uint32_t value[4] = {x, y, z, w};
    std::memcpy(cta.memory.at(address), value, 16);
}

void load_shared_16(SharedAddress address, uint32_t (&value)[4]) {
    sim::Cta& cta = step("load_shared_16");
    cta.memory.check(address, 16, 16);
    cta.hazards.load(address);
    std::memcpy(value, cta.memory.at(address), 16);
}

void store_shared_8(SharedAddress address, uint32_t x, uint32_t y) {
    sim::Cta& cta = step("store_shared_8");
    cta.memory.check(address, 8, 8);
    cta.hazards.store(address);
    const uint32_t value[2] = {x, y};
    std::memcpy(cta.memory.at(address), value, 8);
}

void load_shared_8(SharedAddress address, uint32_t (&value)[2]) {
    sim::Cta& cta = step("load_shared_8");
    cta.memory.check(address, 8, 8);
    cta.hazards.load(address);
    std::memcpy(value, cta.memory.at(address), 8);
}

void load_matrix_x4(SharedAddress row, uint32_t (&matrices)[4]) {
    step("load_matrix_x4").warps.load_matrices(1, &row, &matrices);
}

void load_matrix_x4_transposed(SharedAddress row, uint32_t (&matrices)[4]) {
    step("load_matrix_x4_transposed").warps.load_matrix_x4_transposed(row, matrices);
}

void store_matrix_x4(SharedAddress row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    step("store_matrix_x4").warps.store_matrix_x4(row, {r0, r1, r2, r3});
}

// The CUDA version stores to the scratch, for the compiler's sake; nobody reads it.
void pin_before_wait(SharedAddress scratch, float, float) {
    sim::Cta& cta = step("pin_before_wait");
    cta.memory.check(scratch, 8, 8);
    cta.hazards.forbid_barrier(scratch, 8);
}

void wgmma_fence() { step("wgmma_fence").tensor_cores.fence(); }
void wgmma_commit() { step("wgmma_commit").tensor_cores.commit(); }

float shuffle_xor(float value, int mask) { return step("shuffle_xor").warps.shuffle_xor(value, mask); }

uint32_t value_of_lane(uint32_t value, int lane) { return step("value_of_lane").warps.value_of_lane(value, lane); }
uint32_t ballot(bool holds) { return step("ballot").warps.ballot(holds); }

uint32_t load_acquire_system(const uint32_t* flag) {
    step("load_acquire_system");
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

void store_release_system(uint32_t* flag, uint32_t value) {
    step("store_release_system").system.release();
    __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}

void store_relaxed_system(uint32_t* flag, uint32_t value) {
    step("store_relaxed_system");
    __atomic_store_n(flag, value, __ATOMIC_RELAXED);
}

void fence_system() { step("fence_system").system.fence(); }

void fence_system_total() {
    step("fence_system_total").system.fence();
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

uint32_t add_to_counter(uint32_t* counter, uint32_t value) {
    step("add_to_counter").system.add();
    return __atomic_fetch_add(counter, value, __ATOMIC_ACQ_REL);
}

// The host thread sleeps once for a whole warp. What it waits for is another host thread, which needs a core.
void pause_for(uint32_t) {
    sim::Scheduler& scheduler = step("pause_for").scheduler;
    scheduler.excuse();
    if (scheduler.current() % 32 == 0) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

uint64_t nanoseconds() {
    step("nanoseconds");
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

namespace sim {

void release_registers(int count) { step("registers_release").registers.release(count); }
void acquire_registers(int count) { step("registers_acquire").registers.acquire(count); }
void wait_stores_read(int pending) { step("tma_store_wait_read").copy_engine.wait_read(pending); }
void wait_stores_written(int pending) { step("tma_store_wait").copy_engine.wait_written(pending); }
void wait_wgmmas(int pending) { step("wgmma_wait").tensor_cores.wait(pending); }
void wait_copies(int pending) { step("copy_async_wait").thread_copies.wait(pending); }

void load_matrices(int count, const uint32_t* rows, uint32_t (*matrices)[4]) {
    step("load_matrices").warps.load_matrices(count, rows, matrices);
}

void multiply_shared(const Strips& strips, const SharedColumns& columns, float* const* sums, const uint32_t (*a)[4],
                     const uint32_t* rows) {
    step("mma_shared").warp_products.multiply_shared(strips, columns, sums, a, rows);
}

void multiply_strips(const Strips& strips, float* const* sums, const uint32_t (*a)[4], const uint32_t (&b)[4]) {
    step("mma_strips").warp_products.multiply(strips, sums, a, b);
}

void issue_wgmma(const WgmmaInstruction& instruction, void* accumulators, const uint32_t* a_registers) {
    step("wgmma").tensor_cores.issue(instruction, accumulators, a_registers);
}

void stores_global() { cta().system.store(); }

void check_global(const void* address) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
        fault("global address %p is not aligned to 16 bytes", address);
    }
}

}  // namespace sim

}  // namespace attn
