// The primitives that kernels are written in: one layer of inline PTX for the GPU, one of C++ for the host simulator,
// with the same names. A kernel touches shared memory, barriers and the tensor cores through these alone, so that the
// simulator sees everything it does.
#pragma once
#ifdef ATTN_SIM
#include <attn_sim/device.h>
#else
#include "attn/cuda/barrier.h"
#include "attn/cuda/copy_async.h"
#include "attn/cuda/mma.h"
#include "attn/cuda/shared.h"
#include "attn/cuda/system.h"
#include "attn/cuda/thread.h"
#include "attn/cuda/tma.h"
#include "attn/cuda/vector.h"
#include "attn/cuda/wgmma.h"
#endif
