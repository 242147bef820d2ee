// Y = R + X·Wᵀ + bias + S·Bᵀ with S = scale·X·Aᵀ, its gradients dX = dY·W + dS·A and dW += dYᵀ·X.
//
// A linear layer with low-rank adapters (LoRA, arXiv:2106.09685, eq. 3); every row may take its
// own.
//
// | operand | shape        | dtype               | layout                                        |
// |---------|--------------|---------------------|-----------------------------------------------|
// | x, dy   | [M, K], [M, N] | f32, bf16, f16, f64 | rows contiguous, any row stride             |
// | w       | [N, K]       | as x                | rows contiguous, any row stride               |
// | a, b    | [r, K], [N, r] | as x              | rows contiguous, any row stride, per adapter |
// | adapter | [M]          | i32                 | any stride; -1 takes none                     |
// | s       | [M, r]       | f32                 | any row stride                                |
// | residual | [M, N]      | as x                | rows contiguous, any row stride               |
// | dw, dbias | [N, K], [N] | f32                | any row stride, any stride                    |
//
// Mapping. bf16 and f16 go through tensor cores: `matmul_few*` up to 16 rows (mma_gemm_skinny.cuh),
// `matmul_tile*` and `matmul_dx_tile*` otherwise (mma_gemm_tile.cuh); S of the adapters is such a
// product itself. f32, f64 and dW are product.cuh's, S of f32 and f64 is `matmul_low`.
// Traffic: M·K·ceil(N/128) + N·K·ceil(M/128) + M·N elements at most, the re-reads from L2, and M·N
// more for a residual or an old value; 2·M·N·K + 2·M·r·(K + N) flops.
// Numerics: f32 and f64 have the bits of the CPU. bf16 and f16 add in the order of mma_gemm.cuh,
// with f32 sums; bias and residual or old value are added in f32, and the sum is rounded once.
#include "mma_gemm_tile.cuh"
#include "matmul.h"

// low = scale·left·factorᵀ, each row with its adapter's factor; 0 in rows without one.
template <class T>
__device__ __forceinline__ void matmul_low(const LowParams<T, typename EngineOf<T>::Type::Sum>& p) {
    typedef typename EngineOf<T>::Type Engine;
    typedef typename Engine::Sum A;
    const i64 row0 = (i64)blockIdx.x * ROWS, column0 = (i64)blockIdx.y * COLUMNS,
              rank = p.lora.rank;
    Engine e;
    clear(e);
    // Rows without an adapter are group -1, whose sums stay 0.
#pragma unroll 1
    for (i64 g = -1; g < p.lora.count; ++g) {
        if (!p.lora.used(g, row0, p.rows)) continue;
        clear(e);
        if (g >= 0)
            sweep(e, p.left, p.lora.template operand<T>(g), row0, p.rows, column0, rank, p.depth);
        const double scale = g >= 0 ? p.lora.list[g].scale : 1.0;
        each(e, row0, p.rows, column0, rank, [&](i64 row, i64 column, A sum) {
            if (p.lora.of(row) != g) return;
            const A scaled = narrow<A>(scale * (double)sum);
            p.low[row * p.low_stride + column] = scaled;
            if (sizeof(A) == sizeof(double) && p.s) p.s[row * p.s_stride + column] = (float)scaled;
        });
    }
}

template <class T> __device__ __forceinline__ void matmul_dw(const DwParams<T>& p) {
    typedef typename EngineOf<T>::Type Engine;
    typedef typename Engine::Sum A;
    const i64 row0 = (i64)blockIdx.x * ROWS, column0 = (i64)blockIdx.y * COLUMNS;
    Engine e;
    clear(e);
    sweep(e, p.left, p.right, row0, p.rows, column0, p.columns, p.depth);
    each(e, row0, p.rows, column0, p.columns, [&](i64 row, i64 column, A sum) {
        float* dw = p.dw + row * p.row_stride + column;
        *dw = narrow<float>((A)*dw + sum);
    });
}

// dbias += Σ_rows dy in f64, rows in order; one thread per column.
template <class T> __device__ __forceinline__ void matmul_dbias(const DbiasParams<T>& p) {
    const i64 column = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (column >= p.columns) return;
    double sum = 0.0;
    for (i64 row = 0; row < p.rows; ++row) sum += to_f64(p.dy[row * p.row_stride + column]);
    p.dbias.set(column, (float)((double)p.dbias.get(column) + sum));
}

KERNEL(matmul_f32, (THREADS), ProductParams<float, Strided<float>, float>) {
    linear<Chain<float>>(p, p.right);
}
KERNEL(matmul_low_f32, (THREADS, 2), LowParams<float, float>) { matmul_low<float>(p); }
KERNEL(matmul_f64, (THREADS), ProductParams<double, Strided<double>, double>) {
    linear<Chain<double>>(p, p.right);
}
KERNEL(matmul_low_f64, (THREADS, 2), LowParams<double, double>) { matmul_low<double>(p); }

KERNEL(matmul_few8_bf16, (SKINNY_THREADS), GemmParams<bf16, Strided<bf16>>) {
    matmul_skinny<bf16, 1>(p, blockIdx.x / SKINNY_GROUPS);
}
KERNEL(matmul_few16_bf16, (SKINNY_THREADS), GemmParams<bf16, Strided<bf16>>) {
    matmul_skinny<bf16, 2>(p, blockIdx.x / SKINNY_GROUPS);
}
KERNEL(matmul_tile64_bf16, (TILE_THREADS<64>, 1), GemmParams<bf16, Strided<bf16>>) {
    matmul_tile<bf16, 64, false>(p, blockIdx.y);
}
KERNEL(matmul_tile128_bf16, (TILE_THREADS<128>, 1), GemmParams<bf16, Strided<bf16>>) {
    matmul_tile<bf16, 128, false>(p, blockIdx.y);
}
KERNEL(matmul_dx_tile64_bf16, (TILE_THREADS<64>, 1), GemmParams<bf16, Strided<bf16>>) {
    matmul_tile<bf16, 64, true>(p, blockIdx.y);
}
KERNEL(matmul_dx_tile128_bf16, (TILE_THREADS<128>, 1), GemmParams<bf16, Strided<bf16>>) {
    matmul_tile<bf16, 128, true>(p, blockIdx.y);
}
KERNEL(matmul_few8_f16, (SKINNY_THREADS), GemmParams<f16, Strided<f16>>) {
    matmul_skinny<f16, 1>(p, blockIdx.x / SKINNY_GROUPS);
}
KERNEL(matmul_few16_f16, (SKINNY_THREADS), GemmParams<f16, Strided<f16>>) {
    matmul_skinny<f16, 2>(p, blockIdx.x / SKINNY_GROUPS);
}
KERNEL(matmul_tile64_f16, (TILE_THREADS<64>, 1), GemmParams<f16, Strided<f16>>) {
    matmul_tile<f16, 64, false>(p, blockIdx.y);
}
KERNEL(matmul_tile128_f16, (TILE_THREADS<128>, 1), GemmParams<f16, Strided<f16>>) {
    matmul_tile<f16, 128, false>(p, blockIdx.y);
}
KERNEL(matmul_dx_tile64_f16, (TILE_THREADS<64>, 1), GemmParams<f16, Strided<f16>>) {
    matmul_tile<f16, 64, true>(p, blockIdx.y);
}
KERNEL(matmul_dx_tile128_f16, (TILE_THREADS<128>, 1), GemmParams<f16, Strided<f16>>) {
    matmul_tile<f16, 128, true>(p, blockIdx.y);
}

KERNEL(matmul_dw_f32, (THREADS), DwParams<float>) { matmul_dw(p); }
KERNEL(matmul_dbias_f32, (THREADS), DbiasParams<float>) { matmul_dbias(p); }
KERNEL(matmul_dw_bf16, (THREADS), DwParams<bf16>) { matmul_dw(p); }
KERNEL(matmul_dbias_bf16, (THREADS), DbiasParams<bf16>) { matmul_dbias(p); }
KERNEL(matmul_dw_f16, (THREADS), DwParams<f16>) { matmul_dw(p); }
KERNEL(matmul_dbias_f16, (THREADS), DbiasParams<f16>) { matmul_dbias(p); }
KERNEL(matmul_dw_f64, (THREADS), DwParams<double>) { matmul_dw(p); }
KERNEL(matmul_dbias_f64, (THREADS), DbiasParams<double>) { matmul_dbias(p); }
