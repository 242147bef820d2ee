// What `quantile.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 512;

enum Method : i32 { METHOD_LINEAR, METHOD_LOWER, METHOD_HIGHER };

template <class R> struct QuantileParams {
    Column<const R> x;
    Column<const u8> klass;
    Column<const i64> cu_seqlens;
    Column<R> y;
    Column<u8> keep;
    i64 tokens;
    double q;
    Method method;
    i32 ranked;      // the class that counts; -1: every class but 0
    i32 nan_result;  // 1: a NaN that counts makes y NaN; 0: it is left out
    i32 others;      // what keep gets where nothing counts
    i32 keeps_none;
    i32 cluster;  // blocks that share a scope; 1 before sm_90
};
