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
// Mapping: half a warp per row, column j in lane j mod 16; 16 rows per block. dweight: one thread
// per column.
// Traffic: 2·T·D elements forward (x comes from L2 the second time), 3·T·D backward (4 with a
// residual); 4 and 8 flops per element, in f64.
// Numerics: sums in f64 in the order of the CPU, 16 chains folded in halves; every element is
// formed in f64 and rounded once. A residual is added in f32 to the gradient rounded to f32, and
// the sum rounded once; in f64 to all of it. All bits are those of the CPU.
// Trick: 16 loads of a chain under way at a time. On an H200, 512 x 1,536 rows: f32 44 -> 14 µs,
// bf16 38 -> 18; it still waits more than it reads (5 to 9 % of the memory floor).
#include "common.cuh"
#include "rmsnorm.h"

// The sum over the 16 lanes of a row: halves onto each other.
__device__ __forceinline__ double fold(double x) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// body(j) for the columns of this lane in order, the loads of UNROLLED columns under way at a time.
static constexpr int UNROLLED = 16;
template <class Load, class Body>
__device__ __forceinline__ void for_columns(i64 columns, const Load& load, const Body& body) {
    i64 j = threadIdx.x % LANES;
    for (; j + (UNROLLED - 1) * LANES < columns; j += UNROLLED * LANES) {
        decltype(load(j)) values[UNROLLED];
#pragma unroll
        for (int u = 0; u < UNROLLED; ++u) values[u] = load(j + u * LANES);
#pragma unroll
        for (int u = 0; u < UNROLLED; ++u) body(j + u * LANES, values[u]);
    }
    for (; j < columns; j += LANES) body(j, load(j));
}

template <class T>
__device__ __forceinline__ double inverse_rms(const T* x, const RmsNormParams<T>& p, bool real) {
    double sum = 0.0;
    for_columns(
        real ? p.columns : 0, [&](i64 j) { return x[j]; },
        [&](i64, T v) { sum = fma(to_f64(v), to_f64(v), sum); });
    return 1.0 / sqrt(__dadd_rn(fold(sum) / (double)p.columns, p.eps));
}

template <class T> __device__ __forceinline__ void rmsnorm(const RmsNormParams<T>& p) {
    const i64 row = (i64)blockIdx.x * ROWS + threadIdx.x / LANES;
    const bool real = row < p.rows;
    const T* x = p.x + row * p.x_stride;
    const double s = inverse_rms(x, p, real);
    if (!real) return;
    T* y = p.out + row * p.out_stride;
    struct Two {
        T x, weight;
    };
    for_columns(
        p.columns, [&](i64 j) { return Two{x[j], p.weight.at[j * p.weight.stride]}; },
        [&](i64 j, const Two& v) {
            y[j] = from_f64<T>(__dmul_rn(__dmul_rn(to_f64(v.x), s), to_f64(v.weight)));
        });
    if (threadIdx.x % LANES == 0) p.rstd.set(row, (float)s);
}

// residual + gradient in the arithmetic of the dtype: f64, or f32.
__device__ __forceinline__ double plus_gradient(double residual, double gradient) {
    return __dadd_rn(residual, gradient);
}
template <class T> __device__ __forceinline__ T plus_gradient(T residual, double gradient) {
    return from_f32<T>(__fadd_rn(to_f32(residual), (float)gradient));
}

template <class T> __device__ __forceinline__ void rmsnorm_bwd(const RmsNormParams<T>& p) {
    const i64 row = (i64)blockIdx.x * ROWS + threadIdx.x / LANES;
    const bool real = row < p.rows;
    const T *x = p.x + row * p.x_stride, *dy = p.dy + row * p.dy_stride;
    const double s = inverse_rms(x, p, real);
    double sum = 0.0;
    struct Three {
        T x, dy, weight;
    };
    const auto load = [&](i64 j) { return Three{x[j], dy[j], p.weight.at[j * p.weight.stride]}; };
    for_columns(real ? p.columns : 0, load, [&](i64, const Three& v) {
        sum = fma(__dmul_rn(to_f64(v.dy), to_f64(v.weight)), to_f64(v.x), sum);
    });
    const double shrink = __dmul_rn(__dmul_rn(fold(sum), s), s) / (double)p.columns;
    if (!real) return;
    T* dx = p.out + row * p.out_stride;
    const T* residual = p.residual + row * p.residual_stride;
    struct Four {
        Three of;
        T residual;
    };
    const auto load_all = [&](i64 j) { return Four{load(j), p.residual ? residual[j] : T{}}; };
    for_columns(p.columns, load_all, [&](i64 j, const Four& v) {
        const double g = __dmul_rn(to_f64(v.of.dy), to_f64(v.of.weight));
        const double gradient = __dmul_rn(s, fma(to_f64(v.of.x), -shrink, g));
        dx[j] = p.residual ? plus_gradient(v.residual, gradient) : from_f64<T>(gradient);
    });
    if (p.scale && threadIdx.x % LANES == 0) p.scale[row] = s;
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
