// What `convert.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr int PER_THREAD = 16;

static constexpr int TILE = THREADS * PER_THREAD;

struct ConvertParams {
    const void* x;
    void* y;
    i64 n;
};
