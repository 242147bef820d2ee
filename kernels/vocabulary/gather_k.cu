// logp[t, k] = z[t, ids[t, k]] - lse over the whole row or over the row's K ids, and its gradient:
// what distillation and replay of a sampler's top-k or top-p set need.
//
//     mass[t] = Σ_k p[t, ids[t, k]]
//     dx_v    = [Σ_k g_k·1[v = ids_k] - q_v·Σ_k g_k]·dz/dx,   q over the row, or over the ids
//
// | operand     | shape        | dtype          | layout                                       |
// |-------------|--------------|----------------|----------------------------------------------|
// | logits      | [T, V_alloc] | f32, bf16, f16 | rows contiguous; V exist                     |
// | ids         | [T, K]       | i32            | contiguous; distinct per row; -100: left out |
// | logp, dlogp | [T, K]       | f32            | rows contiguous                              |
// | mass        | [T]          | f32            | any stride, may be missing                   |
// | dlogits     | [T, V_alloc] | as logits      | rows contiguous                              |
//
// Mapping: one block or cluster per row (rows.cuh); thread i has ids i, 256 + i, ... The sums over
// the ids are small, so every block of a cluster forms them for itself. Block 0 writes logp; each
// block writes the gradient of its slice, then the ids' own entries that lie in it.
// Traffic: T·V elements once, or T·K of them where only the kept set counts; the gradient writes
// T·V more. Counted by the emulator (bf16, 4 x 151,936, 64 ids): bytes 1.006 and 1.012 of the
// least, 12.2 and 30.8 warp instructions per 32 logits. Not yet measured on hardware.
//
// 1. The kept set alone (`renormalize` without `mass`) never reads the row: 9,800 instructions
//    where the whole row takes 232,104. Its gradient is a row of zeros and K entries: 95,408, not
//    584,712.
// 2. The gradient first treats every column as not chosen, then K threads overwrite their entries:
//    no logit is compared with K ids (predicted: K comparisons per logit otherwise).
//
// Numerics: the plan of the row is that of logprob, so over the whole row an entry has logprob's
// bits. Sums as in row_sums.cuh; Σ g and the ids' own entries in f64, rounded once. An id that is
// out of range is NaN, -100 is 0; `mass` is at most 1.
#include "row_sums.cuh"
#include "gather_k.h"

// Statistics over the row's ids alone, thread i's being i, THREADS + i, ... Every block of a
// cluster computes them for itself.
template <class T>
__device__ __forceinline__ RowStats kept_stats(const GatherKParams& p, const T* row, const i32* ids,
                                               RowShared& shared) {
    RowSet alone = p.set;
    alone.cluster = 1;
    OnlineSums o;
#pragma unroll 1
    for (i64 j = threadIdx.x; j < p.count; j += THREADS) {
        const i32 id = ids[j];
        const float t[1] = {id >= 0 && id < p.set.vocab ? transform(p.set, to_f32(row[id]))
                                                        : -INF_F32};
        accumulate<1, false>(o, t, p.set.log2_scale, -2);
    }
    return reduce_stats(o, alone, false, false, shared);
}

template <class T> __device__ __forceinline__ void gather_k(const GatherKParams& p) {
    __shared__ RowShared shared;
    const RowSet& s = p.set;
    const RowBlock block(s);
    const i64 i = block.row;
    const RowSlice<T> slice(s, (const T*)p.logits + i * p.row_stride, block.rank);
    const i32* ids = p.ids + i * p.ids_stride;
    RowStats full = {}, kept = {};
    if (!p.renormalize || p.mass.at) full = row_stats(slice, s, -1, false, nullptr, shared);
    if (block.rank != 0) return;
    if (p.renormalize || p.mass.at) kept = kept_stats(p, slice.row, ids, shared);
    RowStats used = full;
    if (p.renormalize) used = kept;
#pragma unroll 1
    for (i64 j = threadIdx.x; j < p.count; j += THREADS) {
        const i32 id = ids[j];
        float logp = id == IGNORE ? 0.0f : NAN_F32;
        if (id >= 0 && id < s.vocab)
            logp = (float)row_logp(s, used, transform(s, to_f32(slice.row[id])));
        p.logp[i * p.logp_stride + j] = logp;
    }
    if (p.mass.at && threadIdx.x == 0) {
        const double share = kept.empty() ? 0.0 : exp(row_lse(s, kept) - row_lse(s, full));
        p.mass.set(i, share > 1.0 ? 1.0f : (float)share);
    }
}

template <class T> __device__ __forceinline__ void gather_k_bwd(const GatherKParams& p) {
    constexpr int N = Vec16<T>::N;
    __shared__ RowShared shared;
    extern __shared__ uint4 row_on_chip[];
    const RowSet& s = p.set;
    const RowBlock block(s);
    const i64 i = block.row;
    const RowSlice<T> slice(s, (const T*)p.logits + i * p.row_stride, block.rank);
    T* out = (T*)p.dlogits + i * p.out_stride;
    uint4* staged = s.staged_words ? row_on_chip : nullptr;
    const i32* ids = p.ids + i * p.ids_stride;
    const float* g = p.dlogp + i * p.dlogp_stride;

    double total = 0.0;
#pragma unroll 1
    for (i64 j = threadIdx.x; j < p.count; j += THREADS)
        if (ids[j] >= 0 && ids[j] < s.vocab) total += g[j];
    total = block_reduce<THREADS>(total, 0.0, Sum(), shared.partial);
    RowStats r;
    if (p.renormalize) {
        r = kept_stats(p, slice.row, ids, shared);
        write_slice(slice, s, out, block.rank, staged, false, [](Vec16<T>&, i64) {});
    } else {
        r = row_stats(slice, s, -1, false, staged, shared);
        const float others = (float)(r.empty() ? 0.0 : -total / r.sum * s.logit_scale);
        write_slice(slice, s, out, block.rank, staged, true, [&](Vec16<T>& v, i64) {
            float t[N], dz[N];
            widen(v, t);
            transform_all(s, t);
#pragma unroll
            for (int k = 0; k < N; ++k)
                dz[k] = ptx_ex2(log2_weight(t[k], r.top, s.log2_scale)) * others;
            times_derivative(s, v, dz);
#pragma unroll
            for (int k = 0; k < N; ++k) v.at[k] = from_f32<T>(dz[k]);
        });
    }
    const double inverse = r.empty() ? 0.0 : 1.0 / r.sum;
    __syncthreads();
    const i64 from = slice.first * TILE * N, to = slice.end * TILE * N;
#pragma unroll 1
    for (i64 j = threadIdx.x; j < p.count; j += THREADS) {
        const i32 id = ids[j];
        if (id < from || id >= to || id >= s.vocab) continue;
        const float x = to_f32(slice.row[id]);
        const double q =
            (double)ptx_ex2(log2_weight(transform(s, x), r.top, s.log2_scale)) * inverse;
        out[id] =
            from_f64<T>((g[j] - q * total) * s.logit_scale * (double)transform_derivative(s, x));
    }
}

KERNEL(gather_k_f32, (THREADS, 3), GatherKParams) { gather_k<float>(p); }
KERNEL(gather_k_bf16, (THREADS, 3), GatherKParams) { gather_k<bf16>(p); }
KERNEL(gather_k_f16, (THREADS, 3), GatherKParams) { gather_k<f16>(p); }
KERNEL(gather_k_bwd_f32, (THREADS, 2), GatherKParams) { gather_k_bwd<float>(p); }
KERNEL(gather_k_bwd_bf16, (THREADS, 2), GatherKParams) { gather_k_bwd<bf16>(p); }
KERNEL(gather_k_bwd_f16, (THREADS, 2), GatherKParams) { gather_k_bwd<f16>(p); }
