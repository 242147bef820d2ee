// What `gae.cu` and its launch share.
#pragma once

#include "moments.h"

static constexpr int THREADS = 256;
static constexpr int CHUNK = 4096;

enum RewardKl : i32 { REWARD_KL_K1, REWARD_KL_K2, REWARD_KL_K3, REWARD_KL_ABS };

template <class R> struct GaeParams {
    Column<const R> reward, value;
    Column<const u8> mask;
    Column<const i64> cu_seqlens;
    Column<const R> bootstrap;
    Column<R> advantage, returns;
    i64 tokens;
    double gamma, lambda;
};

template <class R> struct DiscountedReturnParams {
    Column<const R> reward;
    Column<const u8> mask;
    Column<const i64> cu_seqlens;
    Column<const R> baseline;
    Column<R> returns;
    i64 tokens;
    double gamma;
    i64 reset;
};

template <class R> struct KlRewardParams {
    Column<const R> score, logp, reference;
    Column<const u8> mask;
    Column<const i64> cu_seqlens;
    Column<R> reward;
    i64 tokens;
    double beta, clamp;
    RewardKl estimator;
    i32 unused;
};

// Moments of a chunk about its smallest value: no cancellation, and no spread where all are equal.
struct Chunk {
    i64 count;
    double low, high;      // high = low if all are equal, else anything above
    double rise, squares;  // mean - low, sum (x - mean)^2
};

struct WhitenTotals {
    i64 count;
    double low, rise, variance, inverse;  // inverse = 1 / divisor; 0 makes every result 0
};

template <class R> struct WhitenParams {
    Column<const R> x;
    Column<const u8> mask;
    Column<R> y;
    Chunk* chunks;  // [ceil(T / 4,096)]
    WhitenTotals* totals;
    u32* ticket;  // 0 before and after
    i64 tokens;
    double eps, count_eps;
    i64 ddof;
    EpsForm eps_form;
    i32 shift_mean;
};
