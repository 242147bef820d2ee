// What `linear_logprob.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;

template <class T> struct ScoreScaleParams {
    const T* score;
    T* dhidden;
    Column<const float> dlogp;
    i64 columns, score_stride, dhidden_stride;
};
