// What `gather_k.cu` and its launch share.
#pragma once

#include "rows.h"

struct GatherKParams {
    RowSet set;
    const void* logits;
    void* dlogits;
    const i32* ids;
    float* logp;
    const float* dlogp;
    i64 row_stride, out_stride, ids_stride, logp_stride, dlogp_stride;
    i64 count;
    Column<float> mass;
    i32 renormalize, unused;
};
