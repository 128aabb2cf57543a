// What tensors are rounded by, where it stands in several sources.
#pragma once
#include "shard.h"

namespace attn::sage {

// Values transposed; in rows; what is in rows, transposed.
enum class ValueStep { Round, Rows, Arrange };

// Values to e4m3: a format that cards before compute capability 8.9 do not know. The call has been checked.
int round_values(const Shard& call, ValueStep step, void* stream);

}  // namespace attn::sage
