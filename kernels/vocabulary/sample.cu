// token[t] = min { y kept : Σ_{v ≤ y, kept} w_v > u·Σ_{kept} w_v }: inverse transform sampling over
// token ids by one uniform number per row, after top-k, top-p (arXiv:1904.09751) and min-p
// (arXiv:2407.01082), in this order; or the first maximum (greedy).
//
// | operand                        | shape        | dtype          | layout                     |
// |--------------------------------|--------------|----------------|----------------------------|
// | logits                         | [T, V_alloc] | f32, bf16, f16 | rows contiguous; V exist   |
// | uniform                        | [T]          | f64            | any stride, in [0, 1)      |
// | token                          | [T]          | i32            | any stride; -1: none       |
// | logp, logp_kept, mass, entropy | [T]          | f32            | any stride, may be missing |
//
// Mapping: one block or cluster per row (rows.cuh), whose slice is staged in shared memory by the
// pass that forms the sums. All further passes read it there:
//
//     sums      log-prob and entropy (row_sums.cuh)
//     filter    for top-k, then for top-p: the smallest logit that is kept, bit by bit, and how
//               many of its ties; BITS + 2 passes each (18 for bf16, 21 for f16, 34 for f32)
//     mass      each thread adds up the kept weights of a run of neighboring words; a scan over
//               threads and blocks gives the weight before each run
//     draw      the one thread whose run holds u·total walks it again
//
// Traffic: T·V elements once where the slice fits into shared memory, else once per pass. Counted
// by the emulator (bf16, 4 x 151,936, warp instructions per 32 logits): 58 without a filter, 413
// with top-k, 636 with top-p; bytes 1.004 of the least. Measured on an H200, before the loop of 4:
// 32 x 151,936 f32 in 58 µs without a filter, 7 % of the floor; an H100 took 61 µs.
//
// 1. Weights are integers, 2^40 for the likeliest token. Integer sums are exact, so every order of
//    adding, over threads, blocks and cluster, draws the same token, and a filter's bound is exact.
// 2. A filter orders 16-bit logits by keys of 16 (f16: 19) bits, not 32: 18 passes where f32 needs
//    34, each 20 (counts) or 32 (weights) instructions per 32 logits.
// 3. Runs are an odd number of words, which keeps the threads' reads on different banks: 1.20 of
//    the ideal passes over shared memory in all, 1.09 with top-p.
// 4. A word's logits are taken apart at places that are known when compiled, so there is no array
//    that is indexed at run time, and words in the middle of a row have no test of their columns:
//    69, 631 and 867 instructions where they were shifted out of two registers, one at a time.
//
// Numerics: weights have 40 bits below the largest; a token of less weight is never drawn. The plan
// of the row is that of logprob, so logp has logprob's bits. Ties go to the lower id. Rows of more
// than 2^23 columns are refused: their sums could pass 2^63. A row without a finite maximum has
// token -1 and NaN elsewhere.
#include "row_sums.cuh"
#include "sample.h"

// Weights are integers, 2^40 for the likeliest token: their sums are exact, so that every order of
// adding gives the same token.
static constexpr float ONE = 1099511627776.0f;

__device__ __forceinline__ u64 weight(const RowSet& s, float top, float x) {
    return (u64)(ptx_ex2(log2_weight(transform(s, x), top, s.log2_scale)) * ONE);
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
    const u32 bits = __float_as_int(s.inner_scale < 0.0f && x != -INF_F32 ? -x : x);
    return (bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u)) >> (32 - Key<T>::BITS);
}
template <class T> __device__ __forceinline__ float value_of(const RowSet& s, u32 key) {
    const u32 bits = key << (32 - Key<T>::BITS);
    const float x =
        __int_as_float(bits >> 31 ? bits ^ 0x80000000u : ~bits & ~0u << (32 - Key<T>::BITS));
    return s.inner_scale < 0.0f && x != -INF_F32 ? -x : x;
}

// The tokens that may be drawn: keys above `key`, and of those equal to it the first `ties`.
struct Kept {
    u32 key = 0;
    u64 ties = ~0ull;
    float min_p = 0.0f;
};

// The logits of a row that a block reads, from shared memory if they are staged there.
template <class T> struct Row {
    static constexpr int N = Vec16<T>::N;
    const SampleParams& p;
    const RowSet& s;
    RowSlice<T> slice;
    const uint4* staged;
    i64 from, to;  // this block's columns
    float top;

    __device__ __forceinline__ Row(const SampleParams& p, int rank, i64 i, uint4* staged)
        : p(p),
          s(p.set),
          slice(s, (const T*)p.logits + i * p.row_stride, rank),
          staged(s.staged_words ? staged : nullptr),
          from(min(slice.first * TILE * N, s.vocab)),
          to(min(slice.end * TILE * N, s.vocab)) {}

    // Calls body(x, column) for the columns of words [begin, end), `step` words apart, until it
    // returns false.
    template <class F>
    __device__ __forceinline__ void each(i64 begin, i64 end, i64 step, F body) const {
        for (i64 w = begin; w < end; w += step) {
            Vec16<T> v;
            v.raw = staged ? staged[w - slice.first * TILE] : slice.word(w, from, to).raw;
            const i64 first = w * N - slice.misalignment;
            // Words in the middle of the row have no test of their columns.
            const bool whole = first >= from && first + N <= to;
#pragma unroll
            for (int k = 0; k < N; ++k) {
                const i64 column = first + k;
                if ((whole || (column >= from && column < to)) && !body(to_f32(v.at[k]), column))
                    return;
            }
        }
    }
    __device__ __forceinline__ i64 first_word() const { return (from + slice.misalignment) / N; }
    __device__ __forceinline__ i64 end_word() const {
        return from < to ? (to + slice.misalignment + N - 1) / N : first_word();
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
};

// Top-k by numbers, then top-p of what it keeps by weights. Each keeps a prefix of the order
// (logit falling, id rising): all keys above the largest one from which on there is enough, and
// as many ties as are missing. That key is found bit by bit; the step before the first bit
// finds the whole weight, the step after the last what lies above.
template <class T> __device__ __forceinline__ Kept filter(const Row<T>& row, RowShared& shared) {
    const SampleParams& p = row.p;
    const RowSet& s = row.s;
    const float top = row.top;
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
            const u64 there = row.from_key(key, number, shared);
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
__device__ __forceinline__ u64 scan(u64 x, u64& total, const RowSet& s, int rank,
                                    RowShared& shared) {
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
        const u64 blocks = gather_blocks(total, (u64)0, s, shared);
        before += warp_reduce(lane < rank ? blocks : 0, Sum());
        total = warp_reduce(blocks, Sum());
    }
    return before + upto - x;
}

// What a row without a finite maximum gets.
__device__ __forceinline__ void report_nothing(const SampleParams& p, i64 i) {
    p.token.set(i, -1), p.logp.set(i, NAN_F32);
    p.logp_kept.set(i, NAN_F32), p.kept_mass.set(i, NAN_F32), p.entropy.set(i, NAN_F32);
}

// The run of words [begin, end) of thread t. Runs have an odd length, which keeps the banks apart.
struct Run {
    i64 begin, end;
    template <class T> __device__ __forceinline__ explicit Run(const Row<T>& row) {
        const i64 words = row.end_word() - row.first_word();
        const i64 each = (words + THREADS - 1) / THREADS | 1;
        begin = min(row.first_word() + threadIdx.x * each, row.end_word());
        end = min(begin + each, row.end_word());
    }
};

template <class T> __device__ __forceinline__ void sample(const SampleParams& p) {
    __shared__ RowShared shared;
    extern __shared__ uint4 row_on_chip[];
    const RowSet& s = p.set;
    const RowBlock block(s);
    const i64 i = block.row;
    Row<T> row(p, block.rank, i, row_on_chip);
    const RowStats r =
        row_stats(row.slice, s, -1, p.entropy.at != nullptr, (uint4*)row.staged, shared);
    if (r.empty() || fabsf(r.top) == INF_F32 || !(r.sum < INF_F64)) {
        if (block.leads()) report_nothing(p, i);
        return;
    }
    row.top = r.top;
    const bool filtered = (p.top_k > 0 && p.top_k < s.vocab) || p.top_p < 1.0 || p.min_p > 0.0f;
    Kept kept;
    if (filtered) kept = filter(row, shared);

    const Run run(row);
    u64 ties_before = 0, total;
    if (kept.ties != ~0ull) {
        u64 ties = 0;
        row.each(run.begin, run.end, 1,
                 [&](float x, i64) { return ties += key_of<T>(s, x) == kept.key, true; });
        ties_before = scan(ties, total, s, block.rank, shared);
    }
    const auto kept_weight = [&](float x, u64& ties) {
        const u32 key = key_of<T>(s, x);
        if (key < kept.key || (key == kept.key && ties++ >= kept.ties)) return (u64)0;
        const u64 w = weight(s, r.top, x);
        return (float)w >= kept.min_p * ONE ? w : 0;
    };
    u64 mass = 0, ties = ties_before, first = ~0ull;
    row.each(run.begin, run.end, 1, [&](float x, i64 column) {
        if (transform(s, x) == r.top) first = min(first, (u64)column);
        return mass += kept_weight(x, ties), true;
    });
    const u64 before = scan(mass, total, s, block.rank, shared);

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
            row.each(run.begin, run.end, 1, [&](float x, i64 column) {
                below += kept_weight(x, ties);
                token = column;
                return below <= goal;
            });
        }
    }
    if (token < 0) return;
    const float t = transform(s, to_f32(row.slice.row[token]));
    const float logp = row_logp(s, r, t);
    const double share = (double)total / ONE;
    const double kept_logp = s.logit_scale * ((double)t - (double)r.top) - log(share);
    p.token.set(i, (i32)token), p.logp.set(i, logp);
    p.logp_kept.set(i, filtered ? (float)kept_logp : logp);
    p.kept_mass.set(i, filtered ? (float)fmin(share / r.sum, 1.0) : 1.0f);
    p.entropy.set(i, (float)row_entropy(r));
}

KERNEL(sample_f32, (THREADS, 3), SampleParams) { sample<float>(p); }
KERNEL(sample_bf16, (THREADS, 3), SampleParams) { sample<bf16>(p); }
KERNEL(sample_f16, (THREADS, 3), SampleParams) { sample<f16>(p); }
