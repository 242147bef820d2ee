// What `nf4_matmul_grouped.cu` and its launch share.
#pragma once

#include "mma_gemm.h"
#include "nf4_matrix.h"

static constexpr int GROUPED_ROWS = 64;

template <class T> struct GroupedParams {
    GemmParams<T, Nf4Matrix> all;  // of all rows; its weight is nobody's
    const Nf4Matrix* weights;
    i64 count;
    Column<const i64> offsets;
};
