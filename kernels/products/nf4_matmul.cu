// Y = R + X·deq(W)ᵀ + bias + S·Bᵀ and dX = dY·deq(W) + dS·A with W in 4 bits (QLoRA,
// arXiv:2305.14314, eq. 5). The packed bytes are the only copy of W.
//
// | operand | shape         | dtype               | layout                                       |
// |---------|---------------|---------------------|----------------------------------------------|
// | x, dy   | [M, K], [M, N] | f32, bf16, f16, f64 | rows contiguous, any row stride             |
// | packed  | [ceil(NK/2)]  | u8                  | any stride; element 2i is the high nibble    |
// | absmax  | [blocks]      | f32, or 8 bits with nested maxima | any stride                     |
// | code    | [16]          | f32                 | any stride                                   |
// | y, residual, dx | [M, N], [M, N], [M, K] | as x | rows contiguous, any row stride          |
//
// Mapping. bf16 and f16 with a weight that was quantized from them go through tensor cores:
// `nf4_matmul_few*` up to 16 rows (mma_gemm_skinny.cuh, mma_gemm_nf4.cuh), `nf4_matmul_tile*` and
// `nf4_matmul_dx_tile*` for more, for dX, and for layouts that are not regular (mma_gemm_tile.cuh,
// mma_gemm_stage.cuh). One order of sums for all of them: mma_gemm.cuh. Other dtypes are chains of
// fused multiply-adds, an element of W at a time (product.cuh).
// Traffic: N·K/2 bytes of W and N·K/64 of its maxima, again for every 128 rows from L2; X once per
// tile of columns. 2·M·N·K flops.
// Numerics: w = RN(code·absmax) in the dtype that was quantized at every number of rows: the bits
// of nf4_dequantize, so the product has the bits of matmul on the dequantized weight. Sums in f32,
// S·Bᵀ as one more chunk of them, bias and residual added last, one rounding.
//
// Few rows, counted at K = 4,096 (emulator, PTX instructions per weight, set-up and tail included):
// 1. Pairs from a table, one entry per byte, one copy per lane, its address one byte permutation:
//    2.5 to decode. Shift, mask and add in place of the permutation: 3.5.
// 2. Loads under a predicate into the registers they replace, no branch: 0.6 less, in moves.
// 3. Pointers that stand still at the end in place of a test for every load of X: 0.25 less.
// 4. A cluster's size known when compiled, sums at fixed offsets: 0.2 less.
// In all 5.0 at first, 3.7 now with one row, 4.2 with 16; 3.4 and 3.65 at K = 14,336. The loop
// alone has 2.95 and 3.15.
#include "mma_gemm_tile.cuh"

template <class A, class T>
__device__ __forceinline__ void nf4_matmul(const ProductParams<T, Nf4Matrix, A>& p) {
    __shared__ float book[16];
    if (threadIdx.x < 16) book[threadIdx.x] = p.right.code.get(threadIdx.x);
    __syncthreads();
    linear<Chain<A>>(p, Nf4Operand{p.right, book});
}

KERNEL(nf4_matmul_f32, (THREADS), ProductParams<float, Nf4Matrix, float>) { nf4_matmul<float>(p); }
KERNEL(nf4_matmul_bf16, (THREADS), ProductParams<bf16, Nf4Matrix, float>) { nf4_matmul<float>(p); }
KERNEL(nf4_matmul_f16, (THREADS), ProductParams<f16, Nf4Matrix, float>) { nf4_matmul<float>(p); }
KERNEL(nf4_matmul_f64, (THREADS), ProductParams<double, Nf4Matrix, double>) {
    nf4_matmul<double>(p);
}

KERNEL(nf4_matmul_few8_bf16, (SKINNY_THREADS, 2), GemmParams<bf16, Nf4Matrix>) {
    nf4_matmul_skinny<bf16, 1>(p, blockIdx.x / SKINNY_GROUPS);
}
KERNEL(nf4_matmul_few16_bf16, (SKINNY_THREADS, 2), GemmParams<bf16, Nf4Matrix>) {
    nf4_matmul_skinny<bf16, 2>(p, blockIdx.x / SKINNY_GROUPS);
}
KERNEL(nf4_matmul_tile64_bf16, (TILE_THREADS<64>, 1), GemmParams<bf16, Nf4Matrix>) {
    nf4_matmul_tile<bf16, 64, false>(p, blockIdx.x / p.cluster, blockIdx.y);
}
KERNEL(nf4_matmul_tile128_bf16, (TILE_THREADS<128>, 1), GemmParams<bf16, Nf4Matrix>) {
    nf4_matmul_tile<bf16, 128, false>(p, blockIdx.x / p.cluster, blockIdx.y);
}
KERNEL(nf4_matmul_dx_tile64_bf16, (TILE_THREADS<64>, 1), GemmParams<bf16, Nf4Matrix>) {
    nf4_matmul_tile<bf16, 64, true>(p, blockIdx.x / p.cluster, blockIdx.y);
}
KERNEL(nf4_matmul_dx_tile128_bf16, (TILE_THREADS<128>, 1), GemmParams<bf16, Nf4Matrix>) {
    nf4_matmul_tile<bf16, 128, true>(p, blockIdx.x / p.cluster, blockIdx.y);
}
KERNEL(nf4_matmul_few8_f16, (SKINNY_THREADS, 2), GemmParams<f16, Nf4Matrix>) {
    nf4_matmul_skinny<f16, 1>(p, blockIdx.x / SKINNY_GROUPS);
}
KERNEL(nf4_matmul_few16_f16, (SKINNY_THREADS, 2), GemmParams<f16, Nf4Matrix>) {
    nf4_matmul_skinny<f16, 2>(p, blockIdx.x / SKINNY_GROUPS);
}
KERNEL(nf4_matmul_tile64_f16, (TILE_THREADS<64>, 1), GemmParams<f16, Nf4Matrix>) {
    nf4_matmul_tile<f16, 64, false>(p, blockIdx.x / p.cluster, blockIdx.y);
}
KERNEL(nf4_matmul_tile128_f16, (TILE_THREADS<128>, 1), GemmParams<f16, Nf4Matrix>) {
    nf4_matmul_tile<f16, 128, false>(p, blockIdx.x / p.cluster, blockIdx.y);
}
KERNEL(nf4_matmul_dx_tile64_f16, (TILE_THREADS<64>, 1), GemmParams<f16, Nf4Matrix>) {
    nf4_matmul_tile<f16, 64, true>(p, blockIdx.x / p.cluster, blockIdx.y);
}
KERNEL(nf4_matmul_dx_tile128_f16, (TILE_THREADS<128>, 1), GemmParams<f16, Nf4Matrix>) {
    nf4_matmul_tile<f16, 128, true>(p, blockIdx.x / p.cluster, blockIdx.y);
}
