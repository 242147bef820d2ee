#include "rows.cuh"

struct LogProbParams {
    RowSet set;
    const void* logits;
    i64 row_stride;
    Column<const i32> target;
    Column<float> logp, lse, entropy, log_sum_sq;
    Column<u8> top1;
};

struct LogProbBwdParams {
    RowSet set;
    const void* logits;
    void* dlogits;
    i64 row_stride, out_stride;
    Column<const i32> target;
    Column<const float> dlogp, dentropy, dlse;
    Column<float> logp, entropy;
};

// True if some logit beats the target's: it is larger, or equal and before it. Reads the row again.
template <class T>
__device__ __forceinline__ bool beaten(const RowSet& s, const T* row, i64 target) {
    const float sign = s.a < 0.0f ? -1.0f : 1.0f;
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
    const int rank = s.cluster == 1 ? 0 : ptx_cluster_rank();
    const i64 i = blockIdx.x >> s.shift;
    const T* row = (const T*)p.logits + i * p.row_stride;
    const i64 y = p.target.get(i);
    const bool first = rank == 0 && threadIdx.x == 0;
    if (y < 0 || y >= s.vocab) {
        const float nothing = y == IGNORE ? 0.0f : NAN_F32;
        if (first) {
            p.logp.set(i, nothing), p.lse.set(i, nothing), p.entropy.set(i, nothing);
            p.log_sum_sq.set(i, nothing), p.top1.set(i, 0);
        }
        return;
    }
    const bool moments = p.entropy.at || p.log_sum_sq.at;
    const RowStats r = row_stats(Part<T>(s, row, rank), s, -1, moments, nullptr, shared);
    if (rank != 0) return;
    const float t = bend(s, to_f32(row[y]));
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
    const double t = bend(s, x), q = (double)ptx_ex2(log2_weight(t, r.top, s.c)) * inverse;
    // 1 - q as the share of all others: it does not cancel where q is close to 1.
    const double others = r.empty() ? 1.0 : r.rest * inverse;
    const double here =
        g * others + (q == 0.0 ? 0.0 : q * (gl + gh * (mean - s.k * (t - (double)r.top))));
    RowGradient d;
    d.constant = (gl - g + gh * mean) * inverse * s.k;
    d.linear = -gh * LN2 * inverse * s.k;
    d.target = here * s.k * (double)slope(s, x);
    return d;
}

template <class T> __device__ __forceinline__ void logprob_bwd(const LogProbBwdParams& p) {
    constexpr int N = Vec16<T>::N;
    __shared__ RowShared shared;
    extern __shared__ uint4 row_on_chip[];
    const RowSet& s = p.set;
    const int rank = s.cluster == 1 ? 0 : ptx_cluster_rank();
    const i64 i = blockIdx.x >> s.shift;
    const Part<T> part(s, (const T*)p.logits + i * p.row_stride, rank);
    T* out = (T*)p.dlogits + i * p.out_stride;
    uint4* held = s.held ? row_on_chip : nullptr;
    const i64 y = p.target.get(i);
    const bool first = rank == 0 && threadIdx.x == 0;
    if (y < 0 || y >= s.vocab) {
        const float nothing = y == IGNORE ? 0.0f : NAN_F32;
        if (first) p.logp.set(i, nothing), p.entropy.set(i, nothing);
        write_part(part, s, out, rank, held, false, [](Vec16<T>&, i64) {});
        return;
    }
    const float x = to_f32(part.row[y]);
    const RowStats r = row_stats(part, s, y, p.dentropy.at || p.entropy.at, held, shared);
    const RowGradient d = row_gradient<T>(p, r, i, x);
    write_part(part, s, out, rank, held, true, [&](Vec16<T>& v, i64 column) {
        float t[N], dz[N];
        widen(v, t);
        bend_all(s, t);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const float power = log2_weight(t[k], r.top, s.c), e = ptx_ex2(power);
            dz[k] = e == 0.0f && r.sum == r.sum ? 0.0f : e * __fmaf_rn(power, d.linear, d.constant);
        }
        times_slope(s, v, dz);
#pragma unroll
        for (int k = 0; k < N; ++k) v.at[k] = from_f32<T>(dz[k]);
        if (column <= y && y < column + N) {
#pragma unroll
            for (int k = 0; k < N; ++k)
                if (column + k == y) v.at[k] = from_f32<T>(d.target);
        }
    });
    if (rank != 0 || threadIdx.x >= WARP) return;
    const float logp = row_logp(s, r, bend(s, x)), h = row_entropy(r);
    if (first) p.logp.set(i, logp), p.entropy.set(i, h);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) logprob_f32(const LogProbParams p) {
    logprob<float>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) logprob_bf16(const LogProbParams p) {
    logprob<bf16>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) logprob_f16(const LogProbParams p) {
    logprob<f16>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) logprob_bwd_f32(const LogProbBwdParams p) {
    logprob_bwd<float>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    logprob_bwd_bf16(const LogProbBwdParams p) {
    logprob_bwd<bf16>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) logprob_bwd_f16(const LogProbBwdParams p) {
    logprob_bwd<f16>(p);
}
