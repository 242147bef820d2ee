// What `lerp.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr int PER_THREAD = 32;

static constexpr int TILE = THREADS * PER_THREAD;

struct LerpParams {
    const void *a, *b;
    void* y;
    i64 n;
    double lambda;
};
