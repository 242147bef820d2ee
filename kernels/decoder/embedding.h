// What `embedding.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 128;

template <class T> struct EmbeddingParams {
    Column<const i32> ids;
    const T *table, *dy;
    T* y;
    float* dtable;
    i64 tokens, vocab, columns, table_stride, y_stride, dy_stride, dtable_stride;
};
