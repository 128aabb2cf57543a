// The C interface of the GPU kernels: one plain struct of parameters for each launcher, and the codes they return.
//
// The Rust side mirrors every struct field by field (src/cuda/abi.rs) and compares sizes through attn_abi_sizes. All
// strides count elements. Launchers queue work on `stream` (a cudaStream_t of the calling thread's current context)
// and return at once: 0, a cudaError_t above 0, or one of the codes below 0.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum AttnStatus {
    ATTN_OK = 0,
    // No kernel for this head_dim, element type or form.
    ATTN_UNSUPPORTED = -1,
    // The driver refused to describe a tensor for the copy engine: a base or a stride that is not a multiple of 16
    // bytes, or an axis that is too long.
    ATTN_TENSOR_REFUSED = -2,
    // The driver offers no function that describes tensors (older than CUDA 12.0).
    ATTN_NO_TENSOR_MAPS = -3,
    // The host simulator found a fault; attn_sim_report says which.
    ATTN_SIM_FAULT = -4,
};

// F32: attn_sdpa and attn_state_finish alone.
// S8, E4M3: attn_probe_wgmma8 alone.
enum AttnType { ATTN_BF16 = 0, ATTN_F16 = 1, ATTN_F32 = 2, ATTN_S8 = 3, ATTN_E4M3 = 4 };

// How the flash kernel's consumer warpgroups work: AUTO asks the table of shapes; SIMPLE runs one product after the
// other; OVERLAPPED runs the softmax of one block of keys while the tensor cores work on another. What has one kernel, gets
// it whatever it asks for: calls with segments or a dense mask, and those with few queries.
enum AttnForm { ATTN_FORM_AUTO = 0, ATTN_FORM_SIMPLE = 1, ATTN_FORM_OVERLAPPED = 2 };

// [batch, seq, heads, head_dim] with head_dim dense.
typedef struct AttnTensor {
    void* base;
    int64_t batch_stride, seq_stride, head_stride;
} AttnTensor;

// One float for each row: [batch, seq, heads].
typedef struct AttnRows {
    float* base;
    int64_t batch_stride, seq_stride, head_stride;
} AttnRows;

// Which keys a query attends: all that none of these forbids.
typedef struct AttnMask {
    // How many keys of each batch row count, at most seq_k. Null: all.
    const int32_t* key_lengths;
    // [batch, seq_q] and [batch, seq_k], dense: a query attends keys of its own segment. Both or none.
    const int32_t* query_segments;
    const int32_t* key_segments;
    // [batch, dense_heads, seq_q, seq_k], a byte for each pair: what is not 0 is attended. Null: all.
    const uint8_t* dense;
    // Batch, head, query, key. The head stride of a mask that all heads share is 0.
    int64_t dense_strides[4];
    // With segments or a dense mask: batch * (dense_heads, at least 1) * ceil(seq_q / 64) * ceil(seq_k / 64) bytes of
    // memory, which launchers write and read: how the mask covers each of a kernel's tiles. Else null.
    uint8_t* cover;
    // Heads that the dense mask tells apart: `heads`, or 1. 0 without a dense mask.
    int32_t dense_heads;
    // lo <= key - query <= hi, between -seq_q and seq_k.
    int32_t band_lo, band_hi;
    int32_t reserved;
} AttnMask;

// softmax(scale * Q K^T) V over the keys that the mask leaves. All memory is the device's.
//
// Without a state (state_max.base null) it writes `out` and, if lse.base is not null, the natural log-sum-exp. With a
// state it goes on from it and writes it back: output not yet divided; what exponents are relative to, the largest
// scaled product in units of log2 (product * scale * log2(e)); the sum of the exponentials. `out` and `lse` are not
// touched. A row whose state_max is -inf and whose state_sum is 0
// has attended nothing: its state_output is not read. (One that has met nothing but NaN has a sum of NaN.)
typedef struct AttnAttention {
    AttnTensor query, key, value, out;
    AttnTensor state_output;
    AttnRows lse, state_max, state_sum;
    AttnMask mask;
    int32_t batch, seq_q, seq_k, heads, kv_heads, head_dim;
    // enum AttnType, enum AttnForm.
    int32_t type, form;
    // Above 0.
    float scale;
    int32_t reserved;
} AttnAttention;

// For compute capability 9.0; for 8.0 and later.
int attn_flash_sm90(const AttnAttention* call, void* stream);
int attn_flash_sm80(const AttnAttention* call, void* stream);
// Without tensor cores, also for F32: any head_dim, any alignment of whole elements.
int attn_sdpa(const AttnAttention* call, void* stream);

// Attention in 8 bits (Zhang et al. 2024, SageAttention; SageAttention2): what attn_sage_quantise writes and attention
// reads. Dense, bases multiples of 16 bytes. Keys come in blocks of 128; the last one may be short.
typedef struct AttnSageTensors {
    // [batch, heads, seq_q, head_dim] and [batch, kv_heads, seq_k, head_dim]. Keys less their mean.
    int8_t* query;
    int8_t* key;
    // e4m3, [batch, kv_heads, head_dim, key_blocks * 128], tokens in the order of kernels/sage/shapes.h. Null: values stay
    // as they are.
    uint8_t* value;
    // [batch, heads, seq_q]: what whole products of a query are multiplied with, softmax scale and log2(e) included;
    // the query's product with the mean key, times the same two.
    float* query_scale;
    float* query_mean;
    // [batch, kv_heads, key_blocks, 4]: for keys whose number modulo 8 is 0 or 1, 2 or 3, 4 or 5, 6 or 7.
    float* key_scale;
    // [batch, kv_heads, head_dim].
    float* value_scale;
    float* key_mean;
    // [batch, kv_heads, ceil(seq_k / 256), 2, head_dim]: sums of keys and largest values on the way.
    float* partial;
} AttnSageTensors;

// `attention` as for flash: head_dim 64 or 128, BF16 or F16.
typedef struct AttnSage {
    AttnAttention attention;
    AttnSageTensors tensors;
} AttnSage;

// For compute capability 8.0 and later; with values in 8 bits, for 9.0. Reads query, key, value, scale and key lengths of `attention`.
int attn_sage_quantise(const AttnSage* call, void* stream);
// For compute capability 9.0. Reads the tensors, and of `attention` neither query, key nor value.
int attn_sage_sm90(const AttnSage* call, void* stream);
// For compute capability 8.0 and later. Of `attention` it reads `value`, of the tensors all but `value` and value_scale.
int attn_sage_sm80(const AttnSage* call, void* stream);

// Tensors in 8 bits of a sequence that ranks share: each rounds its own rows, and the result is that of one which has them
// all. The first rank's keys are `joint` tokens and its share of `tokens` others, which ranks share in equal stretches, the
// first ones longer by one where they do not divide.
enum AttnShardStep {
    // Reads key and value; writes `sums`, [batch, kv_heads, 2, head_dim]: of the keys, and the values' largest magnitudes.
    ATTN_SHARD_SURVEY = 0,
    // Reads `sums` of all ranks, [batch, kv_heads, shards, 2, head_dim]; writes key_mean and value_scale.
    ATTN_SHARD_SETTLE = 1,
    // Reads key and key_mean; writes `maxima`, [batch, kv_heads, 2, 4]: the largest magnitudes of keys less their mean, by
    // scale, in the first and the last block of 128 that the rank has keys of.
    ATTN_SHARD_EDGE_MAXIMA = 2,
    // Reads query, key, value, key_mean, value_scale, and `maxima` of all ranks, [batch, kv_heads, shards, 2, 4] (null: no
    // block lies on two ranks); writes query, query_scale, query_mean unless that is null, key, key_scale of the blocks that
    // the rank has keys of, and value_rows.
    ATTN_SHARD_ROUND = 3,
    // Reads value_rows of the whole sequence (shards = 1); writes `value`.
    ATTN_SHARD_ARRANGE = 4,
};

// Key lengths of `attention` are those of the whole sequence. Of `tensors`, what a step does not name is not touched, but
// `partial`, by the survey.
typedef struct AttnSageShard {
    AttnSage sage;
    // e4m3, [batch, kv_heads, seq_k, head_dim].
    uint8_t* value_rows;
    float* sums;
    float* maxima;
    int32_t shards, shard, joint, tokens;
    // enum AttnShardStep.
    int32_t step;
    int32_t reserved;
} AttnSageShard;

// For compute capability 8.9 and later.
int attn_sage_shard(const AttnSageShard* call, void* stream);

// The carried state of flash: begin marks every row as having attended nothing; finish divides, casts, and writes
// `out` and, if lse.base is not null, the natural log-sum-exp, state_max * ln(2) + ln(state_sum).
typedef struct AttnStateCall {
    AttnTensor state_output, out;
    AttnRows state_max, state_sum, lse;
    int32_t batch, seq, heads, head_dim;
    int32_t type;
    int32_t reserved;
} AttnStateCall;

int attn_state_begin(const AttnStateCall* call, void* stream);
int attn_state_finish(const AttnStateCall* call, void* stream);

// One strided 4-D copy, like StridedCopy in Rust. `item` is the bytes of one element: 1, 2, 4, 8 or 16.
typedef struct AttnCopy {
    const void* source;
    void* destination;
    uint64_t item;
    uint64_t extent[4];
    uint64_t source_strides[4], destination_strides[4];
} AttnCopy;

// A batch of copies; one launch for every 200 that are not empty.
int attn_copy(const AttnCopy* copies, size_t count, void* stream);

// Which channels of a row are a pair, which is turned: 2i and 2i + 1, or i and i + rotary_dim / 2.
enum AttnPairs { ATTN_PAIRS_INTERLEAVED = 0, ATTN_PAIRS_HALVES = 1 };

// A copy of rows, [batch, seq, heads, head_dim] with head_dim dense, each normalised, then rotated, in fp32, and rounded
// once. All bases and strides are multiples of 16 bytes.
//
// norm: x / sqrt(mean(x * x) + eps) * weight. Rotation: (a, b) becomes (a cos - b sin, b cos + a sin).
typedef struct AttnEdge {
    const void* source;
    void* destination;
    // [heads, head_dim], dense along head_dim, of the rows' type. Null: all are 1.
    const void* weight;
    // [batch, seq, rotary_dim / 2], dense along the last.
    const float* cos;
    const float* sin;
    // Batch, seq, head.
    int64_t source_strides[3], destination_strides[3];
    int64_t weight_stride;
    // Batch, seq.
    int64_t cos_strides[2], sin_strides[2];
    // head_dim: a multiple of 8, at most 256. rotary_dim: of 8, or of 16 with halves; 0: nothing is rotated.
    int32_t batch, seq, heads, head_dim, rotary_dim;
    // enum AttnPairs, enum AttnType (BF16 or F16).
    int32_t pairs, type;
    // Whether rows are normalised.
    int32_t norm;
    float eps;
    int32_t reserved;
} AttnEdge;

// A batch of them; one launch for every 100 of one type that are not empty.
int attn_edge(const AttnEdge* edges, size_t count, void* stream);

// Direct exchange: ranks whose GPUs reach each other's memory write their parts of an exchange straight into each other's
// tensors, and wait for each other on the GPU alone. See kernels/exchange/mailbox.h.
enum {
    // Ranks of a group, at most.
    ATTN_EXCHANGE_RANKS = 16,
    // Boxes from one rank to another in one message, at most.
    ATTN_EXCHANGE_BOXES = 8,
};

// A box of a tensor. Elements of 1, 2, 4, 8 or 16 bytes, which divide the base; fewer than 2^31 bytes of them; none of
// the extents is 0.
typedef struct AttnExchangeBox {
    void* base;
    uint64_t strides[4];
    uint32_t extent[4];
    uint32_t item;
    uint32_t reserved;
} AttnExchangeBox;

// Why a rank has given up.
enum AttnExchangeReason {
    ATTN_EXCHANGE_WELL = 0,
    // `ranks` had not come when the time was over.
    ATTN_EXCHANGE_LATE = 1,
    // Rank `sender` sends other boxes than rank `receiver` expects.
    ATTN_EXCHANGE_UNLIKE = 2,
    // `sender` was told to by its host, or by attn_exchange_withdraw.
    ATTN_EXCHANGE_WITHDRAWN = 3,
};

// In memory that host and GPU share. The host writes `abort` and `gone`, a bit for each rank that has no kernel queued and
// will queue none; the GPU writes the rest, once: `set` last.
typedef struct AttnExchangeReport {
    uint32_t abort, gone, set;
    // enum AttnExchangeReason.
    uint32_t reason;
    // As AttnExchange has it, and how many calls there had been, this one included.
    uint32_t operation, calls;
    // 0: waited for boxes to be announced. 1: for all to be written.
    uint32_t phase;
    // LATE: a bit for each rank.
    uint32_t ranks;
    // UNLIKE, WITHDRAWN.
    uint32_t sender, receiver;
    // UNLIKE, where this rank is the sender: the box's number, or how many boxes each has if `box` is ~0.
    uint32_t box, sent, expected;
    uint32_t sent_extent[4], expected_extent[4];
    uint32_t sent_item, expected_item;
} AttnExchangeReport;

// A group, as rank `me` sees it. `mailbox[r]` is rank r's: attn_exchange_mailbox_bytes zeroed bytes of its GPU's memory.
// `first` is the number of messages before the first, the same on every rank.
typedef struct AttnExchangeGroup {
    void* mailbox[ATTN_EXCHANGE_RANKS];
    AttnExchangeReport* report;
    uint64_t limit_nanoseconds;
    uint32_t me, size, first;
    uint32_t reserved;
} AttnExchangeGroup;

// Rank by rank, in the order of both lists: sends[r] boxes that go to rank r, receives[r] that come from it. `me` may be
// among the ranks. Ranks in `peers`, a bit for each, meet also if no box passes between them.
typedef struct AttnExchange {
    AttnExchangeGroup group;
    const AttnExchangeBox* outgoing;
    const AttnExchangeBox* incoming;
    uint32_t sends[ATTN_EXCHANGE_RANKS], receives[ATTN_EXCHANGE_RANKS];
    uint32_t peers;
    // Any number: for the report.
    uint32_t operation;
} AttnExchange;

// Two launches for every ATTN_EXCHANGE_BOXES boxes that pass between two ranks. The lists have been read when it returns.
int attn_exchange(const AttnExchange* call, void* stream);
// Tells all ranks that this one takes part no more.
int attn_exchange_withdraw(const AttnExchangeGroup* group, void* stream);
// Loads the kernels: a first launch might wait for those that wait for it.
int attn_exchange_prepare(void);
size_t attn_exchange_mailbox_bytes(void);

// Layout probes: what the tensor cores and the copy engine do with one tile, for comparison with the host.
//
// wgmma: d[64][n] = a[64][k] b[k][n] in one warpgroup, k = 64, operands of `type` in device memory, row-major as
// written here, d float. Operands are laid into shared memory by ordinary stores under `swizzle` (bytes: 32, 64, 128).
// `a_from_registers`: a comes from registers. `b_mn_major`: b is stored with n contiguous, else with k contiguous.
typedef struct AttnProbeWgmma {
    const void* a;
    const void* b;
    float* d;
    int32_t n, swizzle, type;
    int32_t a_from_registers, b_mn_major;
    int32_t reserved;
} AttnProbeWgmma;

int attn_probe_wgmma(const AttnProbeWgmma* call, void* stream);
// The same of 8-bit elements: k = 128, n contiguous in neither operand's shared memory.
int attn_probe_wgmma8(const AttnProbeWgmma* call, void* stream);

// Copy engine: of a [seq, slabs * width] tensor of 2-byte elements, width = swizzle / 2, loads the box of `rows` x
// (box_slabs * width) that begins at (row, slab * width), under a swizzle of 32, 64 or 128 bytes, and writes shared
// memory, byte by byte as it stands there, to `image` (box_slabs * rows * swizzle bytes); then stores the tile from
// there to the same place of `copy`.
typedef struct AttnProbeTma {
    const void* source;
    void* copy;
    void* image;
    int32_t seq, slabs, rows, row, slab;
    int32_t swizzle, box_slabs;
    int32_t reserved;
} AttnProbeTma;

int attn_probe_tma(const AttnProbeTma* call, void* stream);

// Peak: `blocks` blocks (one a multiprocessor keeps them all busy) multiply `iterations` times on the tensor cores
// alone. Writes how many operations that is to `operations`, in host memory, before it returns, and a sum of products
// for each thread to `sums`, 256 * blocks floats.
typedef struct AttnProbePeak {
    float* sums;
    double* operations;
    int32_t blocks, iterations, type;
    int32_t reserved;
} AttnProbePeak;

int attn_probe_peak(const AttnProbePeak* call, void* stream);

// How many multiprocessors the current device has.
int attn_multiprocessors(int* count);

// A code's name and what it means. Never null.
const char* attn_status_name(int status);
const char* attn_status_text(int status);

// How many structs are above, and sizeof each in the order of this file (AttnTensor, AttnRows, AttnMask, AttnAttention,
// AttnSageTensors, AttnSage, AttnSageShard, AttnStateCall, AttnCopy, AttnEdge, AttnExchangeBox, AttnExchangeReport,
// AttnExchangeGroup, AttnExchange, AttnProbeWgmma, AttnProbeTma, AttnProbePeak): as many of them as there is room for.
size_t attn_abi_sizes(size_t* sizes, size_t room);

#ifdef ATTN_SIM
// The host simulator runs a launch to its end before the launcher returns.
//
// The seed decides in which order threads run and how long the copy engine takes. The report says what the last
// launch that returned ATTN_SIM_FAULT found ("" if none), and lives until the next launch of the same thread.
void attn_sim_seed(uint64_t seed);
const char* attn_sim_report(void);
#endif

#ifdef __cplusplus
}
#endif
