// What `group_advantage.cu` and its launch share.
#pragma once

#include "moments.h"

static constexpr int THREADS = 128;

enum Baseline : i32 {
    BASELINE_NONE,
    BASELINE_MEAN,
    BASELINE_LEAVE_ONE_OUT,
    BASELINE_LENGTH,
    BASELINE_MAX2
};

enum Scale : i32 {
    SCALE_NONE,
    SCALE_GROUP_STD,
    SCALE_BATCH_STD,
    SCALE_LOO_STD,
    SCALE_NONZERO_SHARE
};

struct GroupStats {
    i64 size, scorable;
    double mean, std;
    i64 degenerate;
};

template <class R> struct GroupAdvantageParams {
    Column<const R> reward;
    Column<const i64> offsets, length;
    Column<R> advantage;
    GroupStats* stats;
    i64 samples, groups;
    double eps;
    Baseline baseline;
    Scale scale;
    EpsForm eps_form;
    i32 ddof, raw_single, compares;
};
