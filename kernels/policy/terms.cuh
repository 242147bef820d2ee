// Weighted totals of a list of losses: what pair and group losses end with.
#pragma once

#include "common.cuh"
#include "terms.h"

__device__ __forceinline__ double sigmoid(double x) {
    const double e = exp(-fabs(x));
    return x >= 0.0 ? 1.0 / (1.0 + e) : e / (1.0 + e);
}

// log sigmoid(x) without overflow or cancellation.
__device__ __forceinline__ double log_sigmoid(double x) {
    return fmin(x, 0.0) - log1p(exp(-fabs(x)));
}

// sigmoid'(x).
__device__ __forceinline__ double bell(double x) { return sigmoid(x) * sigmoid(-x); }
