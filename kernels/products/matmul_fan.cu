// Y[i] = X·W[i]ᵀ + bias[i] + S[i]·B[i]ᵀ for up to three weights in one launch, and silu(Y[0]) ⊙
// Y[1].
//
// | operand | shape     | dtype     | layout                                            |
// |---------|-----------|-----------|---------------------------------------------------|
// | x       | [M, K]    | bf16, f16 | rows contiguous, any row stride                   |
// | w       | [N[i], K] | as x      | rows contiguous, any row stride                   |
// | y, gated | [M, N[i]], [M, N[0]] | as x | rows contiguous, any row stride            |
//
// Mapping: mma_gemm_fan.cuh; the kernels are those of matmul.cu, for up to 16 rows and for tiles.
// The first factors of the adapters, S[i] = scale·X·A[i]ᵀ, are such a launch, too.
// Traffic: that of the products one by one, and 3·M·N elements for what is gated, from L2.
// Numerics: the bits of matmul, and of swiglu.
#include "mma_gemm_fan.cuh"

template <int N, class T>
__device__ __forceinline__ void fan_skinny(const FanParams<T, Strided<T>>& p) {
    __shared__ GemmParams<T, Strided<T>> mine;
    const i64 tile = fan_choose(p, blockIdx.x / SKINNY_GROUPS, mine);
    matmul_skinny<T, N>(mine, tile);
    fan_gate_skinny(p, tile);
}
template <int ROWS, class T>
__device__ __forceinline__ void fan_tile(const FanParams<T, Strided<T>>& p) {
    __shared__ GemmParams<T, Strided<T>> mine;
    const i64 tile = fan_choose(p, blockIdx.y, mine);
    matmul_tile<T, ROWS, false>(mine, tile);
    fan_gate_tile<ROWS>(p, mine.cluster, tile);
}

FAN_KERNELS(matmul_fan, bf16, Strided<bf16>, (SKINNY_THREADS))
FAN_KERNELS(matmul_fan, f16, Strided<f16>, (SKINNY_THREADS))
