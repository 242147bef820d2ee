// What `delta.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr int CHUNK = 16384;

struct DeltaParams {
    const void *old, *now;
    i64* before;  // [chunks + 1]
    u32* ticket;  // 0 before and after
    i64* index;
    void* value;
    i64 n, capacity;
};

struct DeltaApplyParams {
    const i64* index;
    const void* value;
    void* target;
    i64 count, n;
};
