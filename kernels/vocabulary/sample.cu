#include "rows.cuh"

struct SampleParams {
    RowSet set;
    const void* logits;
    i64 row_stride;
    Column<const double> uniform;
    Column<i32> token;
    Column<float> logp, logp_kept, kept_mass, entropy;
    i64 top_k;
    double top_p;
    float min_p;
    i32 greedy;
};

// Weights are integers, 2^40 for the likeliest token: their sums are exact, so that every order of
// adding gives the same token.
static constexpr float ONE = 1099511627776.0f;

__device__ __forceinline__ u64 weight(const RowSet& s, float top, float x) {
    return (u64)(ptx_ex2(log2_weight(bend(s, x), top, s.c)) * ONE);
}

// Numbers that are ordered like the logits. A 16-bit logit leaves the low bits of an f32 empty.
template <class T> struct Key {
    static constexpr int BITS = 32;
};
template <> struct Key<bf16> {
    static constexpr int BITS = 16;
};
template <> struct Key<f16> {
    static constexpr int BITS = 19;
};

template <class T> __device__ __forceinline__ u32 key_of(const RowSet& s, float x) {
    const u32 bits = __float_as_int(s.a < 0.0f && x != -INF_F32 ? -x : x);
    return (bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u)) >> (32 - Key<T>::BITS);
}
template <class T> __device__ __forceinline__ float value_of(const RowSet& s, u32 key) {
    const u32 bits = key << (32 - Key<T>::BITS);
    const float x =
        __int_as_float(bits >> 31 ? bits ^ 0x80000000u : ~bits & ~0u << (32 - Key<T>::BITS));
    return s.a < 0.0f && x != -INF_F32 ? -x : x;
}

// The tokens that may be drawn: keys above `key`, and of those equal to it the first `ties`.
struct Kept {
    u32 key = 0;
    u64 ties = ~0ull;
    float min_p = 0.0f;
};

template <class T> struct Row {
    static constexpr int N = Vec16<T>::N;
    const SampleParams& p;
    const RowSet& s;
    Part<T> part;
    const uint4* held;
    i64 from, to;  // this block's columns
    int rank;
    float top;

    __device__ __forceinline__ Row(const SampleParams& p, int rank, i64 i, uint4* held)
        : p(p),
          s(p.set),
          part(s, (const T*)p.logits + i * p.row_stride, rank),
          held(s.held ? held : nullptr),
          from(min(part.first * TILE * N, s.vocab)),
          to(min(part.end * TILE * N, s.vocab)),
          rank(rank) {}

    // Calls body(x, column) for the columns of words [begin, end), `step` words apart, until it
    // returns false.
    template <class F>
    __device__ __forceinline__ void each(i64 begin, i64 end, i64 step, F body) const {
        for (i64 w = begin; w < end; w += step) {
            const uint4 v = held ? held[w - part.first * TILE] : part.word(w, from, to).raw;
            u64 low = v.x | (u64)v.y << 32, high = v.z | (u64)v.w << 32;
            const i64 first = w * N - part.lead;
#pragma unroll 1
            for (i64 column = first; column < first + N; ++column) {
                if (column >= from && column < to && !body(to_f32(from_raw<T>((u32)low)), column))
                    return;
                low = low >> 8 * sizeof(T) | high << (64 - 8 * sizeof(T));
                high >>= 8 * sizeof(T);
            }
        }
    }
    __device__ __forceinline__ i64 first_word() const { return (from + part.lead) / N; }
    __device__ __forceinline__ i64 end_word() const {
        return from < to ? (to + part.lead + N - 1) / N : first_word();
    }

    // The number, or the weight, of the row's tokens from `key` on.
    __device__ __forceinline__ u64 from_key(u32 key, bool number, RowShared& shared) const {
        u64 sum = 0;
        each(first_word() + threadIdx.x, end_word(), THREADS, [&](float x, i64) {
            if (key_of<T>(s, x) >= key) sum += number ? 1 : weight(s, top, x);
            return true;
        });
        return row_reduce(sum, (u64)0, Sum(), s, shared);
    }

    // Top-k by numbers, then top-p of what it keeps by weights. Each keeps a prefix of the order
    // (logit falling, id rising): all keys above the largest one from which on there is enough, and
    // as many ties as are missing. That key is found bit by bit; the step before the first bit
    // finds the whole weight, the step after the last what lies above.
    __device__ __forceinline__ Kept filter(RowShared& shared) const {
        Kept kept;
        kept.min_p = p.min_p;
        const bool by_number = p.top_k > 0 && p.top_k < s.vocab;
        for (int pass = by_number ? 0 : 1; pass < (p.top_p < 1.0 ? 2 : 1); ++pass) {
            const bool number = pass == 0, all = kept.ties == ~0ull;
            u64 goal = p.top_k, above = 0;
            u32 found = 0;
#pragma unroll 1
            for (int bit = Key<T>::BITS; bit >= -1; --bit) {
                u32 key = found + 1;
                if (bit >= 0) key = bit < Key<T>::BITS ? found | 1u << bit : all ? 0 : kept.key + 1;
                const u64 there = from_key(key, number, shared);
                if (bit < 0) above = there;
                else if (bit < Key<T>::BITS) found = there >= goal ? key : found;
                else if (!number) {
                    const u64 ties = all ? 0 : kept.ties * weight(s, top, value_of<T>(s, kept.key));
                    goal = max((u64)1, (u64)ceil(p.top_p * (double)(there + ties)));
                }
            }
            const u64 each = number ? 1 : max((u64)1, weight(s, top, value_of<T>(s, found)));
            const u64 ties = (goal - above + each - 1) / each;
            kept.ties = found > kept.key ? ties : min(ties, kept.ties);
            kept.key = found;
        }
        return kept;
    }

    // Σ of x over the threads before this one, in the order of blocks and threads; `total` is all.
    __device__ __forceinline__ u64 scan(u64 x, u64& total, RowShared& shared) const {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        u64* partial = (u64*)shared.partial;
        u64 upto = x;
#pragma unroll
        for (int step = 1; step < WARP; step *= 2) {
            const u64 other = __shfl_up_sync(ALL_LANES, upto, step);
            if (lane >= step) upto += other;
        }
        if (lane == WARP - 1) partial[warp] = upto;
        __syncthreads();
        const u64 warps = lane < WARPS ? partial[lane] : 0;
        u64 before = warp_reduce(lane < warp ? warps : 0, Sum());
        total = warp_reduce(warps, Sum());
        __syncthreads();
        if (s.cluster > 1) {
            const u64 blocks = of_blocks(total, (u64)0, s, shared);
            before += warp_reduce(lane < rank ? blocks : 0, Sum());
            total = warp_reduce(blocks, Sum());
        }
        return before + upto - x;
    }
};

template <class T> __device__ __forceinline__ void sample(const SampleParams& p) {
    __shared__ RowShared shared;
    extern __shared__ uint4 row_on_chip[];
    const RowSet& s = p.set;
    const int rank = s.cluster == 1 ? 0 : ptx_cluster_rank();
    const i64 i = blockIdx.x >> s.shift;
    Row<T> row(p, rank, i, row_on_chip);
    const RowStats r =
        row_stats(row.part, s, -1, p.entropy.at != nullptr, (uint4*)row.held, shared);
    if (r.empty() || fabsf(r.top) == INF_F32 || !(r.sum < INF_F64)) {
        if (rank == 0 && threadIdx.x == 0) {
            p.token.set(i, -1), p.logp.set(i, NAN_F32);
            p.logp_kept.set(i, NAN_F32), p.kept_mass.set(i, NAN_F32), p.entropy.set(i, NAN_F32);
        }
        return;
    }
    row.top = r.top;
    const bool filtered = (p.top_k > 0 && p.top_k < s.vocab) || p.top_p < 1.0 || p.min_p > 0.0f;
    Kept kept;
    if (filtered) kept = row.filter(shared);

    // Thread by thread a run of words: an odd number of them, which keeps the banks apart.
    const i64 words = row.end_word() - row.first_word(), each = (words + THREADS - 1) / THREADS | 1;
    const i64 begin = min(row.first_word() + threadIdx.x * each, row.end_word()),
              end = min(begin + each, row.end_word());
    u64 ties_before = 0, total;
    if (kept.ties != ~0ull) {
        u64 ties = 0;
        row.each(begin, end, 1,
                 [&](float x, i64) { return ties += key_of<T>(s, x) == kept.key, true; });
        ties_before = row.scan(ties, total, shared);
    }
    const auto kept_weight = [&](float x, u64& ties) {
        const u32 key = key_of<T>(s, x);
        if (key < kept.key || (key == kept.key && ties++ >= kept.ties)) return (u64)0;
        const u64 w = weight(s, r.top, x);
        return (float)w >= kept.min_p * ONE ? w : 0;
    };
    u64 mass = 0, ties = ties_before, first = ~0ull;
    row.each(begin, end, 1, [&](float x, i64 column) {
        if (bend(s, x) == r.top) first = min(first, (u64)column);
        return mass += kept_weight(x, ties), true;
    });
    const u64 before = row.scan(mass, total, shared);

    i64 token = -1;
    if (p.greedy) {
        first = row_reduce(first, ~0ull, [](u64 a, u64 b) { return min(a, b); }, s, shared);
        if (first >= row.from && first < row.to && threadIdx.x == 0) token = first;
    } else {
        const double u = p.uniform.get(i);
        const u64 goal = min((u64)(u > 0.0 ? u * (double)total : 0.0), total - 1);
        if (goal >= before && goal - before < mass) {
            u64 below = before;
            ties = ties_before;
            row.each(begin, end, 1, [&](float x, i64 column) {
                below += kept_weight(x, ties);
                token = column;
                return below <= goal;
            });
        }
    }
    if (token < 0) return;
    const float t = bend(s, to_f32(row.part.row[token]));
    const float logp = row_logp(s, r, t);
    const double share = (double)total / ONE;
    const double kept_logp = s.k * ((double)t - (double)r.top) - log(share);
    p.token.set(i, (i32)token), p.logp.set(i, logp);
    p.logp_kept.set(i, filtered ? (float)kept_logp : logp);
    p.kept_mass.set(i, filtered ? (float)fmin(share / r.sum, 1.0) : 1.0f);
    p.entropy.set(i, (float)row_entropy(r));
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) sample_f32(const SampleParams p) {
    sample<float>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) sample_bf16(const SampleParams p) {
    sample<bf16>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) sample_f16(const SampleParams p) {
    sample<f16>(p);
}
