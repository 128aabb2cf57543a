// What launchers need on the host: describing tensors for the copy engine, launching, the size of the device.
#pragma once
#ifdef ATTN_SIM
#include <attn_sim/host.h>
#else
#include "attn/cuda/host.h"
#endif
