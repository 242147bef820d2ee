// What `sample.cu` and its launch share.
#pragma once

#include "rows.h"

struct SampleParams {
    RowSet set;
    const void* logits;
    i64 row_stride;
    Column<const double> uniform;
    Column<i32> token;
    Column<float> logp, logp_kept, kept_mass, entropy;
    i64 top_k;
    double top_p;
    float min_p;
    i32 greedy;
};
