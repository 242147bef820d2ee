// value[t] = D(p, q) between two softmax distributions over the vocabulary, policy q and reference
// p, and its gradient by the policy's logits.
//
//     forward KL       Σ p·log(p/q)                         dD/dz = q - p
//     reverse KL       Σ q·log(q/p)                         q·(log(q/p) - D)
//     JSD              β·KL(p|m) + (1 - β)·KL(q|m)          (1 - β)·q·(log(q/m) - KL(q|m))
//                      m = β·p + (1 - β)·q                  (GKD, arXiv:2306.13649, eq. 1)
//     total variation  ½·Σ |p - q|                          q·(½·sgn(q - p) - Σ q·½·sgn(q - p))
//
// With a guide u the reference is u + γ·(c - u), c the reference row (arXiv:2207.12598).
//
// | operand                  | shape        | dtype          | layout                   |
// |--------------------------|--------------|----------------|--------------------------|
// | policy, reference, guide | [T, V_alloc] | f32, bf16, f16 | rows contiguous; V exist |
// | dvalue, value            | [T]          | f32            | any stride               |
// | dpolicy                  | [T, V_alloc] | as policy      | rows contiguous          |
//
// Mapping: one block or cluster per row (rows.cuh), with the slices of two or three rows side by
// side in shared memory: two rows of 151,936 bf16 take a cluster of 8. Threads stride over vectors.
// Three sweeps: both rows' sums; the divergence, or the mean that the gradient subtracts; the
// gradient. Forward KL's gradient needs no mean, and so no second sweep.
// Traffic: 2·T·V elements read (3 with a guide), T·V written by the gradient. Counted by the
// emulator (bf16, 4 x 151,936): bytes 1.000 and 1.002 of the least; warp instructions per 32
// columns 88 (forward KL), 91 (reverse KL, total variation), 218 (JSD); gradients 91, 138, 144,
// 265. Not yet measured on hardware.
//
// 1. Staging (rows.cuh): the sweeps read memory once. Without it the value would move 2 times and
//    the gradient 2.3 times the bytes (derived: 4·T·V of 2, 7·T·V of 3).
// 2. No term cancels. KL's term is b - a - a·x with x = log(b/a): never negative, and the sum is
//    the divergence because both rows add up to 1. Below |x| = ½ it is a series in x.
// 3. Both normalizers enter as one shift of delta = log q - log p, so equal rows give exactly 0.
//
// Numerics: terms in f32, in four chains per thread; the sums of threads and all normalizers in
// f64. Values are within 4 ulp of f32 at the size of max(|value|, 1).
// A token that only the weighting row can produce makes a KL infinite; a token of weight 0 adds
// nothing. A row of -inf alone has no divergence from another.
#include "row_sums.cuh"
#include "vocab_kl.h"

// Where |x| is smaller, e^x - 1 and e^x - 1 - x are series; elsewhere they do not cancel.
static constexpr float SMALL = 0.5f;

// (e^x - 1 - x) / x².
__device__ __forceinline__ float exp_tail(float x) {
    float y = 1.0f / 40320.0f;
    y = __fmaf_rn(y, x, 1.0f / 5040.0f);
    y = __fmaf_rn(y, x, 1.0f / 720.0f);
    y = __fmaf_rn(y, x, 1.0f / 120.0f);
    y = __fmaf_rn(y, x, 1.0f / 24.0f);
    y = __fmaf_rn(y, x, 1.0f / 6.0f);
    return __fmaf_rn(y, x, 0.5f);
}

// e^x - 1.
__device__ __forceinline__ float exp_less_one(float x) {
    const float small = __fmaf_rn(x * x, exp_tail(x), x);
    return fabsf(x) < SMALL ? small : ptx_ex2(1.442695041f * x) - 1.0f;
}

// log(1 + y): 2·artanh(y/(2 + y)) near 0.
__device__ __forceinline__ float log_one_plus(float y) {
    const float z = y * ptx_rcp(2.0f + y), s = z * z;
    float small = 2.0f / 13.0f;
    small = __fmaf_rn(small, s, 2.0f / 11.0f);
    small = __fmaf_rn(small, s, 2.0f / 9.0f);
    small = __fmaf_rn(small, s, 2.0f / 7.0f);
    small = __fmaf_rn(small, s, 2.0f / 5.0f);
    small = __fmaf_rn(small, s, 2.0f / 3.0f);
    small = __fmaf_rn(small, s, 2.0f);
    return fabsf(y) < SMALL ? small * z : 0.6931471806f * ptx_lg2(1.0f + y);
}

// One column's term of KL(a‖b), x = log b - log a: b - a - a·x >= 0. The sum over a row is the
// divergence, as both add up to 1; no term cancels another.
__device__ __forceinline__ float kl_term(float a, float b, float x) {
    if (a == 0.0f) return b;
    return fabsf(x) < SMALL ? a * (x * x) * exp_tail(x) : (b - a) - a * x;
}

// b - a.
__device__ __forceinline__ float gap(float a, float b, float x) {
    return fabsf(x) < SMALL ? a * __fmaf_rn(x * x, exp_tail(x), x) : b - a;
}

// A row as the divergences see it: p(t) = 2^((t - top)·c) / sum.
struct Softmax {
    float top, inverse, log_sum;
    bool empty;
};

__device__ __forceinline__ Softmax softmax(const RowStats& r) {
    if (r.empty()) return {LOWEST, 0.0f, 0.0f, true};
    return {r.top, (float)(1.0 / r.sum), (float)log(r.sum), false};
}

// One column of both distributions.
struct Pair {
    float p, q;
    float delta;  // log q - log p
};

// Both rows, normalized, and the divergence between them column by column.
struct Divergence {
    const VocabKlParams& params;
    const RowSet& s;
    Softmax q, p;
    float shift;  // lse of q - lse of p

    __device__ __forceinline__ Pair pair(float tq, float tp) const {
        const float a = tq - q.top, b = tp - p.top;
        Pair c;
        c.q = ptx_ex2(ptx_max_nan(a * s.log2_scale, FLOOR)) * q.inverse;
        c.p = ptx_ex2(ptx_max_nan(b * s.log2_scale, FLOOR)) * p.inverse;
        c.delta = __fmaf_rn(tq - tp, (float)s.logit_scale, -shift);
        if (c.p == 0.0f && c.q == 0.0f) c.delta = 0.0f;
        return c;
    }

    // log(m/p) and log(m/q), m = β·p + (1 - β)·q.
    __device__ __forceinline__ float mixture_to_p(Pair c) const {
        return log_one_plus((1.0f - params.beta) * exp_less_one(c.delta));
    }
    __device__ __forceinline__ float mixture_to_q(Pair c) const {
        return log_one_plus(params.beta * exp_less_one(-c.delta));
    }
    __device__ __forceinline__ float mixture(Pair c) const {
        return __fmaf_rn(params.beta, c.p, (1.0f - params.beta) * c.q);
    }

    __device__ __forceinline__ float half_sign(Pair c) const {
        return c.delta > 0.0f ? 0.5f : c.delta < 0.0f ? -0.5f : 0.0f;
    }

    // One column's share of the value, or of what the gradient subtracts from each column.
    template <bool VALUE> __device__ __forceinline__ float term(Pair c) const {
        if (params.kind == DIVERGENCE_KIND_FORWARD_KL) return kl_term(c.p, c.q, c.delta);
        if (params.kind == DIVERGENCE_KIND_REVERSE_KL) return kl_term(c.q, c.p, -c.delta);
        if (params.kind == DIVERGENCE_KIND_TOTAL_VARIATION)
            return VALUE ? 0.5f * fabsf(gap(c.p, c.q, c.delta)) : c.q * half_sign(c);
        const float m = mixture(c), from_q = kl_term(c.q, m, mixture_to_q(c));
        if (!VALUE) return from_q;
        return params.beta * kl_term(c.p, m, mixture_to_p(c)) + (1.0f - params.beta) * from_q;
    }

    // dvalue/dz of one column.
    __device__ __forceinline__ float gradient(Pair c, float mean) const {
        if (params.kind == DIVERGENCE_KIND_FORWARD_KL) return gap(c.p, c.q, c.delta);
        if (c.q == 0.0f) return 0.0f;
        if (params.kind == DIVERGENCE_KIND_REVERSE_KL) return c.q * (c.delta - mean);
        if (params.kind == DIVERGENCE_KIND_TOTAL_VARIATION) return c.q * (half_sign(c) - mean);
        return (1.0f - params.beta) * c.q * (-mixture_to_q(c) - mean);
    }
};

// The logits of policy, reference and guide that a block reads.
template <class T> struct Rows {
    static constexpr int N = Vec16<T>::N;
    const VocabKlParams& params;
    const RowSet& s;
    RowSlice<T> policy, reference, guide;
    uint4 *staged_policy, *staged_reference, *staged_guide;

    __device__ __forceinline__ Rows(const VocabKlParams& params, int rank, i64 i, uint4* staged)
        : params(params),
          s(params.set),
          policy(s, (const T*)params.policy + i * params.policy_stride, rank),
          reference(s, (const T*)params.reference + i * params.reference_stride, rank),
          guide(
              s,
              (const T*)(params.guide ? params.guide : params.reference) + i * params.guide_stride,
              rank),
          staged_policy(s.staged_words ? staged : nullptr),
          staged_reference(s.staged_words ? staged + s.staged_words : nullptr),
          staged_guide(s.staged_words ? staged + 2 * s.staged_words : nullptr) {}

    // u + γ·(c - u); -inf on both sides stays -inf.
    __device__ __forceinline__ float guided(float c, float u) const {
        return c == u ? c : params.gamma == 0.0f ? u : __fmaf_rn(params.gamma, c - u, u);
    }

    // t of N columns of policy and teacher, -inf where there is no column.
    __device__ __forceinline__ void read(i64 column, float (&tq)[N], float (&tp)[N]) const {
        const Vec16<T> x = read_columns(policy, staged_policy, column);
        const Vec16<T> c = read_columns(reference, staged_reference, column);
        widen(x, tq);
        widen(c, tp);
        transform_all(s, tq);
        transform_all(s, tp);
        if (params.guide) {
            const Vec16<T> v = read_columns(guide, staged_guide, column);
            float u[N];
            widen(v, u);
            transform_all(s, u);
#pragma unroll
            for (int n = 0; n < N; ++n) tp[n] = guided(tp[n], u[n]);
        }
        if (column + N > s.vocab) {
#pragma unroll
            for (int n = 0; n < N; ++n)
                if (column + n >= s.vocab) tq[n] = tp[n] = -INF_F32;
        }
    }

    __device__ __forceinline__ void stage() const {
        if (!staged_policy) return;
        stage_slice(policy, staged_policy);
        stage_slice(reference, staged_reference);
        if (params.guide) stage_slice(guide, staged_guide);
        __syncthreads();
    }

    // A thread's vectors of columns are THREADS vectors apart.
    __device__ __forceinline__ i64 first_column() const {
        return (policy.first * TILE + threadIdx.x) * N;
    }
    __device__ __forceinline__ i64 end_column() const {
        return min(policy.end * TILE * N, s.vocab);
    }
};

// First sweep: stages the rows, and forms both normalizers.
template <class T>
__device__ __forceinline__ Divergence normalize(const Rows<T>& rows, RowShared& shared) {
    constexpr int N = Vec16<T>::N;
    const RowSet& s = rows.s;
    rows.stage();
    OnlineSums of_q, of_p;
    for (i64 v = rows.first_column(); v < rows.end_column(); v += THREADS * N) {
        float tq[N], tp[N];
        rows.read(v, tq, tp);
        accumulate<N, false>(of_q, tq, s.log2_scale, -2);
        accumulate<N, false>(of_p, tp, s.log2_scale, -2);
    }
    const RowStats a = reduce_stats(of_q, s, false, false, shared);
    const RowStats b = reduce_stats(of_p, s, false, false, shared);
    Divergence d = {rows.params, s};
    d.q = softmax(a), d.p = softmax(b);
    d.shift =
        a.empty() || b.empty()
            ? 0.0f
            : (float)(s.logit_scale * ((double)a.top - (double)b.top) + (log(a.sum) - log(b.sum)));
    return d;
}

// Second sweep: Σ over the columns. A row without a token that can occur has no divergence from
// another.
template <bool VALUE, class T>
__device__ __forceinline__ float sum(const Rows<T>& rows, const Divergence& d, RowShared& shared) {
    constexpr int N = Vec16<T>::N;
    float sum[4] = {};
    for (i64 v = rows.first_column(); v < rows.end_column(); v += THREADS * N) {
        float tq[N], tp[N];
        rows.read(v, tq, tp);
#pragma unroll
        for (int n = 0; n < N; ++n) sum[n % 4] += d.term<VALUE>(d.pair(tq[n], tp[n]));
    }
    const VocabKlParams& params = rows.params;
    const double all =
        row_reduce((double)((sum[0] + sum[1]) + (sum[2] + sum[3])), 0.0, Sum(), rows.s, shared);
    if ((params.kind == DIVERGENCE_KIND_FORWARD_KL && d.p.empty) ||
        (params.kind == DIVERGENCE_KIND_REVERSE_KL && d.q.empty))
        return 0.0f;
    // Without p the mixture adds up to 1 - β only.
    return (float)(!VALUE && params.kind == DIVERGENCE_KIND_JSD && d.p.empty
                       ? all + (double)params.beta
                       : all);
}

template <class T> __device__ __forceinline__ void vocab_kl(const VocabKlParams& p) {
    check_enum(p.kind, DIVERGENCE_KIND_TOTAL_VARIATION);
    __shared__ RowShared shared;
    extern __shared__ uint4 rows_on_chip[];
    const RowBlock block(p.set);
    const i64 i = block.row;
    const Rows<T> rows(p, block.rank, i, rows_on_chip);
    const Divergence d = normalize(rows, shared);
    const float value = sum<true>(rows, d, shared);
    if (block.leads()) p.value.set(i, value);
}

template <class T> __device__ __forceinline__ void vocab_kl_bwd(const VocabKlParams& p) {
    check_enum(p.kind, DIVERGENCE_KIND_TOTAL_VARIATION);
    constexpr int N = Vec16<T>::N;
    __shared__ RowShared shared;
    extern __shared__ uint4 rows_on_chip[];
    const RowBlock block(p.set);
    const i64 i = block.row;
    const Rows<T> rows(p, block.rank, i, rows_on_chip);
    const Divergence d = normalize(rows, shared);
    const float mean = p.kind == DIVERGENCE_KIND_FORWARD_KL ? 0.0f : sum<false>(rows, d, shared);
    const float g = p.dvalue.get(i), k = (float)p.set.logit_scale;
    T* out = (T*)p.dpolicy + i * p.out_stride;
    const auto gradient = [&](Vec16<T>& v, i64 column) {
        float tq[N], tp[N];
        rows.read(column, tq, tp);
        float dx[N];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float dz = d.gradient(d.pair(tq[n], tp[n]), mean);
            dx[n] = g == 0.0f ? 0.0f : k * (g * dz);
        }
        times_derivative(p.set, v, dx);
#pragma unroll
        for (int n = 0; n < N; ++n) v.at[n] = from_f32<T>(dx[n]);
    };
    write_slice(rows.policy, p.set, out, block.rank, rows.staged_policy, true, gradient);
}

KERNEL(vocab_kl_f32, (THREADS, 2), VocabKlParams) { vocab_kl<float>(p); }
KERNEL(vocab_kl_bf16, (THREADS, 2), VocabKlParams) { vocab_kl<bf16>(p); }
KERNEL(vocab_kl_f16, (THREADS, 2), VocabKlParams) { vocab_kl<f16>(p); }
KERNEL(vocab_kl_bwd_f32, (THREADS, 2), VocabKlParams) { vocab_kl_bwd<float>(p); }
KERNEL(vocab_kl_bwd_bf16, (THREADS, 2), VocabKlParams) { vocab_kl_bwd<bf16>(p); }
KERNEL(vocab_kl_bwd_f16, (THREADS, 2), VocabKlParams) { vocab_kl_bwd<f16>(p); }
