// y = x / rms(x) ⊙ weight with rms(x) = sqrt(mean(x²) + eps), and its gradients; backward, the
// gradient that goes past the norm is added on the way: dx = residual + ...
//
// RMSNorm (arXiv:1910.07467, eq. 4). With s = 1/rms, x̂ = s·x, g = dy ⊙ weight:
// dx = s·(g - x̂·mean(g ⊙ x̂)), dweight += Σ_rows dy ⊙ x̂.
//
// | operand     | shape  | dtype               | layout                          |
// |-------------|--------|---------------------|---------------------------------|
// | x, y, dy, dx, residual | [T, D] | f32, bf16, f16, f64 | rows contiguous, any row stride |
// | weight      | [D]    | as x                | any stride                      |
// | rstd        | [T]    | f32                 | any stride                      |
// | dweight     | [D]    | f32                 | any stride                      |
//
// Mapping: 16 to 256 threads per row, two pieces of 16 bytes each where D allows it; 256 threads
// per block. They bring the row to shared memory, 16 of them walk its chains there, and all write.
// Rows of more than 12 KB go through shared memory in pieces, and are read again to be written.
// dweight: one thread per column.
// Traffic: 2·T·D elements forward, 3·T·D backward (4 with a residual), and D of weight from L1 or
// L2; 4 and 8 flops per element, in f64.
// Numerics: sums in f64 in the order of the CPU, 16 chains folded in halves; every element is
// formed in f64 and rounded once. A residual is added in f32 to the gradient rounded to f32, and
// the sum rounded once; in f64 to all of it. All bits are those of the CPU.
// Trick: a row's loads are all under way at once. Half a warp per row with 2-byte loads waited for
// D/256 rounds of them, twice: measured 18 µs for 512 x 1,536 in bf16 (H200), 37 predicted for any
// number of rows of 3,584. Predicted now: 4 and 5 µs; not yet measured on hardware.
#include "common.cuh"
#include "rmsnorm.h"

// The sum over the 16 chains of a row: halves onto each other. Called by whole warps.
__device__ __forceinline__ double fold(double x) {
#pragma unroll
    for (int step = CHAINS / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// The threads of a row.
struct Team {
    int count, lane, row;  // threads; which this is; which row of the block
    __device__ __forceinline__ Team(i64 lanes)
        : count((int)lanes), lane(threadIdx.x & (int)lanes - 1), row(threadIdx.x / (int)lanes) {}
    __device__ __forceinline__ i64 first_row() const { return (i64)blockIdx.x * (THREADS / count); }
    // Columns of a row that shared memory holds: whole vectors and rounds of the chains.
    template <class T> __device__ __forceinline__ int piece() const {
        return STAGE_BYTES / (int)sizeof(T) / THREADS * count;
    }
};

// `count` columns from `from` on, to shared memory; AHEAD pieces of a thread under way at once.
static constexpr int AHEAD = 3;
template <class T>
__device__ __forceinline__ void stage(T* to, const T* from, int count, const Team& team) {
    constexpr int N = Vec16<T>::N;
    const int whole = aligned16(from) ? count / N * N : 0, step = team.count * N;
    for (int j = team.lane * N; j < whole; j += AHEAD * step) {
        uint4 v[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k)
            if (j + k * step < whole) v[k] = *(const uint4*)(from + j + k * step);
#pragma unroll
        for (int k = 0; k < AHEAD; ++k)
            if (j + k * step < whole) *(uint4*)(to + j + k * step) = v[k];
    }
    for (int j = whole + team.lane; j < count; j += team.count) to[j] = from[j];
}
template <class T>
__device__ __forceinline__ void stage(T* to, const Column<const T>& from, i64 first, int count,
                                      const Team& team) {
    if (from.stride == 1) return stage(to, from.at + first, count, team);
    for (int j = team.lane; j < count; j += team.count) to[j] = from.at[(first + j) * from.stride];
}

// out[j] = f(in[0][j], in[1][j], ..) for the columns of a row; in[k] null: zeros.
template <class T, int K, class F>
__device__ __forceinline__ void map_row(T* out, const T* const (&in)[K], const i64 (&stride)[K],
                                        i64 columns, const Team& team, const F& f) {
    constexpr int N = Vec16<T>::N;
    bool pieces = aligned16(out);
#pragma unroll
    for (int k = 0; k < K; ++k) pieces = pieces && stride[k] == 1 && aligned16(in[k]);
    const i64 whole = pieces ? columns / N * N : 0;
    for (i64 j = team.lane * N; j < whole; j += team.count * N) {
        Vec16<T> v[K], result;
#pragma unroll
        for (int k = 0; k < K; ++k)
            v[k].raw = in[k] ? *(const uint4*)(in[k] + j) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int e = 0; e < N; ++e) {
            T one[K];
#pragma unroll
            for (int k = 0; k < K; ++k) one[k] = v[k].at[e];
            result.at[e] = f(one);
        }
        *(uint4*)(out + j) = result.raw;
    }
    for (i64 j = whole + team.lane; j < columns; j += team.count) {
        T one[K];
#pragma unroll
        for (int k = 0; k < K; ++k) one[k] = in[k] ? in[k][j * stride[k]] : T{};
        out[j] = f(one);
    }
}

// 1/rms of a row with that sum of squares.
template <class T>
__device__ __forceinline__ double inverse_rms(double sum, const RmsNormParams<T>& p) {
    return 1.0 / sqrt(__dadd_rn(sum / (double)p.columns, p.eps));
}

template <class T> __device__ __forceinline__ void rmsnorm(const RmsNormParams<T>& p) {
    __shared__ __align__(16) T staged[STAGE_BYTES / sizeof(T)];
    __shared__ double scale[THREADS / CHAINS];
    const Team team(p.lanes);
    const i64 row = team.first_row() + team.row;
    const bool real = row < p.rows;
    const int piece = team.piece<T>();
    const T* from = p.x + row * p.x_stride;
    T* x = staged + team.row * piece;
    double sum = 0.0;
    for (i64 first = 0; first < p.columns; first += piece) {
        const i64 left = p.columns - first;
        const int count = !real ? 0 : left < piece ? (int)left : piece;
        if (first > 0) __syncthreads();
        stage(x, from + first, count, team);
        __syncthreads();
        if (team.lane >= CHAINS) continue;
#pragma unroll 16
        for (int j = team.lane; j < count; j += CHAINS) sum = fma(to_f64(x[j]), to_f64(x[j]), sum);
    }
    if (team.lane < WARP) {
        sum = fold(sum);
        if (team.lane == 0) scale[team.row] = inverse_rms(sum, p);
    }
    __syncthreads();
    if (!real) return;
    const double s = scale[team.row];
    T* y = p.out + row * p.out_stride;
    const auto normalize = [&](const T(&v)[2]) {
        return from_f64<T>(__dmul_rn(__dmul_rn(to_f64(v[0]), s), to_f64(v[1])));
    };
    const i64 strides[2] = {1, p.weight.stride};
    if (p.columns <= piece) map_row(y, {x, p.weight.at}, strides, p.columns, team, normalize);
    else map_row(y, {from, p.weight.at}, strides, p.columns, team, normalize);
    if (team.lane == 0) p.rstd.set(row, (float)s);
}

// residual + gradient in the arithmetic of the dtype: f64, or f32.
__device__ __forceinline__ double plus_gradient(double residual, double gradient) {
    return __dadd_rn(residual, gradient);
}
template <class T> __device__ __forceinline__ T plus_gradient(T residual, double gradient) {
    return from_f32<T>(__fadd_rn(to_f32(residual), (float)gradient));
}

template <class T> __device__ __forceinline__ void rmsnorm_bwd(const RmsNormParams<T>& p) {
    __shared__ __align__(16) T staged[3][STAGE_BYTES / sizeof(T)];
    __shared__ double scale[THREADS / CHAINS], shrinks[THREADS / CHAINS];
    const Team team(p.lanes);
    const i64 row = team.first_row() + team.row;
    const bool real = row < p.rows;
    const int piece = team.piece<T>(), at = team.row * piece;
    const T *from = p.x + row * p.x_stride, *from_dy = p.dy + row * p.dy_stride;
    T *x = staged[0] + at, *dy = staged[1] + at, *weight = staged[2] + at;
    double square = 0.0, sum = 0.0;
    for (i64 first = 0; first < p.columns; first += piece) {
        const i64 left = p.columns - first;
        const int count = !real ? 0 : left < piece ? (int)left : piece;
        if (first > 0) __syncthreads();
        stage(x, from + first, count, team), stage(dy, from_dy + first, count, team);
        stage(weight, p.weight, first, count, team);
        __syncthreads();
        if (team.lane >= CHAINS) continue;
#pragma unroll 8
        for (int j = team.lane; j < count; j += CHAINS) {
            square = fma(to_f64(x[j]), to_f64(x[j]), square);
            sum = fma(__dmul_rn(to_f64(dy[j]), to_f64(weight[j])), to_f64(x[j]), sum);
        }
    }
    if (team.lane < WARP) {
        square = fold(square), sum = fold(sum);
        const double s = inverse_rms(square, p);
        if (team.lane == 0) {
            scale[team.row] = s;
            shrinks[team.row] = __dmul_rn(__dmul_rn(sum, s), s) / (double)p.columns;
        }
    }
    __syncthreads();
    if (!real) return;
    const double s = scale[team.row], shrink = shrinks[team.row];
    T* dx = p.out + row * p.out_stride;
    const T* residual = p.residual ? p.residual + row * p.residual_stride : nullptr;
    const auto propagate = [&](const T(&v)[4]) {
        const double g = __dmul_rn(to_f64(v[1]), to_f64(v[2]));
        const double gradient = __dmul_rn(s, fma(to_f64(v[0]), -shrink, g));
        return residual ? plus_gradient(v[3], gradient) : from_f64<T>(gradient);
    };
    const i64 whole[4] = {1, 1, 1, 1}, strides[4] = {1, 1, p.weight.stride, 1};
    if (p.columns <= piece)
        map_row(dx, {x, dy, weight, residual}, whole, p.columns, team, propagate);
    else map_row(dx, {from, from_dy, p.weight.at, residual}, strides, p.columns, team, propagate);
    if (p.scale && team.lane == 0) p.scale[row] = s;
}

// Rows in order, one chain a column.
template <class T> __device__ __forceinline__ void rmsnorm_dweight(const DweightParams<T>& p) {
    const i64 j = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (j >= p.columns) return;
    double sum = 0.0;
#pragma unroll 4
    for (i64 row = 0; row < p.rows; ++row)
        sum = fma(__dmul_rn(to_f64(p.dy[row * p.dy_stride + j]), to_f64(p.x[row * p.x_stride + j])),
                  p.scale[row], sum);
    p.dweight.set(j, (float)((double)p.dweight.get(j) + sum));
}

KERNEL(rmsnorm_f32, (THREADS), RmsNormParams<float>) { rmsnorm(p); }
KERNEL(rmsnorm_bwd_f32, (THREADS), RmsNormParams<float>) { rmsnorm_bwd(p); }
KERNEL(rmsnorm_dweight_f32, (THREADS), DweightParams<float>) { rmsnorm_dweight(p); }
KERNEL(rmsnorm_bf16, (THREADS), RmsNormParams<bf16>) { rmsnorm(p); }
KERNEL(rmsnorm_bwd_bf16, (THREADS), RmsNormParams<bf16>) { rmsnorm_bwd(p); }
KERNEL(rmsnorm_dweight_bf16, (THREADS), DweightParams<bf16>) { rmsnorm_dweight(p); }
KERNEL(rmsnorm_f16, (THREADS), RmsNormParams<f16>) { rmsnorm(p); }
KERNEL(rmsnorm_bwd_f16, (THREADS), RmsNormParams<f16>) { rmsnorm_bwd(p); }
KERNEL(rmsnorm_dweight_f16, (THREADS), DweightParams<f16>) { rmsnorm_dweight(p); }
KERNEL(rmsnorm_f64, (THREADS), RmsNormParams<double>) { rmsnorm(p); }
KERNEL(rmsnorm_bwd_f64, (THREADS), RmsNormParams<double>) { rmsnorm_bwd(p); }
KERNEL(rmsnorm_dweight_f64, (THREADS), DweightParams<double>) { rmsnorm_dweight(p); }
