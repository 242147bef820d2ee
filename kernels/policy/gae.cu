// Advantages, returns and shaped rewards along packed sequences, and whitening over a batch.
//
//     gae                A_t = r_t + gamma·V_t' - V_t + gamma·lambda·A_t'
//                        (arXiv:1506.02438, eq. 16)
//     discounted_return  G_t = r_t + gamma·G_t' (- baseline)    (arXiv:2501.03262, 2310.10505)
//     kl_reward          r_t = -beta·KL_t, + score on the last action    (arXiv:1909.08593, eq. 2)
//     whiten             y_t = (x_t - mean) / sigma over the whole batch
//
// t' is the next token of the sequence that the mask lets through.
//
// | operand                                     | shape   | dtype    | layout                   |
// |---------------------------------------------|---------|----------|--------------------------|
// | reward, value, logp, reference, x, outputs  | [T]     | f32, f64 | any stride               |
// | bootstrap, baseline, score                  | [B]     | f32, f64 | any stride               |
// | mask                                        | [T]     | u8       | any stride, may be null  |
// | cu_seqlens                                  | [B + 1] | i64      | clamped to 0..=T         |
//
// Mapping: one block per sequence, 256 neighboring tokens at a time from the end; whiten: one block
// per 4,096 tokens. One launch each, two for whiten.
// Traffic: each column once; whiten's x twice from memory and twice from L1. About 40 flops a
// token.
//
//     for each tile of 256 tokens, the last first:
//         step_t   what token t does to a number that comes from behind: x -> factor·x + sum
//         x_t      steps t + 1, t + 2, ... of the tile composed, applied to what entered the tile
//         out_t    from x_t and the token's own numbers
//
// The idea: the three recurrences are one scan over affine maps. gae has two numbers that come from
// behind, V_t' and A_t'; but x_t = V_t' + lambda·A_t' is all that is needed of them, and follows
// x <- (1 - lambda)·V + lambda·r + gamma·lambda·x. kl_reward passes on whether there was an action.
// Numerics: f64, rounded once. The order of the compositions depends on the sequence's length
// alone, the sums of whiten on T alone. Masked tokens are never read.
#include "moments.cuh"
#include "gae.h"

static constexpr int WARPS = THREADS / WARP;

// x -> factor·x + sum. A factor of 0 forgets x, whatever it is.
struct Step {
    double factor, sum;
    __device__ __forceinline__ double operator()(double x) const {
        return factor == 0.0 ? sum : fma(factor, x, sum);
    }
};

__device__ __forceinline__ Step chain(Step earlier, Step later) {
    return {earlier.factor * later.factor, earlier(later.sum)};
}

__device__ __forceinline__ Step shfl_down(Step s, int by) {
    return {__shfl_down_sync(ALL_LANES, s.factor, by), __shfl_down_sync(ALL_LANES, s.sum, by)};
}

// What reaches each thread's token from behind: the steps of all later threads applied to `carry`.
// `carry` becomes what leaves the tile at its front.
__device__ __forceinline__ double entering(Step step, double* carry) {
    __shared__ Step totals[WARPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int by = 1; by < WARP; by *= 2) {
        const Step later = shfl_down(step, by);
        if (lane + by < WARP) step = chain(step, later);
    }
    if (lane == 0) totals[warp] = step;
    Step behind = shfl_down(step, 1);
    if (lane == WARP - 1) behind = {1.0, 0.0};
    __syncthreads();
    double x = *carry, mine = 0.0;
#pragma unroll
    for (int w = WARPS - 1; w >= 0; --w) {
        if (w == warp) mine = x;
        x = totals[w](x);
    }
    __syncthreads();
    *carry = x;
    return behind(mine);
}

// `op.read(t)` gives a token, `op.step(token)` what it does, `op.write(t, token, x)` stores.
template <class Op> __device__ __forceinline__ void backward(const Op& op, Span r, double carry) {
    for (i64 end = r.end; end > r.begin; end -= THREADS) {
        const i64 t = end - THREADS + threadIdx.x;
        typename Op::Token token = {};
        if (t >= r.begin) token = op.read(t);
        const double x = entering(op.step(token), &carry);
        if (t >= r.begin) op.write(t, token, x);
    }
}

// ---- gae --------------------------------------------------------------------------------------

template <class R> struct GaeOp {
    struct Token {
        bool action;
        double reward, value;
    };
    const GaeParams<R>& p;
    __device__ __forceinline__ Token read(i64 t) const {
        if (!p.mask.get_or(t, 1)) return {};
        return {true, wide(p.reward, t), wide(p.value, t)};
    }
    __device__ __forceinline__ Step step(Token k) const {
        if (!k.action) return {1.0, 0.0};
        return {p.gamma * p.lambda, fma(p.lambda, k.reward - k.value, k.value)};
    }
    __device__ __forceinline__ void write(i64 t, Token k, double x) const {
        const double advantage = k.action ? fma(p.gamma, x, k.reward) - k.value : 0.0;
        p.advantage.set(t, from_f64<R>(advantage));
        p.returns.set(t, from_f64<R>(k.action ? advantage + k.value : 0.0));
    }
};

template <class R> __device__ __forceinline__ void gae(const GaeParams<R>& p) {
    const i64 b = blockIdx.x;
    backward(GaeOp<R>{p}, span(p.cu_seqlens, b, p.tokens), wide_or(p.bootstrap, b, 0.0));
}

KERNEL(gae_f32, (THREADS), GaeParams<float>) { gae<float>(p); }
KERNEL(gae_f64, (THREADS), GaeParams<double>) { gae<double>(p); }

// ---- discounted_return ------------------------------------------------------------------------

template <class R> struct ReturnOp {
    struct Token {
        bool action;
        double reward;
    };
    const DiscountedReturnParams<R>& p;
    double baseline;
    __device__ __forceinline__ Token read(i64 t) const {
        if (!p.mask.get_or(t, 1)) return {};
        return {true, wide(p.reward, t)};
    }
    __device__ __forceinline__ Step step(Token k) const {
        if (k.action) return {p.gamma, k.reward};
        return {p.reset ? 0.0 : 1.0, 0.0};
    }
    __device__ __forceinline__ void write(i64 t, Token k, double x) const {
        p.returns.set(t, from_f64<R>(k.action ? fma(p.gamma, x, k.reward) - baseline : 0.0));
    }
};

template <class R>
__device__ __forceinline__ void discounted_return(const DiscountedReturnParams<R>& p) {
    const i64 b = blockIdx.x;
    backward(ReturnOp<R>{p, wide_or(p.baseline, b, 0.0)}, span(p.cu_seqlens, b, p.tokens), 0.0);
}

KERNEL(discounted_return_f32, (THREADS), DiscountedReturnParams<float>) {
    discounted_return<float>(p);
}
KERNEL(discounted_return_f64, (THREADS), DiscountedReturnParams<double>) {
    discounted_return<double>(p);
}

// ---- kl_reward --------------------------------------------------------------------------------

template <class R> struct KlOp {
    struct Token {
        bool action;
        double d;
    };
    const KlRewardParams<R>& p;
    double score;
    __device__ __forceinline__ Token read(i64 t) const {
        if (!p.mask.get_or(t, 1)) return {};
        return {true, wide(p.logp, t) - wide(p.reference, t)};
    }
    // 1 behind an action, 0 where none follows.
    __device__ __forceinline__ Step step(Token k) const {
        return k.action ? Step{0.0, 1.0} : Step{1.0, 0.0};
    }
    // An estimator may overflow; a penalty of weight 0 must not turn that into NaN.
    __device__ __forceinline__ double penalty(double d) const {
        if (p.beta == 0.0) return 0.0;
        d = clamp(d, -p.clamp, p.clamp);
        if (p.estimator == REWARD_KL_K1) return p.beta * d;
        if (p.estimator == REWARD_KL_K2) return p.beta * (0.5 * d * d);
        if (p.estimator == REWARD_KL_K3) return p.beta * (expm1(-d) + d);
        return p.beta * fabs(d);
    }
    __device__ __forceinline__ void write(i64 t, Token k, double followed) const {
        const double end = followed == 0.0 ? score : 0.0;
        p.reward.set(t, from_f64<R>(k.action ? end - penalty(k.d) : 0.0));
    }
};

template <class R> __device__ __forceinline__ void kl_reward(const KlRewardParams<R>& p) {
    check_enum(p.estimator, REWARD_KL_ABS);
    const i64 b = blockIdx.x;
    backward(KlOp<R>{p, wide(p.score, b)}, span(p.cu_seqlens, b, p.tokens), 0.0);
}

KERNEL(kl_reward_f32, (THREADS), KlRewardParams<float>) { kl_reward<float>(p); }
KERNEL(kl_reward_f64, (THREADS), KlRewardParams<double>) { kl_reward<double>(p); }

// ---- whiten -----------------------------------------------------------------------------------

template <class R>
__device__ __forceinline__ Chunk chunk_moments(const WhitenParams<R>& p, i64 first) {
    __shared__ double partial[WARPS];
    const i64 n = p.tokens - first < CHUNK ? p.tokens - first : CHUNK;
    const auto value = [&](i64 i) {
        return p.mask.get_or(first + i, 1) ? wide(p.x, first + i) : NAN_F64;
    };
    const Moments m = moments(n, value, 0, BlockTeam<THREADS>{partial});
    if (m.count == 0) return {0, INF_F64, -INF_F64, 0.0, 0.0};
    return {m.count, m.min, m.equal ? m.min : INF_F64, m.rise, m.variance * (double)m.count};
}

// Moments of all chunks together: each counts as `count` values at its mean, plus its own spread.
__device__ __forceinline__ Chunk merged(const Chunk* chunks, i64 n) {
    __shared__ double partial[WARPS];
    const BlockTeam<THREADS> team = {partial};
    Chunk m = {0, INF_F64, -INF_F64, 0.0, 0.0};
    for (i64 i = threadIdx.x; i < n; i += THREADS) {
        m.count += chunks[i].count;
        m.low = fmin(m.low, chunks[i].low);
        m.high = fmax(m.high, chunks[i].high);
    }
    m.count = team.reduce(m.count, (i64)0, Sum());
    m.low = team.reduce(m.low, INF_F64, Min());
    m.high = team.reduce(m.high, -INF_F64, Max());
    if (m.count == 0) return {0, 0.0, 0.0, 0.0, 0.0};
    for (i64 i = threadIdx.x; i < n; i += THREADS) {
        const Chunk c = chunks[i];
        if (c.count) m.rise += (double)c.count * (c.low - m.low + c.rise);
    }
    m.rise = team.reduce(m.rise, 0.0, Sum()) / (double)m.count;
    for (i64 i = threadIdx.x; i < n; i += THREADS) {
        const Chunk c = chunks[i];
        const double d = c.low - m.low + c.rise - m.rise;
        if (c.count) m.squares += c.squares + (double)c.count * (d * d);
    }
    m.squares = team.reduce(m.squares, 0.0, Sum());
    return m;
}

// `count_eps` is added to the count in both means, which draws the mean itself toward 0.
template <class R>
__device__ __forceinline__ WhitenTotals totals_of(const WhitenParams<R>& p, Chunk m) {
    if (m.low == m.high) return {m.count, m.low, 0.0, 0.0, 0.0};
    const double count = (double)m.count, padded = count + p.count_eps;
    const double shift = (m.low + m.rise) * (p.count_eps / padded);
    const double squares = m.squares + count * (shift * shift);
    const double variance = squares / padded * (count / (count - (double)p.ddof));
    const double divisor = guarded_std(variance, p.eps, p.eps_form);
    return {m.count, m.low, m.rise - shift, variance, divisor == 0.0 ? 0.0 : 1.0 / divisor};
}

template <class R> __device__ __forceinline__ void whiten_moments(const WhitenParams<R>& p) {
    check_enum(p.eps_form, EPS_FORM_FLOOR_VARIANCE);
    const Chunk m = chunk_moments(p, (i64)blockIdx.x * CHUNK);
    if (threadIdx.x == 0) p.chunks[blockIdx.x] = m;
    if (!last_block(p.ticket, gridDim.x)) return;
    const Chunk all = merged(p.chunks, gridDim.x);
    if (threadIdx.x == 0) *p.totals = totals_of(p, all);
}

template <class R> __device__ __forceinline__ void whiten(const WhitenParams<R>& p) {
    const WhitenTotals m = *p.totals;
    const double back = p.shift_mean ? 0.0 : m.low + m.rise;
    const i64 first = (i64)blockIdx.x * CHUNK;
    const i64 end = first + CHUNK < p.tokens ? first + CHUNK : p.tokens;
    for (i64 t = first + threadIdx.x; t < end; t += THREADS) {
        double y = 0.0;
        if (p.mask.get_or(t, 1)) y = back;
        if (p.mask.get_or(t, 1) && m.inverse != 0.0)
            y += (wide(p.x, t) - m.low - m.rise) * m.inverse;
        p.y.set(t, from_f64<R>(y));
    }
}

KERNEL(whiten_moments_f32, (THREADS), WhitenParams<float>) { whiten_moments<float>(p); }
KERNEL(whiten_moments_f64, (THREADS), WhitenParams<double>) { whiten_moments<double>(p); }
KERNEL(whiten_f32, (THREADS), WhitenParams<float>) { whiten<float>(p); }
KERNEL(whiten_f64, (THREADS), WhitenParams<double>) { whiten<double>(p); }
