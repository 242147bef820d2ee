// y = the value at rank q·(n - 1) of the n sorted values that count, and the mask of the largest
// ones.
//
// The selection of torch.quantile and of the top-entropy mask (arXiv:2506.01939), without a sort.
//
// | operand    | shape      | dtype    | layout                                          |
// |------------|------------|----------|-------------------------------------------------|
// | x          | [T]        | f32, f64 | any stride                                      |
// | class      | [T]        | u8       | any stride, may be null: what counts            |
// | cu_seqlens | [B + 1]    | i64      | clamped to 0..=T; null: one scope of all tokens |
// | y          | [1] or [B] | as x     | any stride; NaN where nothing counts            |
// | keep       | [T]        | u8       | any stride, may be null                         |
//
// Mapping: one block of 512 threads per scope; on sm_90a a large single scope has the 8 blocks of a
// cluster, which read each other's histograms. One launch.
// Traffic: x and class once to count and once per digit of 8 bits, from L2 after the first time: 5
// times for f32, 9 for f64; once more for a rank between two elements, and for the mask. No
// scratch.
//
//     key(x) = the bits of x, all flipped if negative, else the sign flipped: orders like x
//     for each digit of the key from the top:
//         histogram of this digit over the values that share the digits found so far
//         the digit whose bin holds the rank; the rank within that bin
//     upper = the same value if it stands at the next rank too, else the smallest one above
//
// Tricks: lanes with the same digit add to their bin once (match.any), as the top digits of
// entropies are nearly all the same: 0.69 additions to shared memory a value in place of 1.58
// (65,536 values |N(0, 1)|, q = 0.8).
// Numerics: counts are integers, so the order of the additions leaves no trace; the elements found
// are exact, the line between two of them is f64, rounded once.
#include "common.cuh"
#include "quantile.h"

static constexpr int WARPS = THREADS / WARP;
static constexpr int BINS = 256;

__device__ __forceinline__ u32 bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ u64 bits_of(double x) { return (u64)__double_as_longlong(x); }
__device__ __forceinline__ float value_of(u32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ double value_of(u64 bits) { return __longlong_as_double((i64)bits); }

// Keys order as the values do, -0 before +0.
template <class Key> __device__ __forceinline__ Key flipped(Key bits, bool negative) {
    constexpr Key SIGN = (Key)1 << (8 * sizeof(Key) - 1);
    return negative ? ~bits : bits | SIGN;
}
__device__ __forceinline__ u32 key_of(float x) { return flipped(bits_of(x), bits_of(x) >> 31); }
__device__ __forceinline__ u64 key_of(double x) { return flipped(bits_of(x), bits_of(x) >> 63); }
__device__ __forceinline__ float of_key(u32 key) {
    return value_of(key >> 31 ? key ^ 0x80000000u : ~key);
}
__device__ __forceinline__ double of_key(u64 key) {
    return value_of(key >> 63 ? key ^ (1ull << 63) : ~key);
}

template <class R> __device__ __forceinline__ bool counts(const QuantileParams<R>& p, i64 t) {
    if (!p.klass.at) return true;
    const int klass = p.klass.get(t);
    return p.ranked < 0 ? klass != 0 : klass == p.ranked;
}

struct MinKey {
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const {
        return a < b ? a : b;
    }
};

struct Shared {
    u64 bins[BINS];   // of this block
    u64 total[BINS];  // of the cluster
    u64 partial[WARPS];
    u64 offered;
    u64 digit, below, equal;
};

// This thread's part of a scope: every `step`-th token from `first`.
struct Part {
    i64 first, end, step;
    int rank, blocks;
};

// The values of all threads of the cluster combined.
template <class T, class Op>
__device__ __forceinline__ T reduce(T x, T neutral, Op op, const Part& part, Shared& s) {
    x = block_reduce<THREADS>(x, neutral, op, (T*)s.partial);
    if (part.blocks == 1) return x;
    if (threadIdx.x == 0) s.offered = (u64)x;
    ptx_cluster_sync();
    for (int r = 0; r < part.blocks; ++r)
        x = op(x, r == part.rank ? neutral : (T)ptx_cluster_load(&s.offered, r));
    ptx_cluster_sync();
    return x;
}

// The histograms of all blocks added up.
__device__ __forceinline__ void add_bins(const Part& part, Shared& s) {
    __syncthreads();
    if (part.blocks > 1) ptx_cluster_sync();
    if (threadIdx.x < BINS) {
        u64 sum = 0;
        for (int r = 0; r < part.blocks; ++r) sum += ptx_cluster_load(&s.bins[threadIdx.x], r);
        s.total[threadIdx.x] = sum;
    }
    if (part.blocks > 1) ptx_cluster_sync();
    __syncthreads();
}

// Adds one to the bin of every lane in `mask`, lanes of one bin together.
__device__ __forceinline__ void count_digit(u64* bins, bool here, int digit) {
    const u32 active = __ballot_sync(ALL_LANES, here);
    if (!here) return;
    const u32 peers = __match_any_sync(active, digit);
    if ((int)(threadIdx.x % WARP) == __ffs(peers) - 1) atomicAdd(&bins[digit], (u64)__popc(peers));
}

// The bin that holds `rank`, how many values stand in lower bins, and how many in it.
__device__ __forceinline__ void find_bin(Shared& s, u64 rank) {
    constexpr int EACH = BINS / WARP;
    if (threadIdx.x < WARP) {
        const int lane = threadIdx.x;
        u64 own = 0, before = 0;
        for (int i = 0; i < EACH; ++i) own += s.total[lane * EACH + i];
        u64 upto = own;
#pragma unroll
        for (int by = 1; by < WARP; by *= 2) {
            const u64 left = __shfl_up_sync(ALL_LANES, upto, by);
            if (lane >= by) upto += left;
        }
        before = upto - own;
        for (int i = 0; i < EACH; ++i) {
            const u64 n = s.total[lane * EACH + i];
            if (before <= rank && rank < before + n) {
                s.digit = lane * EACH + i;
                s.below = before;
                s.equal = n;
            }
            before += n;
        }
    }
    __syncthreads();
}

// Rank q·(n - 1); one that misses an integer by rounding is that integer.
__device__ __forceinline__ double rank_of(double q, i64 n) {
    const double exact = __dmul_rn(q, (double)(n - 1)), whole = round(exact);
    return fabs(exact - whole) <= 4.0 * 2.220446049250313e-16 * exact ? whole : exact;
}

template <class R>
__device__ __forceinline__ double select(const QuantileParams<R>& p, const Part& part, Shared& s) {
    typedef decltype(key_of(R())) Key;
    constexpr int DIGITS = sizeof(Key);
    i64 n = 0, nans = 0;
    for (i64 t = part.first; t < part.end; t += part.step) {
        if (!counts(p, t)) continue;
        const R x = p.x.get(t);
        if (x == x) ++n;
        else ++nans;
    }
    n = reduce(n, (i64)0, Sum(), part, s);
    nans = reduce(nans, (i64)0, Sum(), part, s);
    if (n == 0 || (nans && p.nan_result)) return NAN_F64;

    const double rank = rank_of(p.q, n);
    const i64 floor = (i64)rank;
    u64 within = (u64)floor;
    Key found = 0;
#pragma unroll 1
    for (int d = DIGITS - 1; d >= 0; --d) {
        if (threadIdx.x < BINS) s.bins[threadIdx.x] = 0;
        __syncthreads();
        // Lanes of a warp stay together: each goes through every ballot.
        for (i64 row = part.first - threadIdx.x % WARP; row < part.end; row += part.step) {
            const i64 t = row + threadIdx.x % WARP;
            bool here = t < part.end && counts(p, t);
            Key key = 0;
            if (here) {
                const R x = p.x.get(t);
                key = key_of(x);
                here = x == x && (d == DIGITS - 1 || (key ^ found) >> (8 * (d + 1)) == 0);
            }
            count_digit(s.bins, here, (int)(key >> (8 * d)) & (BINS - 1));
        }
        add_bins(part, s);
        find_bin(s, within);
        found |= (Key)s.digit << (8 * d);
        within -= s.below;
    }
    const double lower = to_f64(of_key(found)), between = rank - (double)floor;
    if (between == 0.0 || floor + 1 == n || p.method == METHOD_LOWER) return lower;
    if (within + 1 < s.equal) return lower;
    Key above = ~(Key)0;
    for (i64 t = part.first; t < part.end; t += part.step) {
        if (!counts(p, t)) continue;
        const R x = p.x.get(t);
        const Key key = key_of(x);
        if (x == x && key > found && key < above) above = key;
    }
    above = reduce(above, ~(Key)0, MinKey(), part, s);
    const double upper = to_f64(of_key(above));
    if (p.method == METHOD_HIGHER) return upper;
    if (lower == upper) return lower;
    return clamp(__dadd_rn(__dmul_rn(lower, 1.0 - between), __dmul_rn(upper, between)), lower,
                 upper);
}

template <class R> __device__ __forceinline__ void quantile(const QuantileParams<R>& p) {
    check_enum(p.method, METHOD_HIGHER);
    __shared__ Shared s;
    const int rank = p.cluster == 1 ? 0 : ptx_cluster_rank();
    const i64 b = blockIdx.x / p.cluster;
    const Span scope = p.cu_seqlens.at ? span(p.cu_seqlens, b, p.tokens) : Span{0, p.tokens};
    const Part part = {scope.begin + rank * THREADS + threadIdx.x, scope.end,
                       (i64)p.cluster * THREADS, rank, p.cluster};
    const double y = select(p, part, s);
    if (rank == 0 && threadIdx.x == 0) p.y.set(b, from_f64<R>(y));
    if (!p.keep.at) return;
    for (i64 t = part.first; t < part.end; t += part.step) {
        const bool top = !p.keeps_none && wide(p.x, t) >= y;
        p.keep.set(t, (u8)(counts(p, t) ? top : p.others));
    }
}

// One block per multiprocessor: up to 90 registers per thread; two would make it 64, and spill.
KERNEL(quantile_f32, (THREADS, 1), QuantileParams<float>) { quantile<float>(p); }
KERNEL(quantile_f64, (THREADS, 1), QuantileParams<double>) { quantile<double>(p); }
