// Rows of logits: how the kernels of the vocabulary read one and sum over it.
//
// A row is cut into tiles of 128 vectors of 16 bytes, one tile a warp and pass; lane l of a tile
// owns vectors l, 32 + l, 64 + l, 96 + l. On sm_90a a long row is shared by the blocks of a
// cluster, each with a run of tiles. Which thread sums which column follows from the column's
// number, the row's extent and the kernel set, never from an address: a row has the same bits
// wherever it lies.
//
// A row that does not start on 16 bytes (odd extents) is read in the aligned words that memory has;
// a vector is then cut out of two words, the second of which is the next lane's. That costs one
// word in 128 and four shuffles a vector instead of eight narrow loads.
//
// Sums are online: each thread keeps its maximum and sums relative to it, all multiplied by
// 2^(old - new) once a tile. exp(z - m) is 2^((t - top)·c) with z = k·t, c = k·log2 e, so that the
// maximum's own term is exactly 1: sums are >= 1, log-probs <= 0, and a certain token has exactly
// 0.
#pragma once

#include "common.cuh"

static constexpr int THREADS = 256;
static constexpr int WARPS = THREADS / WARP;
static constexpr int SPAN = 4;            // vectors of a lane in a tile
static constexpr int TILE = SPAN * WARP;  // vectors of a tile
static constexpr i32 IGNORE = -100;
static constexpr float LOWEST = -3.402823466e38f;
static constexpr float FLOOR = -200.0f;  // 2^FLOOR is 0; keeps 0·(-inf) out of the sums
static constexpr double LN2 = 0.6931471805599453;

// What all row kernels know of their rows.
struct RowSet {
    i64 vocab;    // columns that exist
    i64 columns;  // columns of the matrix
    double k;     // z = k·t
    float c;      // k·log2 e
    i32 cluster;  // blocks that share a row: 2^shift
    i32 shift;
    i32 bend;  // t = x (0), -x (1) or tanh(a·x) (2)
    float a;   // inner factor of t
    i32 unused;
    i64 share;  // tiles of a block
    i64 held;   // 16-byte words of a block's part in shared memory; 0 = read the row again instead
};

// ---- from stored logits to t -------------------------------------------------------------------

// tanh without a branch: 1 - 2/(1 + e^2|x|), and below 0.55, where that cancels, a polynomial in x²
// with a relative error of 1e-9.
__device__ __forceinline__ float tanh_f32(float x) {
    const float u = fabsf(x), s = x * x;
    const float large = __fmaf_rn(-2.0f, ptx_rcp(1.0f + ptx_ex2(2.885390082f * u)), 1.0f);
    float p = -0.0062824577f;
    p = __fmaf_rn(p, s, 0.021077747f);
    p = __fmaf_rn(p, s, -0.053853855f);
    p = __fmaf_rn(p, s, 0.13332602f);
    p = __fmaf_rn(p, s, -0.33333318f);
    const float small = __fmaf_rn(p * s, u, u);
    return copysignf(u < 0.55f ? small : large, x);
}

// t of some logits, in place. -inf marks a token that cannot occur and stays -inf.
// One branch for four logits: one for all would keep all their temporaries alive at once.
template <int COUNT> __device__ __forceinline__ void bend_all(const RowSet& s, float (&t)[COUNT]) {
    constexpr int AT_ONCE = COUNT < 4 ? COUNT : 4;
#pragma unroll
    for (int first = 0; first < COUNT; first += AT_ONCE) {
        if (s.bend == 0) continue;
#pragma unroll
        for (int i = first; i < first + AT_ONCE; ++i) {
            const float u = s.a * t[i];
            t[i] = t[i] == -INF_F32 ? t[i] : s.bend == 1 ? u : tanh_f32(u);
        }
    }
}

__device__ __forceinline__ float bend(const RowSet& s, float x) {
    float t[1] = {x};
    bend_all(s, t);
    return t[0];
}

// dt/dx; sech² by e^(-2|u|), which does not cancel where tanh is close to 1.
__device__ __forceinline__ float slope(const RowSet& s, float x) {
    if (s.bend == 0) return 1.0f;
    if (s.bend == 1) return s.a;
    const float w = ptx_ex2(-2.885390082f * fabsf(s.a * x));
    return s.a * 4.0f * w / ((1.0f + w) * (1.0f + w));
}

__device__ __forceinline__ u32 bits_of(float x) { return __float_as_int(x); }
__device__ __forceinline__ u32 bits_of(bf16 x) { return x.bits; }
__device__ __forceinline__ u32 bits_of(f16 x) { return x.bits; }

template <class T> __device__ __forceinline__ T from_raw(u32 bits);
template <> __device__ __forceinline__ float from_raw<float>(u32 bits) {
    return __int_as_float(bits);
}
template <> __device__ __forceinline__ bf16 from_raw<bf16>(u32 bits) { return {(u16)bits}; }
template <> __device__ __forceinline__ f16 from_raw<f16>(u32 bits) { return {(u16)bits}; }

// N logits in f32.
template <class T> __device__ __forceinline__ void widen(const Vec16<T>& v, float* t) {
#pragma unroll
    for (int k = 0; k < Vec16<T>::N; ++k) t[k] = to_f32(v.at[k]);
}
template <> __device__ __forceinline__ void widen<bf16>(const Vec16<bf16>& v, float* t) {
    const u32 pairs[4] = {v.raw.x, v.raw.y, v.raw.z, v.raw.w};
#pragma unroll
    for (int k = 0; k < 4; ++k)
        t[2 * k] = __int_as_float(pairs[k] << 16),
              t[2 * k + 1] = __int_as_float(pairs[k] & 0xffff0000u);
}

// Multiplies gradients by dt/dx at the logits `x`.
template <class T>
__device__ __forceinline__ void times_slope(const RowSet& s, const Vec16<T>& x,
                                            float (&d)[Vec16<T>::N]) {
    if (s.bend == 0) return;
#pragma unroll
    for (int i = 0; i < Vec16<T>::N; ++i) d[i] *= slope(s, to_f32(x.at[i]));
}

// ---- reading -----------------------------------------------------------------------------------

// The tiles of one row that one block owns.
template <class T> struct Part {
    static constexpr int N = Vec16<T>::N;
    static constexpr int COLUMNS = SPAN * N;  // of a lane in a tile
    const T* row;                             // column 0
    i64 vocab;
    int lead;        // elements between the 16-byte boundary before column 0 and it
    i64 first, end;  // tiles

    __device__ __forceinline__ Part(const RowSet& s, const T* row, int rank)
        : row(row), vocab(s.vocab), lead((int)((u64)row % 16 / sizeof(T))) {
        const i64 tiles = (u64)(s.vocab + TILE * N - 1) / (TILE * N);
        first = min(tiles, s.share * rank), end = min(tiles, first + s.share);
    }

    // Word w of the row's memory holds columns N·w - lead and on. Columns outside [from, to) are
    // not read and come as 0.
    __device__ __forceinline__ Vec16<T> word(i64 w, i64 from, i64 to) const {
        const i64 column = w * N - lead;
        Vec16<T> v;
        if (column >= from && column + N <= to) {
            v.raw = ptx_load_stream(row + column);
            return v;
        }
        u64 low = 0, high = 0;
#pragma unroll 1
        for (int k = (int)min((i64)N, to - column) - 1; k >= 0; --k) {
            high = high << 8 * sizeof(T) | low >> (64 - 8 * sizeof(T));
            low <<= 8 * sizeof(T);
            if (column + k >= from) low |= bits_of(row[column + k]);
        }
        v.raw = make_uint4((u32)low, (u32)(low >> 32), (u32)high, (u32)(high >> 32));
        return v;
    }
    __device__ __forceinline__ Vec16<T> word(i64 w) const { return word(w, 0, vocab); }

    // Words of memory that the part reaches into.
    __device__ __forceinline__ i64 words() const { return (end - first) * TILE + (lead ? 1 : 0); }

    // First column of this lane's vector `k` of a tile.
    __device__ __forceinline__ i64 column(i64 tile, int k) const {
        return (tile * TILE + k * WARP + threadIdx.x % WARP) * N;
    }
};

// 16 bytes that start `lead` elements into `a` and go on in `b`.
template <class T> __device__ __forceinline__ uint4 cut(const uint4& a, const uint4& b, int lead) {
    u32 w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    const int bytes = lead * (int)sizeof(T);
#pragma unroll
    for (int i = 0; i < 6; ++i) w[i] = bytes & 8 ? w[i + 2] : w[i];
#pragma unroll
    for (int i = 0; i < 5; ++i) w[i] = bytes & 4 ? w[i + 1] : w[i];
    const int bits = bytes % 4 * 8;
    return make_uint4(__funnelshift_r(w[0], w[1], bits), __funnelshift_r(w[1], w[2], bits),
                      __funnelshift_r(w[2], w[3], bits), __funnelshift_r(w[3], w[4], bits));
}

// N columns of a block's part from `column` on, whatever word they start in; what lies outside the
// part is anything. Comes from `held` if the row is there.
template <class T>
__device__ __forceinline__ Vec16<T> read_columns(const Part<T>& part, const uint4* held,
                                                 i64 column) {
    constexpr int N = Vec16<T>::N;
    const i64 from = part.first * TILE * N, to = min(part.end * TILE * N, part.vocab);
    const i64 w = (u64)(column + part.lead) / N;
    const int lead = (int)(column + part.lead) % N;
    auto word = [&](i64 w) {
        if (!held) return part.word(w, from, to).raw;
        const i64 place = w - part.first * TILE;
        return place >= 0 && place < part.words() ? held[place] : make_uint4(0, 0, 0, 0);
    };
    Vec16<T> v;
    v.raw = word(w);
    if (lead) v.raw = cut<T>(v.raw, word(w + 1), lead);
    return v;
}

// Copies a block's part of a row to shared memory.
template <class T> __device__ __forceinline__ void hold(const Part<T>& part, uint4* held) {
    for (i64 w = threadIdx.x; w < part.words(); w += THREADS)
        held[w] = part.word(part.first * TILE + w).raw;
}

// A lane's columns of a tile as t, -inf where there is no column. If `held` is given, the words go
// there too, word w of the row to held[w - TILE·first].
template <class T>
__device__ __forceinline__ void read_tile(const Part<T>& part, const RowSet& s, i64 tile,
                                          uint4* held, float (&t)[Part<T>::COLUMNS]) {
    constexpr int N = Vec16<T>::N;
    const int lane = threadIdx.x % WARP;
    const i64 first = tile * TILE + lane;
    uint4* here = held + (first - part.first * TILE);
    Vec16<T> v[SPAN];
#pragma unroll
    for (int k = 0; k < SPAN; ++k) v[k] = part.word(first + k * WARP);
    if (held) {
#pragma unroll
        for (int k = 0; k < SPAN; ++k) here[k * WARP] = v[k].raw;
    }
    if (part.lead) {
        // The same address in all lanes: one sector, and no lane waits for another.
        const uint4 next = part.word((tile + 1) * TILE).raw;
        if (held && lane == 0 && tile == part.end - 1) here[TILE] = next;
#pragma unroll
        for (int k = 0; k < SPAN; ++k) {
            // Lane 0 gives lane 31 the first word of the next 32.
            const uint4 give = lane ? v[k].raw : k + 1 < SPAN ? v[(k + 1) % SPAN].raw : next;
            uint4 take;
            take.x = __shfl_sync(ALL_LANES, give.x, lane + 1);
            take.y = __shfl_sync(ALL_LANES, give.y, lane + 1);
            take.z = __shfl_sync(ALL_LANES, give.z, lane + 1);
            take.w = __shfl_sync(ALL_LANES, give.w, lane + 1);
            v[k].raw = cut<T>(v[k].raw, take, part.lead);
        }
    }
#pragma unroll
    for (int k = 0; k < SPAN; ++k) widen(v[k], t + k * N);
    bend_all(s, t);
    if ((tile + 1) * TILE * N > part.vocab) {
#pragma unroll
        for (int i = 0; i < SPAN * N; ++i)
            if (part.column(tile, i / N) + i % N >= part.vocab) t[i] = -INF_F32;
    }
}

// ---- writing -----------------------------------------------------------------------------------

// Writes a block's part of a row of gradients, word by word: `gradient(v, column)` turns the
// logits of N columns into their gradients. Columns behind the vocabulary become 0. With `held` =
// null the logits are read again; each thread reads a word before it writes it, so `out` may be
// the row itself. `reads` = false hands out zeros in place of logits.
template <class T, class F>
__device__ __forceinline__ void write_part(const Part<T>& part, const RowSet& s, T* out, int rank,
                                           const uint4* held, bool reads, F gradient) {
    constexpr int N = Vec16<T>::N;
    const i64 from = min(part.first * TILE * N, s.vocab), real = min(part.end * TILE * N, s.vocab);
    const i64 to = rank == s.cluster - 1 ? s.columns : real;
    const bool whole = (u64)out % 16 == part.lead * sizeof(T);
    const i64 last = (u64)(to + part.lead + N - 1) / N;
    for (i64 w = (u64)(from + part.lead) / N + threadIdx.x; w < last; w += THREADS) {
        const i64 column = w * N - part.lead;
        Vec16<T> v;
        v.raw = make_uint4(0, 0, 0, 0);
        if (reads && column < real) v = read_columns(part, held, column);
        gradient(v, column);
        if (column + N > s.vocab) {
#pragma unroll
            for (int k = 0; k < N; ++k)
                v.at[k] = column + k < s.vocab ? v.at[k] : from_f32<T>(0.0f);
        }
        if (whole && column >= from && column + N <= to) {
            ptx_store_stream(out + column, v.raw);
        } else {
#pragma unroll
            for (int k = 0; k < N; ++k)
                if (column + k >= from && column + k < to) out[column + k] = v.at[k];
        }
    }
}

// ---- sums --------------------------------------------------------------------------------------

// One thread's sums relative to its maximum, in powers of two: d = (t - top)·c.
struct Online {
    float top = LOWEST;
    float sum = 0.0f;       // Σ 2^d
    float weighted = 0.0f;  // Σ d·2^d
    float squares = 0.0f;   // Σ 2^2d
    float rest = 0.0f;      // Σ 2^d without the target's column
};

// What a row's sums are relative to its maximum `top`.
struct RowStats {
    float top;
    double sum, weighted, squares, rest;
    __device__ __forceinline__ bool empty() const { return top == LOWEST && sum == 0.0; }
};

__device__ __forceinline__ float log2_weight(float t, float top, float c) {
    return ptx_max_nan((t - top) * c, FLOOR);
}

// Adds a lane's columns of a tile. `skip` is the target's place among them, -1 if it is elsewhere,
// -2 if it is in no lane of the warp.
template <int COUNT, bool MOMENTS>
__device__ __forceinline__ void add(Online& o, const float (&t)[COUNT], float c, int skip) {
    float top = o.top;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) top = fmaxf(top, t[i]);
    const float drop = log2_weight(o.top, top, c), f = ptx_ex2(drop);
    float sum[4] = {}, weighted[4] = {}, squares[4] = {};
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const float d = MOMENTS ? log2_weight(t[i], top, c) : (t[i] - top) * c, e = ptx_ex2(d);
        sum[i % 4] += e;
        if (MOMENTS) {
            weighted[i % 4] = __fmaf_rn(d, e, weighted[i % 4]);
            squares[i % 4] = __fmaf_rn(e, e, squares[i % 4]);
        }
    }
    const float here = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    float rest = here;
    if (skip != -2) {
        float without = 0.0f;
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            without += i == skip ? 0.0f : ptx_ex2(log2_weight(t[i], top, c));
        if (skip >= 0) rest = without;
    }
    if (MOMENTS) {
        const float w = (weighted[0] + weighted[1]) + (weighted[2] + weighted[3]);
        o.weighted = __fmaf_rn(f, __fmaf_rn(drop, o.sum, o.weighted), w);
        o.squares =
            __fmaf_rn(f * f, o.squares, (squares[0] + squares[1]) + (squares[2] + squares[3]));
    }
    o.sum = __fmaf_rn(f, o.sum, here);
    o.rest = __fmaf_rn(f, o.rest, rest);
    o.top = top;
}

// Shared memory of the reductions.
struct RowShared {
    double warps[WARPS][5];
    double block[5];
    double partial[WARPS];
};

// The sums of groups of `width` lanes, all relative to the group's maximum.
__device__ __forceinline__ RowStats merge(RowStats r, int width, float c, bool moments, bool rest) {
    const float own = r.top;
#pragma unroll
    for (int step = 1; step < width; step *= 2)
        r.top = fmaxf(r.top, __shfl_xor_sync(ALL_LANES, r.top, step));
    const float drop = log2_weight(own, r.top, c);
    const double f = ptx_ex2(drop);
    if (moments) r.weighted = f * (r.weighted + drop * r.sum), r.squares *= f * f;
    r.sum *= f, r.rest *= f;
#pragma unroll
    for (int step = 1; step < width; step *= 2) {
        r.sum += __shfl_xor_sync(ALL_LANES, r.sum, step);
        if (rest) r.rest += __shfl_xor_sync(ALL_LANES, r.rest, step);
        if (moments) {
            r.weighted += __shfl_xor_sync(ALL_LANES, r.weighted, step);
            r.squares += __shfl_xor_sync(ALL_LANES, r.squares, step);
        }
    }
    return r;
}

__device__ __forceinline__ void put(double (&to)[5], const RowStats& r) {
    to[0] = r.top, to[1] = r.sum, to[2] = r.weighted, to[3] = r.squares, to[4] = r.rest;
}

// The row's sums from its threads': lanes, then warps, then blocks, each time a butterfly, so that
// every thread gets the same bits.
__device__ __forceinline__ RowStats combine(const Online& o, const RowSet& s, bool moments,
                                            bool rest, RowShared& shared) {
    const int lane = threadIdx.x % WARP;
    RowStats r = merge({o.top, o.sum, o.weighted, o.squares, o.rest}, WARP, s.c, moments, rest);
    if (lane == 0) put(shared.warps[threadIdx.x / WARP], r);
    __syncthreads();
    const double(&w)[5] = shared.warps[lane % WARPS];
    r = merge({(float)w[0], w[1], w[2], w[3], w[4]}, WARPS, s.c, moments, rest);
    if (s.cluster == 1) {
        __syncthreads();
        return r;
    }
    if (threadIdx.x == 0) put(shared.block, r);
    ptx_cluster_sync();
    double b[5];
#pragma unroll
    for (int i = 0; i < 5; ++i)
        b[i] = __longlong_as_double(ptx_cluster_load(&shared.block[i], lane & (s.cluster - 1)));
    ptx_cluster_sync();
    return merge({(float)b[0], b[1], b[2], b[3], b[4]}, s.cluster, s.c, moments, rest);
}

__device__ __forceinline__ u64 to_bits(double x) { return __double_as_longlong(x); }
__device__ __forceinline__ u64 to_bits(u64 x) { return x; }
template <class T> __device__ __forceinline__ T from_bits(u64 bits);
template <> __device__ __forceinline__ double from_bits<double>(u64 bits) {
    return __longlong_as_double(bits);
}
template <> __device__ __forceinline__ u64 from_bits<u64>(u64 bits) { return bits; }

// One value of every block of the row: lane r gets block r's, further lanes `neutral`.
template <class T>
__device__ __forceinline__ T of_blocks(T x, T neutral, const RowSet& s, RowShared& shared) {
    if (threadIdx.x == 0) shared.block[0] = from_bits<double>(to_bits(x));
    ptx_cluster_sync();
    const int lane = threadIdx.x % WARP;
    const T there = from_bits<T>(ptx_cluster_load(&shared.block[0], lane & (s.cluster - 1)));
    const T y = lane < s.cluster ? there : neutral;
    ptx_cluster_sync();
    return y;
}

// The values of all threads of the row combined; every thread gets the same bits.
template <class T, class Op>
__device__ __forceinline__ T row_reduce(T x, T neutral, Op op, const RowSet& s, RowShared& shared) {
    x = block_reduce<THREADS>(x, neutral, op, (T*)shared.partial);
    return s.cluster == 1 ? x : warp_reduce(of_blocks(x, neutral, s, shared), op);
}

// A row's sums, reading it once; `target` = -1 leaves `rest` alone.
template <class T>
__device__ __forceinline__ RowStats row_stats(const Part<T>& part, const RowSet& s, i64 target,
                                              bool moments, uint4* held, RowShared& shared) {
    constexpr int N = Vec16<T>::N;
    Online o;
    const u64 vector = (u64)target / N;
    const int lane = threadIdx.x % WARP;
    const int mine = vector % WARP == lane ? (int)(vector % TILE / WARP * N + (u64)target % N) : -1;
    for (i64 tile = part.first + threadIdx.x / WARP; tile < part.end; tile += WARPS) {
        float t[Part<T>::COLUMNS];
        read_tile(part, s, tile, held, t);
        const int skip = target >= 0 && tile == (i64)(vector / TILE) ? mine : -2;
        if (moments) add<SPAN * N, true>(o, t, s.c, skip);
        else add<SPAN * N, false>(o, t, s.c, skip);
    }
    return combine(o, s, moments, target >= 0, shared);
}

// ---- what a row's sums say ---------------------------------------------------------------------

// log Σ exp(z).
__device__ __forceinline__ double row_lse(const RowSet& s, const RowStats& r) {
    return r.empty() ? -INF_F64 : s.k * (double)r.top + log(r.sum);
}

// -Σ p·log p = log Σ exp(z - m) - mean(z - m).
__device__ __forceinline__ double row_entropy(const RowStats& r) {
    if (r.empty()) return 0.0;
    const double h = log(r.sum) - LN2 * r.weighted / r.sum;
    return h < 0.0 ? 0.0 : h;
}

// z - lse of one logit.
__device__ __forceinline__ double row_logp(const RowSet& s, const RowStats& r, float t) {
    if (t == -INF_F32 && r.sum == r.sum) return -INF_F64;
    return s.k * ((double)t - (double)r.top) - log(r.sum);
}
