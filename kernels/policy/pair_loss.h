// What `pair_loss.cu` and its launch share.
#pragma once

#include "terms.h"

static constexpr int THREADS = 128;

enum Kind : i32 {
    KIND_SIGMOID,
    KIND_HINGE,
    KIND_IPO,
    KIND_ROBUST,
    KIND_EXO,
    KIND_NCA,
    KIND_BCO,
    KIND_SPPO_HARD,
    KIND_APO_ZERO,
    KIND_APO_DOWN,
    KIND_DISCOPOP,
    KIND_ORPO
};

enum Score : i32 { SCORE_REVERSE_KL, SCORE_JENSEN_SHANNON, SCORE_ALPHA };

template <class R> struct PreferenceParams {
    Column<const R> logp[2], reference[2];
    Column<const i64> length[2];
    Column<R> d_logp[2], reward[2];
    LossTerms<R> terms;
    double beta, likelihood, alpha, x, y;  // x, y: label smoothing, margin; or what the kind has
    Kind kind;
    Score score;
};

template <class R> struct KtoParams {
    Column<const R> logp, reference;
    Column<const u8> desirable;
    Column<R> d_logp;
    LossTerms<R> terms;
    double beta, kl, desirable_weight, undesirable_weight;
};

template <class R> struct PrdpParams {
    Column<const R> logp, old, reference, reward;
    Column<const u8> mask;
    Column<const i64> cu_seqlens;
    Column<R> d_logp;
    LossTerms<R> terms;
    const i64* pairs;
    i64 pair_stride, tokens, sequences;
    double *free_sums, *bounded_sums;  // [B]
    double beta, clip;
};
