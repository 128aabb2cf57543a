// What a call asks of attention in 8 bits, besides what flash asks too.
#pragma once
#include "../flash/problem.h"
#include "shapes.h"

namespace attn::sage {

struct Problem {
    // The order of tiles, the mask, where rows go.
    flash::Problem tiles;
    // As AttnSageTensors.
    const float *query_scale, *query_mean, *key_scale, *value_scale;
    int32_t type;
    bool carried;
};

}  // namespace attn::sage
