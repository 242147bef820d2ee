// logp[t] = z[t, y] - log Σ_v exp(z[t, v]) with y = target[t], what else a row's sums say, and the
// gradient of all of it: log-softmax and gather in one pass, no row of probabilities in memory.
//
//     dx_v = [g·1[v = y] + q_v·(g_lse - g + g_H·(E - z_v))]·dz/dx,   q = softmax(z), E = Σ q·z
//
// | operand                        | shape        | dtype          | layout                       |
// |--------------------------------|--------------|----------------|------------------------------|
// | logits x                       | [T, V_alloc] | f32, bf16, f16 | rows contiguous; V exist     |
// | target                         | [T]          | i32            | any stride; -100: no target  |
// | logp, lse, entropy, log_sum_sq | [T]          | f32            | any stride, may be missing   |
// | top1                           | [T]          | u8             | any stride, may be missing   |
// | dlogp, dentropy, dlse          | [T]          | f32            | any stride; missing is 0     |
// | dlogits                        | [T, V_alloc] | as logits      | rows contiguous; may alias x |
//
// Mapping: one block or cluster per row, tiles to warps (rows.cuh). `logprob` reads the slice once.
// `logprob_bwd` reads it into shared memory while it adds, then goes over it again and writes; with
// dlogits = logits and logp it is the fused op: both passes, in place.
// Traffic: T·V elements read, and as many written by the gradient. One exponential per logit, two
// with the gradient. Counted by the emulator (bf16, 4 x 151,936, warp instructions per 32 logits):
// 12.4, with entropy 16.6, the gradient 37.8; bytes 1.004 and 1.005 of the least. Measured on an
// H200, 32 x 151,936: bf16 11.6 µs and 23.1 µs for the gradient (18 % of the floor), f32 13.5 µs
// (30 %) and 34.0 µs (24 %).
//
// The gradient as a polynomial: with e = 2^d, d = (t - top)·c from the sums (row_sums.cuh), it is
// e·(constant + linear·d) for every column but the target's. Both coefficients are formed once per
// row in f64; a logit costs one exponential and one fma after that.
//
// 1. Staging (rows.cuh): the gradient moves 2·T·V elements, not 3·T·V: bytes 1.005 in place of 1.5.
// 2. The online sums rescale once per tile: 12.4 instructions, 13.9 if once per vector of 8.
// 3. Moments (entropy, Σ p²) are a template argument: 4.2 instructions per 32 logits less without.
//
// Numerics: sums as in row_sums.cuh; logp, lse and entropy are within 4 ulp of f32 of the exact
// value, at the size of max(|logp|, |lse|, 1). The target's own gradient is formed in f64 from
// `rest`, so that 1 - q does not cancel where q is close to 1. Missing targets (-100) give zeros,
// targets out of range NaN; columns V to V_alloc of dlogits become 0. -inf logits have gradient 0.
#include "row_sums.cuh"
#include "logprob.h"

// True if some logit beats the target's: it is larger, or equal and before it. Reads the row again.
template <class T>
__device__ __forceinline__ bool beaten(const RowSet& s, const T* row, i64 target) {
    const float sign = s.inner_scale < 0.0f ? -1.0f : 1.0f;
    const float x = to_f32(row[target]), y = x == -INF_F32 ? x : sign * x;
    bool found = false;
    for (i64 i = threadIdx.x; i < s.vocab; i += THREADS) {
        const float other = to_f32(row[i]), z = other == -INF_F32 ? other : sign * other;
        found |= z > y || (z == y && i < target);
    }
    return __syncthreads_or(found);
}

template <class T> __device__ __forceinline__ void logprob(const LogProbParams& p) {
    __shared__ RowShared shared;
    const RowSet& s = p.set;
    const RowBlock block(s);
    const i64 i = block.row;
    const T* row = (const T*)p.logits + i * p.row_stride;
    const i64 y = p.target.get(i);
    const bool first = block.leads();
    if (y < 0 || y >= s.vocab) {
        const float nothing = y == IGNORE ? 0.0f : NAN_F32;
        if (first) {
            p.logp.set(i, nothing), p.lse.set(i, nothing), p.entropy.set(i, nothing);
            p.log_sum_sq.set(i, nothing), p.top1.set(i, 0);
        }
        return;
    }
    const bool moments = p.entropy.at || p.log_sum_sq.at;
    const RowStats r = row_stats(RowSlice<T>(s, row, block.rank), s, -1, moments, nullptr, shared);
    if (block.rank != 0) return;
    const float t = transform(s, to_f32(row[y]));
    if (p.top1.at) {
        // Bent logits tell order up to the rounding of tanh; ties are told by place.
        const bool close = !(t < r.top - 1e-6f * fabsf(r.top)) || r.top == LOWEST;
        const bool top = close && !beaten(s, row, y);
        if (first) p.top1.set(i, top);
    }
    if (threadIdx.x >= WARP) return;
    const float logp = row_logp(s, r, t), lse = row_lse(s, r);
    const float h = row_entropy(r), squares = log(r.squares) - 2.0 * log(r.sum);
    if (first)
        p.logp.set(i, logp), p.lse.set(i, lse), p.entropy.set(i, h), p.log_sum_sq.set(i, squares);
}

// dz = q·(b + c·d) in terms of the powers of two that the sums are made of, and the target's own.
struct RowGradient {
    float constant, linear;  // of 2^d and d·2^d
    float target;
};

template <class T>
__device__ __forceinline__ RowGradient row_gradient(const LogProbBwdParams& p, const RowStats& r,
                                                    i64 i, float x) {
    const RowSet& s = p.set;
    const double g = p.dlogp.get(i), gh = p.dentropy.get(i), gl = p.dlse.get(i);
    const double inverse = r.empty() ? 0.0 : 1.0 / r.sum, mean = LN2 * r.weighted * inverse;
    const double t = transform(s, x),
                 q = (double)ptx_ex2(log2_weight(t, r.top, s.log2_scale)) * inverse;
    // 1 - q as the share of all others: it does not cancel where q is close to 1.
    const double others = r.empty() ? 1.0 : r.rest * inverse;
    const double here =
        g * others +
        (q == 0.0 ? 0.0 : q * (gl + gh * (mean - s.logit_scale * (t - (double)r.top))));
    RowGradient d;
    d.constant = (gl - g + gh * mean) * inverse * s.logit_scale;
    d.linear = -gh * LN2 * inverse * s.logit_scale;
    d.target = here * s.logit_scale * (double)transform_derivative(s, x);
    return d;
}

template <class T> __device__ __forceinline__ void logprob_bwd(const LogProbBwdParams& p) {
    constexpr int N = Vec16<T>::N;
    __shared__ RowShared shared;
    extern __shared__ uint4 row_on_chip[];
    const RowSet& s = p.set;
    const RowBlock block(s);
    const i64 i = block.row;
    const RowSlice<T> slice(s, (const T*)p.logits + i * p.row_stride, block.rank);
    T* out = (T*)p.dlogits + i * p.out_stride;
    uint4* staged = s.staged_words ? row_on_chip : nullptr;
    const i64 y = p.target.get(i);
    const bool first = block.leads();
    if (y < 0 || y >= s.vocab) {
        const float nothing = y == IGNORE ? 0.0f : NAN_F32;
        if (first) p.logp.set(i, nothing), p.entropy.set(i, nothing);
        write_slice(slice, s, out, block.rank, staged, false, [](Vec16<T>&, i64) {});
        return;
    }
    const float x = to_f32(slice.row[y]);
    const RowStats r = row_stats(slice, s, y, p.dentropy.at || p.entropy.at, staged, shared);
    const RowGradient d = row_gradient<T>(p, r, i, x);
    write_slice(slice, s, out, block.rank, staged, true, [&](Vec16<T>& v, i64 column) {
        float t[N], dz[N];
        widen(v, t);
        transform_all(s, t);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const float power = log2_weight(t[k], r.top, s.log2_scale), e = ptx_ex2(power);
            dz[k] = e == 0.0f && r.sum == r.sum ? 0.0f : e * __fmaf_rn(power, d.linear, d.constant);
        }
        times_derivative(s, v, dz);
#pragma unroll
        for (int k = 0; k < N; ++k) v.at[k] = from_f32<T>(dz[k]);
        if (column <= y && y < column + N) {
#pragma unroll
            for (int k = 0; k < N; ++k)
                if (column + k == y) v.at[k] = from_f32<T>(d.target);
        }
    });
    if (block.rank != 0 || threadIdx.x >= WARP) return;
    const float logp = row_logp(s, r, transform(s, x)), h = row_entropy(r);
    if (first) p.logp.set(i, logp), p.entropy.set(i, h);
}

KERNEL(logprob_f32, (THREADS, 3), LogProbParams) { logprob<float>(p); }
KERNEL(logprob_bf16, (THREADS, 3), LogProbParams) { logprob<bf16>(p); }
KERNEL(logprob_f16, (THREADS, 3), LogProbParams) { logprob<f16>(p); }
KERNEL(logprob_bwd_f32, (THREADS, 3), LogProbBwdParams) { logprob_bwd<float>(p); }
KERNEL(logprob_bwd_bf16, (THREADS, 3), LogProbBwdParams) { logprob_bwd<bf16>(p); }
KERNEL(logprob_bwd_f16, (THREADS, 3), LogProbBwdParams) { logprob_bwd<f16>(p); }
