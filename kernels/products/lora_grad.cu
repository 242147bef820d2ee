// dA += dSᵀ·X and dB += dYᵀ·S over the rows that took the adapter: products whose steps are rows.
//
// Gradients of a low-rank adapter (LoRA, arXiv:2106.09685, eq. 3). dS = scale·dY·B comes from
// `matmul_low`.
//
// | operand       | shape            | dtype                | layout                          |
// |---------------|------------------|----------------------|---------------------------------|
// | left (dS, S)  | [M, r]           | f32 (f64 with f64 x) | rows contiguous, any row stride |
// | right (X, dY) | [M, C]           | f32, bf16, f16, f64  | rows contiguous, any row stride |
// | adapter       | [M]              | i32                  | any stride                      |
// | out           | [r, C] or [C, r] | f32                  | any strides                     |
//
// Three kernels. `pick` lists the rows that took the adapter, in order. The listed rows are cut
// into chunks of 128, counted from the first of them: `lora_grad` gives each chunk's sums, of both
// products in one launch, and `lora_grad_add` adds those in order and the old gradient last.
//
// Mapping: a thread has 4 neighboring columns (f64: 2) and 16 (8) of the r lanes, so that it reads
// an element of the right side once, straight into registers, 8 (4) rows ahead; the left side of
// the chunk lies in shared memory, and a warp reads the same 16 bytes of it. Blocks: columns,
// lanes, chunks.
// Traffic: M·C elements of X and dY ceil(r/16) times, M·r of dS and S ceil(C/512) times, r·C sums
// of a chunk written and read; 2·M·r·C flops.
//
// Counted, bf16, floor model of an H200, against a tile of 32 lanes x 64 columns in shared memory:
// 1. A right element is used by one thread: no staging, no barrier, no idle lanes at r = 16. 1,024
//    rows, r = 16, C = 1,024 twice: 4.95 -> 1.8 instructions per useful multiply-add, issue 4.96 ->
//    1.77 µs; 2,304 rows, C = 2,048 twice: 1.46. r = 8 in tiles of 8 lanes: 9.9 -> 1.8.
// 2. Chunks: 32 blocks in two launches with 1,024 rows one after another -> 64 in one with 128
//    rows.
// 3. A chunk is padded with left = -0 and right = +0, a product that changes no sum: the loop over
//    rows has no test. 1.66 -> 1.49 instructions at 16 lanes.
// 4. bf16 is widened two at a time by a shift and a mask: no conversions.
//
// Numerics: f32 (f64) chains in row order, started from 0; their sums in order; old value last; one
// rounding to f32. The bits of the CPU.
#include "common.cuh"
#include "lora_grad.h"

// ---- sums of a chunk ----------------------------------------------------------------------------

// N neighboring elements, 8 or 16 bytes, in registers.
template <class T, int N> struct Elements {
    union {
        u32 word[N * sizeof(T) / 4];
        T at[N];
    };
    __device__ __forceinline__ Elements() {}
    __device__ __forceinline__ void load(const T* p) {
        if (sizeof(word) == 16) *(uint4*)word = *(const uint4*)p;
        else *(uint2*)word = *(const uint2*)p;
    }
};

// Element j as what is added up. Halves of bf16 are whole instructions on their word, not
// conversions.
template <int N> __device__ __forceinline__ float widened(const Elements<bf16, N>& x, int j) {
    return __int_as_float(j % 2 ? x.word[j / 2] & 0xffff0000u : x.word[j / 2] << 16);
}
template <int N> __device__ __forceinline__ float widened(const Elements<f16, N>& x, int j) {
    return to_f32(x.at[j]);
}
template <int N> __device__ __forceinline__ float widened(const Elements<float, N>& x, int j) {
    return x.at[j];
}
template <int N> __device__ __forceinline__ double widened(const Elements<double, N>& x, int j) {
    return x.at[j];
}

// The left side of a chunk and where the rows of the right one begin. Up to a whole number of
// ROWS_AHEAD the left side goes on with -0: times +0 and added to a sum that leaves every bit.
template <class A, int RANKS> struct Chunk {
    A left[CHUNK][RANKS];
    i64 start[CHUNK];
};

template <int ROWS_AHEAD, class T, class S, class A, int RANKS>
__device__ __forceinline__ void stage(Chunk<A, RANKS>& c, const LoraGradParams<T, S, A>& p,
                                      const Operands<T, S>& side, i64 first, int rows) {
    const int lane = threadIdx.x % RANKS;
    const i64 lane0 = (i64)blockIdx.y * RANKS;
    const S* left = side.left + (lane0 + lane) * side.left_lane;
    const bool there = lane0 + lane < p.rank;
#pragma unroll 4
    for (int i = threadIdx.x / RANKS; i < (rows + ROWS_AHEAD - 1) / ROWS_AHEAD * ROWS_AHEAD;
         i += THREADS / RANKS) {
        const i64 row = i < rows ? p.picked.of(first + i) : 0;
        if (lane == 0) c.start[i] = row * side.right_row;
        c.left[i][lane] = i < rows && there ? (A)left[row * side.left_row] : A(-0.0);
    }
    __syncthreads();
}

// A thread's columns of the right side: `left` of them, from `at` on.
template <class T, int WIDTH> struct Strip {
    const T* at;
    i64 left;
    bool whole;

    // ROWS_AHEAD rows from `from` on; what is not there is 0.
    template <int ROWS_AHEAD>
    __device__ __forceinline__ void fetch(Elements<T, WIDTH> (&to)[ROWS_AHEAD], const i64* start,
                                          int from, int rows) const {
        if (whole && from + ROWS_AHEAD <= rows) {
#pragma unroll
            for (int k = 0; k < ROWS_AHEAD; ++k) to[k].load(at + start[from + k]);
            return;
        }
        // A row at a time comes in at the end and moves up: little text.
#pragma unroll 1
        for (int k = 0; k < ROWS_AHEAD; ++k) {
            Elements<T, WIDTH> v;
#pragma unroll
            for (int j = 0; j < WIDTH; ++j)
                v.at[j] = from + k < rows && j < left ? at[start[from + k] + j] : T{};
#pragma unroll
            for (int i = 0; i + 1 < ROWS_AHEAD; ++i) to[i] = to[i + 1];
            to[ROWS_AHEAD - 1] = v;
        }
    }
};

// One more step of all chains.
template <class T, class A, int RANKS, int WIDTH>
__device__ __forceinline__ void add_row(A (&sum)[RANKS][WIDTH], const A (&left)[RANKS],
                                        const Elements<T, WIDTH>& right) {
    A x[WIDTH];
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) x[j] = widened(right, j);
#pragma unroll
    for (int q = 0; q < RANKS; ++q)
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) sum[q][j] = fma(left[q], x[j], sum[q][j]);
}

template <class T, class S, class A, int RANKS, int WIDTH>
__device__ __forceinline__ void chunk_sums(const LoraGradParams<T, S, A>& p,
                                           const Operands<T, S>& side, i64 tile) {
    constexpr int ROWS_AHEAD =
        sizeof(T) == 2 ? 8 : 4;  // rows that are asked for while others are added
    __shared__ __align__(16) Chunk<A, RANKS> c;
    const i64 count = p.picked.size(), first = (p.chunk + blockIdx.z) * CHUNK;
    if (first >= count && first > 0) return;
    const int rows = count - first < CHUNK ? (int)(count - first) : CHUNK;
    stage<ROWS_AHEAD>(c, p, side, first, rows);
    const i64 column = (tile * THREADS + threadIdx.x) * WIDTH;
    if (column >= side.columns) return;
    const Strip<T, WIDTH> strip = {side.right + column, side.columns - column,
                                   side.whole && column + WIDTH <= side.columns};
    A sum[RANKS][WIDTH];
#pragma unroll
    for (int q = 0; q < RANKS; ++q)
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) sum[q][j] = 0;
    Elements<T, WIDTH> now[ROWS_AHEAD], next[ROWS_AHEAD];
    strip.fetch(now, c.start, 0, rows);
#pragma unroll 1
    for (int from = 0; from < rows; from += ROWS_AHEAD) {
        if (from + ROWS_AHEAD < rows) strip.fetch(next, c.start, from + ROWS_AHEAD, rows);
#pragma unroll
        for (int k = 0; k < ROWS_AHEAD; ++k) {
            add_row(sum, c.left[from + k], now[k]);
            now[k] = next[k];
        }
    }
    A* line =
        p.sums + ((i64)blockIdx.z * p.rank + (i64)blockIdx.y * RANKS) * p.line + side.base + column;
#pragma unroll
    for (int q = 0; q < RANKS; ++q, line += p.line) {
        if ((i64)blockIdx.y * RANKS + q >= p.rank) break;
#pragma unroll
        for (int j = 0; j < WIDTH; j += Vec16<A>::N) ptx_store16(line + j, sum[q] + j);
    }
}

// Tiles of the first product, then of the second.
template <int RANKS, int WIDTH, class T, class S, class A>
__device__ __forceinline__ void lora_grad(const LoraGradParams<T, S, A>& p) {
    const i64 tiles = (p.first.columns + THREADS * WIDTH - 1) / (THREADS * WIDTH);
    const bool second = blockIdx.x >= tiles;
    Operands<T, S> side;
    side.left = second ? p.second.left : p.first.left;
    side.left_row = second ? p.second.left_row : p.first.left_row;
    side.left_lane = second ? p.second.left_lane : p.first.left_lane;
    side.right = second ? p.second.right : p.first.right;
    side.right_row = second ? p.second.right_row : p.first.right_row;
    side.columns = second ? p.second.columns : p.first.columns;
    side.base = second ? p.second.base : p.first.base;
    side.whole = second ? p.second.whole : p.first.whole;
    chunk_sums<T, S, A, RANKS, WIDTH>(p, side, second ? blockIdx.x - tiles : blockIdx.x);
}

KERNEL(lora_grad_f32, (THREADS), LoraGradParams<float, float, float>) { lora_grad<16, 4>(p); }
KERNEL(lora_grad_bf16, (THREADS), LoraGradParams<bf16, float, float>) { lora_grad<16, 4>(p); }
KERNEL(lora_grad_f16, (THREADS), LoraGradParams<f16, float, float>) { lora_grad<16, 4>(p); }
KERNEL(lora_grad_8_f32, (THREADS), LoraGradParams<float, float, float>) { lora_grad<8, 4>(p); }
KERNEL(lora_grad_8_bf16, (THREADS), LoraGradParams<bf16, float, float>) { lora_grad<8, 4>(p); }
KERNEL(lora_grad_8_f16, (THREADS), LoraGradParams<f16, float, float>) { lora_grad<8, 4>(p); }
KERNEL(lora_grad_f64, (THREADS), LoraGradParams<double, double, double>) { lora_grad<16, 2>(p); }
KERNEL(lora_grad_kept_f64, (THREADS), LoraGradParams<double, float, double>) {
    lora_grad<16, 2>(p);
}

// ---- the rows that took the adapter -------------------------------------------------------------

// One block, 1,024 rows at a time: a row's place is the number of picked ones before it.
KERNEL(lora_grad_pick, (PICKERS), LoraPickParams) {
    __shared__ i32 found[PICKERS / WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    i64 total = 0;
    for (i64 from = 0; from < p.rows; from += PICKERS) {
        const i64 row = from + threadIdx.x;
        const bool mine = row < p.rows && p.adapter.get(row) == p.index;
        const u32 votes = __ballot_sync(ALL_LANES, mine);
        if (lane == 0) found[warp] = __popc(votes);
        __syncthreads();
        const i32 of_warp = found[lane];
        const i32 before = warp_reduce(lane < warp ? of_warp : 0, Sum());
        if (mine) p.list[total + before + __popc(votes & ((1u << lane) - 1))] = (i32)row;
        total += warp_reduce(of_warp, Sum());
        __syncthreads();
    }
    if (threadIdx.x == 0) *p.count = total;
}

// ---- the sums of all chunks ---------------------------------------------------------------------

// `columns`: how many of the four there are. Vectors without one are not written.
template <class A>
__device__ __forceinline__ void add_four(A (&total)[4], const A* from, i64 columns) {
#pragma unroll
    for (int j = 0; j < 4; j += Vec16<A>::N) {
        if (j >= columns) break;
        Vec16<A> v;
        v.raw = *(const uint4*)(from + j);
#pragma unroll
        for (int i = 0; i < Vec16<A>::N; ++i) total[j + i] += v.at[i];
    }
}

// 16 lanes x 64 columns per block, one thread per 4 neighboring columns of a lane. The first
// chunk's sums are added to -0, which leaves every bit.
template <class A> __device__ __forceinline__ void add_chunks(const LoraAddParams<A>& p) {
    __shared__ __align__(16) A tile[LANES][COLUMNS + 4];
    const i64 rows = p.count ? *p.count : p.rows,
              all = rows > CHUNK ? (rows + CHUNK - 1) / CHUNK : 1;
    if (p.chunk >= all) return;
    const i64 end = all - p.chunk < p.chunks ? all - p.chunk : p.chunks;
    const i64 tiles = (p.first.columns + COLUMNS - 1) / COLUMNS;
    const bool second = blockIdx.x >= tiles;
    const i64 columns = second ? p.second.columns : p.first.columns;
    const i64 lane0 = (i64)blockIdx.y * LANES,
              column0 = (second ? blockIdx.x - tiles : blockIdx.x) * COLUMNS;
    const int l = threadIdx.x / 16, c = threadIdx.x % 16 * 4;
    A total[4] = {A(-0.0), A(-0.0), A(-0.0), A(-0.0)};
    if (lane0 + l < p.rank && column0 + c < columns) {
        const i64 place =
            (lane0 + l) * p.line + (second ? p.second.base : p.first.base) + column0 + c;
        if (p.chunk > 0) add_four(total, p.carry + place, columns - column0 - c);
#pragma unroll 4
        for (i64 i = 0; i < end; ++i)
            add_four(total, p.sums + i * p.rank * p.line + place, columns - column0 - c);
        if (p.chunk + end < all) {
            ptx_store16(p.carry + place, total);
            if (Vec16<A>::N == 2) ptx_store16(p.carry + place + 2, total + 2);
        }
    }
    if (p.chunk + end < all) return;
#pragma unroll
    for (int j = 0; j < 4; ++j) tile[l][c + j] = total[j];
    __syncthreads();
    float* out = second ? p.second.out : p.first.out;
    const i64 lane_stride = second ? p.second.lane_stride : p.first.lane_stride;
    const i64 column_stride = second ? p.second.column_stride : p.first.column_stride;
    const int t = threadIdx.x;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        // Neighboring threads write neighbors: 64 columns of a lane, or 8 lanes of 4 columns.
        const bool along = column_stride == 1;
        const int lane = along ? t / 64 + 4 * k : t % 8 + t / 32 % 2 * 8;
        const int column = along ? t % 64 : t / 8 % 4 + t / 64 * 4 + 16 * k;
        if (lane0 + lane >= p.rank || column0 + column >= columns) continue;
        float* at = out + (lane0 + lane) * lane_stride + (column0 + column) * column_stride;
        *at = (float)((A)*at + tile[lane][column]);
    }
}

KERNEL(lora_grad_add_f32, (ADDERS), LoraAddParams<float>) { add_chunks(p); }
KERNEL(lora_grad_add_f64, (ADDERS), LoraAddParams<double>) { add_chunks(p); }
