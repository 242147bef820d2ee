// What `sparsity_stats.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr i64 NO_KEY = 0x7fffffffffffffffll;

// Rows that a block takes at a time.
static constexpr int ROWS = THREADS / WARP;

struct SparsityCounts {
    i64 equal, within, absorbed, bad;  // bad: the key above
    double max_delta;
};

struct SparsityStatsParams {
    const void *w0, *w1;
    Column<i64> row_nnz;
    SparsityCounts* partial;  // [blocks]
    SparsityCounts* result;
    u32* ticket;  // 0 before and after
    i64 rows, columns, w0_stride, w1_stride;
    double tol;
};
