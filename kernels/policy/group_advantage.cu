// A = (R - baseline) / scale over groups of samples of one prompt, groups of any sizes.
//
// GRPO (arXiv:2402.03300, §4.1.2), Dr. GRPO (2503.20783), RLOO (2402.14740), OPO (2505.23585), GPG
// (2504.02546), pass@k (2503.19595); the settings are those of `ops::GroupSettings`.
//
// | operand   | shape   | dtype    | layout                                     |
// |-----------|---------|----------|--------------------------------------------|
// | reward    | [B]     | f32, f64 | any stride; NaN abstains                   |
// | offsets   | [G + 1] | i64      | any stride; clamped to 0..=B               |
// | length    | [B]     | i64      | any stride; for the length-weighted baseline |
// | advantage | [B]     | as reward| any stride                                 |
// | stats     | [G]     | struct   | contiguous, may be null                    |
//
// Mapping: one warp per group, lanes stride over its samples; 4 groups per block; one launch.
// Traffic: rewards 4 times (from L1), offsets, advantages once: O(B). With a batch scale every
// block reads all rewards itself: G / 4 · B loads from L2, which for B = 8,192 and G = 1,024 is
// less time than a second launch.
//
//     for each warp g:
//         n, min, max         over the scorable rewards
//         rise = mean(r - min), variance = mean((r - min - rise)^2)      two passes
//         a_i  = (r_i - min - rise) / (sqrt(variance) + eps)             and its relatives
//
// Numerics: f64 inside, statistics about the group's smallest reward, so that equal rewards have
// variance 0 and not rounding noise; sums are a lane's samples in order, then a butterfly: a tree
// that depends on the size of the group alone.
// local memory: group_advantage_*: registers live across the call in an f64 division
#include "moments.cuh"
#include "group_advantage.h"

template <class R> struct Rewards {
    Column<const R> data;
    i64 first, count;
    __device__ __forceinline__ double operator()(i64 i) const { return wide(data, first + i); }
};

// The divisor that all groups share; 0 stands for "every advantage is 0".
template <class R>
__device__ __forceinline__ double batch_divisor(const GroupAdvantageParams<R>& p, double* partial) {
    const Rewards<R> all = {p.reward, 0, p.samples};
    const BlockTeam<THREADS> team = {partial};
    if (p.scale == SCALE_BATCH_STD) {
        const Moments m = moments(all.count, all, p.ddof, team);
        return m.equal ? 0.0 : guarded_std(m.variance, p.eps, p.eps_form);
    }
    i64 scorable = 0, nonzero = 0;
    for (i64 i = threadIdx.x; i < all.count; i += THREADS) {
        const double x = all(i);
        scorable += !is_nan(x);
        nonzero += !is_nan(x) && x != 0.0;
    }
    scorable = team.reduce(scorable, (i64)0, Sum());
    nonzero = team.reduce(nonzero, (i64)0, Sum());
    return (double)(nonzero > 1 ? nonzero : 1) / (double)(scorable > 1 ? scorable : 1);
}

// Mean excess over the smallest reward, weighted by length; NaN if there is no token.
template <class R>
__device__ __forceinline__ double weighted_rise(const Rewards<R>& r,
                                                const GroupAdvantageParams<R>& p, double low) {
    double total = 0.0, sum = 0.0;
    for (i64 i = threadIdx.x % WARP; i < r.count; i += WARP) {
        const double x = r(i), weight = (double)p.length.get(r.first + i);
        if (is_nan(x)) continue;
        total += weight;
        sum += weight * (x - low);
    }
    total = warp_reduce(total, Sum());
    sum = warp_reduce(sum, Sum());
    return total > 0.0 ? sum / total : NAN_F64;
}

// The largest reward at a place other than `skip`, and the first place it stands at; -1 if none.
template <class R>
__device__ __forceinline__ i64 best_place(const Rewards<R>& r, i64 skip, double* best) {
    double high = -INF_F64;
    for (i64 i = threadIdx.x % WARP; i < r.count; i += WARP) {
        const double x = r(i);
        if (i != skip && !is_nan(x)) high = fmax(high, x);
    }
    high = warp_reduce(high, Max());
    i64 place = r.count;
    for (i64 i = threadIdx.x % WARP; i < r.count; i += WARP)
        if (i != skip && r(i) == high && i < place) place = i;
    place = warp_reduce(place, Min());
    *best = high;
    return place < r.count ? place : -1;
}

// Variance of all others, about the first of them: 0 exactly where they are equal.
template <class R>
__device__ __forceinline__ double others_variance(const Rewards<R>& r, i64 skip, int ddof) {
    double base = NAN_F64, sum = 0.0, squares = 0.0;
    i64 count = 0;
    for (i64 j = 0; j < r.count; ++j) {
        const double x = r(j);
        if (j == skip || is_nan(x)) continue;
        if (count++ == 0) base = x;
        sum += x - base;
    }
    if (count <= ddof) return 0.0;
    const double rise = sum / (double)count;
    for (i64 j = 0; j < r.count; ++j) {
        const double x = r(j), d = x - base - rise;
        if (j != skip && !is_nan(x)) squares += d * d;
    }
    return squares / (double)(count - ddof);
}

template <class R>
__device__ __forceinline__ void one_group(const GroupAdvantageParams<R>& p, i64 g, double batch) {
    const i64 lane = threadIdx.x % WARP;
    const Span own = span(p.offsets, g, p.samples);
    const Rewards<R> r = {p.reward, own.begin, own.end - own.begin};
    const Moments m = moments(r.count, r, p.ddof, WarpTeam());
    const bool raw = !p.compares || (m.count == 1 && p.raw_single);
    if (p.stats && lane == 0)
        p.stats[g] = {r.count, m.count, m.min + m.rise, sqrt(m.variance), m.equal};

    // numerator_i = (r_i - min - rise)·factor, or what the baseline makes of it.
    double rise = m.rise, factor = 1.0, best = 0.0, second = 0.0;
    i64 winner = -1;
    const bool compared = !raw && !m.equal;
    if (compared && p.baseline == BASELINE_LENGTH) rise = weighted_rise(r, p, m.min);
    if (compared && p.baseline == BASELINE_LEAVE_ONE_OUT)
        factor = (double)m.count / (double)(m.count - 1);
    if (compared && p.baseline == BASELINE_MAX2) {
        winner = best_place(r, -1, &best);
        if (best_place(r, winner, &second) < 0) winner = -1;
    }
    double divisor = 1.0;
    if (p.scale == SCALE_BATCH_STD || p.scale == SCALE_NONZERO_SHARE) divisor = batch;
    if (p.scale == SCALE_GROUP_STD)
        divisor = guarded_std(raw ? 1.0 : m.variance, p.eps, p.eps_form);

    for (i64 i = lane; i < r.count; i += WARP) {
        const double x = r(i);
        double a = 0.0;
        if (raw || (compared && p.baseline == BASELINE_NONE)) a = x;
        else if (compared && p.baseline == BASELINE_MAX2) a = i == winner ? best - second : 0.0;
        else if (compared && !is_nan(rise)) a = (x - m.min - rise) * factor;
        double d = divisor;
        if (p.scale == SCALE_LOO_STD && !raw) {
            const double variance = others_variance(r, i, p.ddof);
            d = variance > 0.0 ? guarded_std(variance, p.eps, p.eps_form) : 1.0;
        }
        const bool zero = is_nan(x) || d == 0.0 || a == 0.0;
        p.advantage.set(own.begin + i, from_f64<R>(zero ? 0.0 : a / d));
    }
}

template <class R>
__device__ __forceinline__ void group_advantage(const GroupAdvantageParams<R>& p) {
    check_enum(p.baseline, BASELINE_MAX2);
    check_enum(p.scale, SCALE_NONZERO_SHARE);
    check_enum(p.eps_form, EPS_FORM_FLOOR_VARIANCE);
    __shared__ double partial[THREADS / WARP];
    double batch = 1.0;
    if (p.scale == SCALE_BATCH_STD || p.scale == SCALE_NONZERO_SHARE)
        batch = batch_divisor<R>(p, partial);
    const i64 g = (i64)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (g < p.groups) one_group<R>(p, g, batch);
}

KERNEL(group_advantage_f32, (THREADS), GroupAdvantageParams<float>) { group_advantage<float>(p); }
KERNEL(group_advantage_f64, (THREADS), GroupAdvantageParams<double>) { group_advantage<double>(p); }
