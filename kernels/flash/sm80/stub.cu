// Until the kernel is there.
#include "attn/abi.h"

extern "C" int attn_flash_sm80(const AttnAttention*, void*) { return ATTN_UNSUPPORTED; }
