#include "rows.cuh"

struct GatherKParams {
    RowSet set;
    const void* logits;
    void* dlogits;
    const i32* ids;
    float* logp;
    const float* dlogp;
    i64 row_stride, out_stride, ids_stride, logp_stride, dlogp_stride;
    i64 count;
    Column<float> mass;
    i32 renormalize;
};

// Statistics over the row's ids alone, thread i's being i, THREADS + i, ... Every block of a
// cluster computes them for itself.
template <class T>
__device__ __forceinline__ RowStats kept_stats(const GatherKParams& p, const T* row, const i32* ids,
                                               RowShared& shared) {
    RowSet alone = p.set;
    alone.cluster = 1;
    Online o;
#pragma unroll 1
    for (i64 j = threadIdx.x; j < p.count; j += THREADS) {
        const i32 id = ids[j];
        const float t[1] = {id >= 0 && id < p.set.vocab ? bend(p.set, to_f32(row[id])) : -INF_F32};
        add<1, false>(o, t, p.set.c, -2);
    }
    return combine(o, alone, false, false, shared);
}

template <class T> __device__ __forceinline__ void gather_k(const GatherKParams& p) {
    __shared__ RowShared shared;
    const RowSet& s = p.set;
    const int rank = s.cluster == 1 ? 0 : ptx_cluster_rank();
    const i64 i = blockIdx.x >> s.shift;
    const Part<T> part(s, (const T*)p.logits + i * p.row_stride, rank);
    const i32* ids = p.ids + i * p.ids_stride;
    RowStats full = {}, kept = {};
    if (!p.renormalize || p.mass.at) full = row_stats(part, s, -1, false, nullptr, shared);
    if (rank != 0) return;
    if (p.renormalize || p.mass.at) kept = kept_stats(p, part.row, ids, shared);
    RowStats used = full;
    if (p.renormalize) used = kept;
#pragma unroll 1
    for (i64 j = threadIdx.x; j < p.count; j += THREADS) {
        const i32 id = ids[j];
        float logp = id == IGNORE ? 0.0f : NAN_F32;
        if (id >= 0 && id < s.vocab) logp = (float)row_logp(s, used, bend(s, to_f32(part.row[id])));
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
    const int rank = s.cluster == 1 ? 0 : ptx_cluster_rank();
    const i64 i = blockIdx.x >> s.shift;
    const Part<T> part(s, (const T*)p.logits + i * p.row_stride, rank);
    T* out = (T*)p.dlogits + i * p.out_stride;
    uint4* held = s.held ? row_on_chip : nullptr;
    const i32* ids = p.ids + i * p.ids_stride;
    const float* g = p.dlogp + i * p.dlogp_stride;

    double total = 0.0;
#pragma unroll 1
    for (i64 j = threadIdx.x; j < p.count; j += THREADS)
        if (ids[j] >= 0 && ids[j] < s.vocab) total += g[j];
    total = block_reduce<THREADS>(total, 0.0, Sum(), shared.partial);
    RowStats r;
    if (p.renormalize) {
        r = kept_stats(p, part.row, ids, shared);
        write_part(part, s, out, rank, held, false, [](Vec16<T>&, i64) {});
    } else {
        r = row_stats(part, s, -1, false, held, shared);
        const float others = (float)(r.empty() ? 0.0 : -total / r.sum * s.k);
        write_part(part, s, out, rank, held, true, [&](Vec16<T>& v, i64) {
            float t[N], dz[N];
            widen(v, t);
            bend_all(s, t);
#pragma unroll
            for (int k = 0; k < N; ++k) dz[k] = ptx_ex2(log2_weight(t[k], r.top, s.c)) * others;
            times_slope(s, v, dz);
#pragma unroll
            for (int k = 0; k < N; ++k) v.at[k] = from_f32<T>(dz[k]);
        });
    }
    const double inverse = r.empty() ? 0.0 : 1.0 / r.sum;
    __syncthreads();
    const i64 from = part.first * TILE * N, to = part.end * TILE * N;
#pragma unroll 1
    for (i64 j = threadIdx.x; j < p.count; j += THREADS) {
        const i32 id = ids[j];
        if (id < from || id >= to || id >= s.vocab) continue;
        const float x = to_f32(part.row[id]);
        const double q = (double)ptx_ex2(log2_weight(bend(s, x), r.top, s.c)) * inverse;
        out[id] = from_f64<T>((g[j] - q * total) * s.k * (double)slope(s, x));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) gather_k_f32(const GatherKParams p) {
    gather_k<float>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) gather_k_bf16(const GatherKParams p) {
    gather_k<bf16>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) gather_k_f16(const GatherKParams p) {
    gather_k<f16>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) gather_k_bwd_f32(const GatherKParams p) {
    gather_k_bwd<float>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) gather_k_bwd_bf16(const GatherKParams p) {
    gather_k_bwd<bf16>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) gather_k_bwd_f16(const GatherKParams p) {
    gather_k_bwd<f16>(p);
}
