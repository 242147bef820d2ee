// o[i, h] = Σ_j softmax_j(scale·q[i, h]·k[j, g])·v[j, g] over the keys that query i sees, g =
// h/(Hq/Hkv).
//
// Causal attention over packed sequences (arXiv:1706.03762, eq. 1) with grouped heads
// (arXiv:2305.13245) and an online softmax (arXiv:2205.14135).
//
// | operand   | shape        | dtype               | layout                         |
// |-----------|--------------|---------------------|--------------------------------|
// | q, o      | [Tq, Hq, D]  | f32, bf16, f16, f64 | last dimension contiguous      |
// | k, v      | [S, Hkv, D]  | as q                | last dimension contiguous      |
// | cu_seqlens, kv_start, kv_len | [B+1], [B], [B] | i64 | any stride        |
// | prefix_start, prefix_len | [B] | i64 | any stride; or none               |
// | pages     | [B, P]       | i32                 | rows contiguous; or kv_start   |
// | lse       | [Tq, Hq]     | f32                 | rows contiguous                |
//
// Mapping: one warp per (query, head). Keys in blocks of 32 by their index in the sequence: lane j
// scores key j, then the lanes share out the D columns of the sum. Training, prefill and decoding
// run the same operations on a row, so its bits are the same in all of them.
// Traffic: 2·D elements per visible (query, head, key), from L1 and L2 but for the first time; 4·D
// flops.
// Numerics: f32 (f64 for f64), the normalizer in f64. See attention.cuh for the exact rescaling.
// With u = 2^-24, n visible keys and ε = (D/16 + 8)·u·|scale|·max_j Σ|q_d·k_jd|, an output is
// within (2·ε + (56 + n/32)·u)·Σ p_j·|v_j| of exact.
// Not yet tuned: no tensor cores, lanes read keys of their own. It is the base that is correct.
// local memory: attention_f64: registers live across the call in an f64 division
#include "attention.cuh"

template <class T, class A> __device__ __forceinline__ void attention(const AttentionParams<T>& p) {
    extern __shared__ __align__(16) unsigned char memory[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    A *q = (A*)memory + warp * 2 * p.d, *sum = q + p.d;
    const i64 unit = (i64)blockIdx.x * WARPS + warp, t = unit / p.heads, h = unit % p.heads;
    if (t >= p.sequences.tokens) return;
    const Keys keys = keys_of(p.sequences, t);
    stage(q, p.q.of(t, h), p.d);
    for (i64 c = lane; c < p.d; c += WARP) sum[c] = 0;
    __syncwarp();
    Reference<A> reference;
    double total = 0.0;
    for (i64 j0 = 0; j0 < keys.visible; j0 += WARP) {
        const i64 left = keys.visible - j0;
        const int count = left < WARP ? (int)left : WARP;
        const i64 row = lane < count ? keys.rows.row(j0 + lane) : 0;
        A score = Limit<A>::lowest();
        if (lane < count) score = dot(q, p.k.of(row, h / p.group), p.d) * (A)p.scale;
        const A factor = reference.raise(warp_reduce(score, Max()));
        const A weight = lane < count ? power_of_2(score - reference.m) : (A)0;
        total = fma(total, (double)factor, (double)warp_reduce(weight, Sum()));
        combine(sum, factor, weight, p.v, row, h / p.group, count, p.d);
    }
    const A inverse = (A)(1.0 / total);
    for (i64 c = lane; c < p.d; c += WARP) p.o.of(t, h)[c] = narrow<T>(sum[c] * inverse);
    const double ln2 = 0.693147180559945309417;
    if (p.lse && lane == 0)
        p.lse[t * p.lse_stride + h] = (float)(((double)reference.m + log2(total)) * ln2);
}

KERNEL(attention_f32, (THREADS), AttentionParams<float>) { attention<float, float>(p); }
KERNEL(attention_bf16, (THREADS), AttentionParams<bf16>) { attention<bf16, float>(p); }
KERNEL(attention_f16, (THREADS), AttentionParams<f16>) { attention<f16, float>(p); }
KERNEL(attention_f64, (THREADS, 5), AttentionParams<double>) { attention<double, double>(p); }
