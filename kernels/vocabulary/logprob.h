// What `logprob.cu` and its launch share.
#pragma once

#include "rows.h"

struct LogProbParams {
    RowSet set;
    const void* logits;
    i64 row_stride;
    Column<const i32> target;
    Column<float> logp, lse, entropy, log_sum_sq;
    Column<u8> top1;
};

struct LogProbBwdParams {
    RowSet set;
    const void* logits;
    void* dlogits;
    i64 row_stride, out_stride;
    Column<const i32> target;
    Column<const float> dlogp, dentropy, dlse;
    Column<float> logp, entropy;
};
