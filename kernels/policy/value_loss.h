// What `value_loss.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr int TILE = 4096;

template <class R> struct ValueLossParams {
    Column<const R> value, returns, old_value;
    Column<const u8> mask;
    Column<R> dvalue;
    double *partial, *loss;
    u32* ticket;
    i64 tokens;
    double clip, weight;
};
