// What `group_loss.cu` and its launch share.
#pragma once

#include "terms.h"

static constexpr int THREADS = 128;

template <class R> struct GroupLossParams {
    Column<const R> logp, reference, reward;
    Column<const i64> offsets;
    Column<R> d_logp;
    LossTerms<R> terms;
    i64 samples;
    double beta;
};

template <class R> struct InfoNceParams {
    const R* logp;
    R* d_logp;
    i64 row_stride, d_row_stride;
    Column<const i64> length;
    LossTerms<R> terms;  // of rows; `loss` is the one loss
    double *row_lse, *col_lse;
    i64 n;
};
