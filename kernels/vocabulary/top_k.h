// What `top_k.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;

struct TopKParams {
    const void* logits;
    i32* ids;
    i64 row_stride, ids_stride, vocab, count;
};
