// What attn_sage_quantise is made of, where it stands in several sources.
#pragma once
#include "attn/abi.h"

namespace attn::sage {

// Values to e4m3: a format that cards before compute capability 8.9 do not know. The call has been checked.
int quantise_values(const AttnSage& call, void* stream);

}  // namespace attn::sage
