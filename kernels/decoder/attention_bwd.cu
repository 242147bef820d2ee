// Gradients of attention: with p the probabilities, dp = dout·v and δ = Σ_j p·dp,
// ds = scale·p·(dp - δ), dq = Σ_j ds·k, dk = Σ_i ds·q, dv = Σ_i p·dout (arXiv:2205.14135, appendix
// B.4).
//
// | operand          | shape       | dtype               | layout                    |
// |------------------|-------------|---------------------|---------------------------|
// | q, dout, dq      | [Tq, Hq, D] | f32, bf16, f16, f64 | last dimension contiguous |
// | k, v, dk, dv     | [S, Hkv, D] | as q                | last dimension contiguous |
// | cu_seqlens, kv_start, kv_len | [B+1], [B], [B] | i64 | any stride      |
// | prefix_start, prefix_len     | [B]             | i64 | any stride; or none |
// | stats            | [Tq, Hq]    | m, 1/l, δ           | scratch                   |
//
// Mapping: two launches, one warp per (query, head), then one warp per (key, head). The first finds
// m, l and δ in one pass with the forward pass's online softmax (δ·l is summed beside l), then dq
// in a second. The second adds over (sequence, query head, query) in that order, 32 queries at a
// time, for all sequences that the key belongs to.
// Traffic: 10·D flops and two exponentials per visible (query, head, key); no atomics.
// Numerics: f32 (f64 for f64), l and δ in f64; sums as in attention.cuh. A gradient's order depends
// on its own sequence only, and on those that share its key.
// Not yet tuned: no tensor cores, scores are formed three times. It is the base that is correct.
// local memory: attention_dq_*: registers live across the call in an f64 division
#include "attention.cuh"

struct Stats {
    double m, inverse, delta;
};

template <class T, class A>
__device__ __forceinline__ void attention_dq(const AttentionBwdParams<T>& p) {
    extern __shared__ __align__(16) unsigned char memory[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    A *q = (A*)memory + warp * 3 * p.d, *dout = q + p.d, *sum = dout + p.d;
    const i64 unit = (i64)blockIdx.x * WARPS + warp, t = unit / p.heads, h = unit % p.heads,
              g = h / p.group;
    if (t >= p.sequences.tokens) return;
    const Keys keys = keys_of(p.sequences, t);
    stage(q, p.q.of(t, h), p.d);
    stage(dout, p.dout.of(t, h), p.d);
    for (i64 c = lane; c < p.d; c += WARP) sum[c] = 0;
    __syncwarp();
    Reference<A> reference;
    double total = 0.0, product = 0.0;
    for (i64 j = lane; j - lane < keys.visible; j += WARP) {
        const bool seen = j < keys.visible;
        const A score = seen ? dot(q, p.k.of(keys.rows.row_unpaged(j), g), p.d) * (A)p.scale2
                             : Limit<A>::lowest();
        const A dp = seen ? dot(dout, p.v.of(keys.rows.row_unpaged(j), g), p.d) : (A)0;
        const double factor = reference.raise(warp_reduce(score, Max()));
        const double weight = seen ? power_of_2(score - reference.m) : (A)0;
        total = fma(total, factor, warp_reduce(weight, Sum()));
        product = fma(product, factor, warp_reduce(weight * (double)dp, Sum()));
    }
    const double inverse = 1.0 / total, delta = product * inverse;
    if (lane == 0) ((Stats*)p.stats)[t * p.heads + h] = {(double)reference.m, inverse, delta};
    for (i64 j0 = 0; j0 < keys.visible; j0 += WARP) {
        const i64 left = keys.visible - j0, row = keys.rows.row_unpaged(j0 + lane);
        const int count = left < WARP ? (int)left : WARP;
        A ds = 0;
        if (lane < count) {
            const A score = dot(q, p.k.of(row, g), p.d) * (A)p.scale2;
            const double dp = dot(dout, p.v.of(row, g), p.d);
            ds = (A)(p.scale * (power_of_2(score - reference.m) * inverse) * (dp - delta));
        }
        combine(sum, (A)1, ds, p.k, row, g, count, p.d);
    }
    for (i64 c = lane; c < p.d; c += WARP) p.dq.of(t, h)[c] = narrow<T>(sum[c]);
}

// The first sequence with a key in `row`, from the half `from` of a sequence on: twice its number,
// 1 more for a key behind its prefix; -1 for none. Called by a whole warp.
__device__ __forceinline__ i64 next_owner(const Sequences& s, i64 row, i64 from) {
    for (; from < 2 * s.count; from += WARP) {
        const i64 n = from + threadIdx.x % WARP;
        const bool has = n < 2 * s.count && key_in(s, n / 2, row, n % 2) >= 0;
        const u32 found = __ballot_sync(ALL_LANES, has);
        if (found) return from + __ffs(found) - 1;
    }
    return -1;
}

// Adds the queries of sequence b that see its key `key`, whose operands a warp holds.
template <class T, class A>
__device__ __forceinline__ void add_queries(const AttentionBwdParams<T>& p, i64 b, i64 key, i64 g,
                                            const A* k, const A* v, A* dk, A* dv) {
    const int lane = threadIdx.x % WARP;
    // The first query that sees the key, and all after it.
    const Span all = span(p.sequences.cu_seqlens, b, p.sequences.tokens);
    const i64 hidden = p.sequences.kv_len.get(b) - (all.end - all.begin),
              begin = all.begin + (key > hidden ? key - hidden : 0);
    for (i64 h = g * p.group; h < (g + 1) * p.group; ++h) {
        for (i64 t0 = begin; t0 < all.end; t0 += WARP) {
            const i64 left = all.end - t0;
            const int count = left < WARP ? (int)left : WARP;
            A weight = 0, ds = 0;
            if (lane < count) {
                const Stats stats = ((const Stats*)p.stats)[(t0 + lane) * p.heads + h];
                const A score = dot(k, p.q.of(t0 + lane, h), p.d) * (A)p.scale2;
                const double dp = dot(v, p.dout.of(t0 + lane, h), p.d);
                const double probability = power_of_2(score - (A)stats.m) * stats.inverse;
                weight = (A)probability;
                ds = (A)(p.scale * probability * (dp - stats.delta));
            }
            combine(dk, (A)1, ds, p.q, t0 + lane, h, count, p.d);
            combine(dv, (A)1, weight, p.dout, t0 + lane, h, count, p.d);
        }
    }
}

template <class T, class A>
__device__ __forceinline__ void attention_dkv(const AttentionBwdParams<T>& p) {
    extern __shared__ __align__(16) unsigned char memory[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    A *k = (A*)memory + warp * 4 * p.d, *v = k + p.d, *dk = v + p.d, *dv = dk + p.d;
    const i64 kv_heads = p.heads / p.group, unit = (i64)blockIdx.x * WARPS + warp,
              row = unit / kv_heads, g = unit % kv_heads;
    if (row >= p.sequences.rows) return;
    stage(k, p.k.of(row, g), p.d);
    stage(v, p.v.of(row, g), p.d);
    for (i64 c = lane; c < p.d; c += WARP) dk[c] = dv[c] = 0;
    __syncwarp();
    for (i64 n = next_owner(p.sequences, row, 0); n >= 0; n = next_owner(p.sequences, row, n + 1))
        add_queries(p, n / 2, key_in(p.sequences, n / 2, row, n % 2), g, k, v, dk, dv);
    for (i64 c = lane; c < p.d; c += WARP) {
        p.dk.of(row, g)[c] = narrow<T>(dk[c]);
        p.dv.of(row, g)[c] = narrow<T>(dv[c]);
    }
}

KERNEL(attention_dq_f32, (THREADS), AttentionBwdParams<float>) { attention_dq<float, float>(p); }
KERNEL(attention_dkv_f32, (THREADS, 5), AttentionBwdParams<float>) {
    attention_dkv<float, float>(p);
}
KERNEL(attention_dq_bf16, (THREADS), AttentionBwdParams<bf16>) { attention_dq<bf16, float>(p); }
KERNEL(attention_dkv_bf16, (THREADS, 5), AttentionBwdParams<bf16>) {
    attention_dkv<bf16, float>(p);
}
KERNEL(attention_dq_f16, (THREADS), AttentionBwdParams<f16>) { attention_dq<f16, float>(p); }
KERNEL(attention_dkv_f16, (THREADS, 5), AttentionBwdParams<f16>) { attention_dkv<f16, float>(p); }
KERNEL(attention_dq_f64, (THREADS), AttentionBwdParams<double>) { attention_dq<double, double>(p); }
KERNEL(attention_dkv_f64, (THREADS, 5), AttentionBwdParams<double>) {
    attention_dkv<double, double>(p);
}
