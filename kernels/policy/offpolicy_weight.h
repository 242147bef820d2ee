// What `offpolicy_weight.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 128;

enum Level : i32 { LEVEL_TOKEN, LEVEL_SEQUENCE_SUM, LEVEL_SEQUENCE_MEAN };

enum Bound : i32 { BOUND_TRUNCATE, BOUND_MASK, BOUND_SEQUENCE_MASK };

enum RejectBy : i32 { REJECT_BY_K1, REJECT_BY_K2, REJECT_BY_K3 };

enum RejectLevel : i32 {
    REJECT_LEVEL_TOKEN,
    REJECT_LEVEL_SEQUENCE_SUM,
    REJECT_LEVEL_SEQUENCE_MEAN,
    REJECT_LEVEL_SEQUENCE_MAX
};

// Sums, then extremes. KEPT and KEPT_SUM are over weights above 0.
enum Total : i32 {
    TOTAL_TOKENS,
    TOTAL_DROPPED,
    TOTAL_NAN,
    TOTAL_SUM,
    TOTAL_SQUARES,
    TOTAL_KEPT,
    TOTAL_KEPT_SUM,
    TOTAL_MIN,
    TOTAL_MAX
};
static constexpr int TOTALS = 9;

template <class R> struct OffPolicyParams {
    Column<const R> old_logp, sampler_logp;
    Column<const u8> mask;
    Column<const i64> cu_seqlens;
    Column<R> weight;
    double *partial, *totals;
    u32* ticket;
    i64 tokens, sequences;
    double min, max, clamp, reject_lo, reject_hi;
    Level level;
    Bound bound;
    i32 rejects;
    RejectBy reject_by;
    RejectLevel reject_level;
    i32 writes;   // write the weights
    i32 divides;  // by the mean of the totals that an earlier launch left
    i32 unused;
};
