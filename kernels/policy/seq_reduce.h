// What `seq_reduce.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 128;

enum Reduction : i32 { REDUCTION_SUM, REDUCTION_MEAN, REDUCTION_MAX, REDUCTION_MIN };

template <class R> struct SeqReduceParams {
    Column<const R> x;
    Column<const u8> mask;
    Column<const i64> cu_seqlens;
    Column<R> y;
    Column<i64> count;
    i64 tokens;
    Reduction reduction;
    i32 mean;
};
