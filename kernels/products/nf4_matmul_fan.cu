// Y[i] = X·deq(W[i])ᵀ + bias[i] + S[i]·B[i]ᵀ for up to three weights in 4 bits in one launch, and
// silu(Y[0]) ⊙ Y[1].
//
// | operand | shape     | dtype     | layout                                            |
// |---------|-----------|-----------|---------------------------------------------------|
// | x       | [M, K]    | bf16, f16 | rows contiguous, any row stride                   |
// | w       | [N[i], K] | 4-bit     | as in nf4_matmul                                  |
// | y, gated | [M, N[i]], [M, N[0]] | as x | rows contiguous, any row stride            |
//
// Mapping: mma_gemm_fan.cuh; the kernels are those of nf4_matmul.cu, for up to 16 rows and for
// tiles.
// Traffic: that of the products one by one, and 3·M·N elements for what is gated, from L2.
// Numerics: the bits of nf4_matmul, and of swiglu.
#include "mma_gemm_fan.cuh"

template <int N, class T>
__device__ __forceinline__ void fan_skinny(const FanParams<T, Nf4Matrix>& p) {
    __shared__ GemmParams<T, Nf4Matrix> mine;
    const i64 tile = fan_choose(p, blockIdx.x / SKINNY_GROUPS, mine);
    nf4_matmul_skinny<T, N>(mine, tile);
    fan_gate_skinny(p, tile);
}
template <int ROWS, class T>
__device__ __forceinline__ void fan_tile(const FanParams<T, Nf4Matrix>& p) {
    __shared__ GemmParams<T, Nf4Matrix> mine;
    const i64 tile = fan_choose(p, blockIdx.y, mine);
    nf4_matmul_tile<T, ROWS, false>(mine, blockIdx.x / mine.cluster, tile);
    fan_gate_tile<ROWS>(p, mine.cluster, tile);
}

FAN_KERNELS(nf4_matmul_fan, bf16, Nf4Matrix, (SKINNY_THREADS, 2))
FAN_KERNELS(nf4_matmul_fan, f16, Nf4Matrix, (SKINNY_THREADS, 2))
