// Tiles on sm_80: mma.sync, a stage filled while the one before it is multiplied.
// A part of mma_gemm_tile.cuh.
#pragma once

template <int ROWS> static constexpr int TILE_THREADS = PRODUCERS;

// The sums of a warp: MT x 4 products m16n8.
template <int MT> struct WarpTile {
    float at[MT][4][4];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) at[i][j][e] = 0.0f;
    }
};

// Steps 8u + 4·(t % 2) + 32·(t / 2) and the next 3 of a row.
__device__ __forceinline__ uint2 four_steps(const char* stage, int row, int u) {
    const int t = threadIdx.x % 4;
    return *(const uint2*)(stage + k_major_offset(row, u + t / 2 * 4) + t % 2 * 8);
}

// Right operands of columns column0..column0+32 for product u.
template <bool N_MAJOR>
__device__ __forceinline__ void right_operands(u32 (&b)[4][2], const char* stage, int column0,
                                               int u) {
    const int lane = threadIdx.x % WARP;
    if (!N_MAJOR) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint2 v = four_steps(stage, column0 + 8 * j + lane / 4, u);
            b[j][0] = v.x, b[j][1] = v.y;
        }
        return;
    }
    // Matrix m: half m % 2 of columns 8·(m / 2); its rows are the steps in the order of four_steps.
    const int m = lane / 8, r = lane % 8;
    const int step = 8 * u + r % 2 + r / 2 % 2 * 4 + r / 4 * 32 + m % 2 * 2;
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
        u32 v[4];
        ptx_load_matrices_transposed(v, stage + n_major_offset(step, column0 / 8 + j + m / 2));
        b[j][0] = v[0], b[j][1] = v[1], b[j + 1][0] = v[2], b[j + 1][1] = v[3];
    }
}

template <class T, bool N_MAJOR, int MT>
__device__ __forceinline__ void multiply_stage(WarpTile<MT>& sum, const char* x, const char* w,
                                               int row0, int column0) {
    const int g = threadIdx.x % WARP / 4;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
        u32 b[4][2];
        right_operands<N_MAJOR>(b, w, column0, u);
#pragma unroll
        for (int i = 0; i < MT; ++i) {
            const uint2 upper = four_steps(x, row0 + 16 * i + g, u),
                        lower = four_steps(x, row0 + 16 * i + g + 8, u);
            const u32 a[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
            for (int j = 0; j < 4; ++j) Halves<T>::mma(sum.at[i][j], a, b[j]);
        }
    }
}

template <class T, int ROWS, bool N_MAJOR, class P, class Loader>
__device__ __forceinline__ void tile_sums(const P& p, const TileMemory<ROWS>& m,
                                          const TilePlace& place, Loader& w) {
    constexpr int MT = ROWS / 32;
    const int thread = threadIdx.x, warp = thread / WARP;
    const int warp_row = warp / 4 * (ROWS / 2), warp_column = warp % 4 * 32;
    const LowRankLoader<T, N_MAJOR> low(p, place.column0);
    const Steps steps(p, place.rank, low.stages);
    Producer<T, ROWS, N_MAJOR, Loader> producer = {
        m,          steps, {p.x, p.x_stride, place.row0, p.rows, p.depth}, w, low, p.parts,
        place.row0, p.rows};
    WarpTile<MT> sum, total;
    sum.clear(), total.clear();
    producer.copy(0, thread);
    for (int i = 0, in_chunk = 0; i < steps.all(); ++i) {
        const int stage = i % STAGES;
        ptx_copy_wait();
        __syncwarp();
        producer.expand(i, thread);
        __syncthreads();
        producer.copy(i + 1, thread);
        multiply_stage<T, N_MAJOR, MT>(sum, m.x(stage), m.w(stage), warp_row, warp_column);
        if (!steps.ends_chunk(i, ++in_chunk)) continue;
        in_chunk = 0;
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) total.at[i][j][e] += sum.at[i][j][e];
        sum.clear();
    }
    __syncthreads();
    float* to = m.sums() + (warp_row + thread % WARP / 4) * PITCH + warp_column + thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h)
                *(float2*)(to + (16 * i + 8 * h) * PITCH + 8 * j) =
                    make_float2(total.at[i][j][2 * h], total.at[i][j][2 * h + 1]);
}

template <int ROWS> __device__ __forceinline__ void tile_begin(const TileMemory<ROWS>&, bool) {}
