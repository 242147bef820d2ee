// Y = R + X·deq(W)ᵀ + bias + S·Bᵀ and dX = dY·deq(W) + dS·A with W in 4 bits (QLoRA, arXiv:2305.14314,
// eq. 5). The packed bytes are the only copy of W.
//
// | operand | shape         | dtype               | layout                                       |
// |---------|---------------|---------------------|----------------------------------------------|
// | x, dy   | [M, K], [M, N] | f32, bf16, f16, f64 | rows contiguous, any row stride             |
// | packed  | [ceil(NK/2)]  | u8                  | any stride; element 2i is the high nibble    |
// | absmax  | [blocks]      | f32, or 8 bits with nested maxima | any stride                     |
// | code    | [16]          | f32                 | any stride                                   |
// | y, residual, dx | [M, N], [M, N], [M, K] | as x | rows contiguous, any row stride          |
//
// Mapping and engines: product.cuh; S comes from `matmul_low`. An element is expanded on its way into
// the tile: nibble -> code book in shared memory -> times the maximum of its block -> rounded to the
// dtype that was quantised. That is the value nf4_dequantize gives, so the product has the bits of
// matmul on the dequantised weight. `nf4_matmul_<T>` multiplies any dtype of weight in chains of f32;
// `nf4_matmul_mma_<T>` multiplies on tensor cores a weight that was quantised from T.
// Traffic: N·K/2 bytes of W, re-read ceil(M/32) times from L2; X as in matmul.
// Not yet tuned: a nibble at a time. It is the base that is correct.
#include "tensor_tile.cuh"

template <class A, class T>
__device__ __forceinline__ void nf4_matmul(const ProductParams<T, Nf4Matrix, A>& p) {
    __shared__ float book[16];
    if (threadIdx.x < 16) book[threadIdx.x] = p.right.code.get(threadIdx.x);
    __syncthreads();
    linear<Chain<A>>(p, Nf4Side{p.right, book});
}

#define CHAIN(T, A, suffix) \
    extern "C" __global__ void __launch_bounds__(THREADS) nf4_matmul_##suffix(const ProductParams<T, Nf4Matrix, A> p) { nf4_matmul<A>(p); }
CHAIN(float, float, f32)
CHAIN(bf16, float, bf16)
CHAIN(f16, float, f16)
CHAIN(double, double, f64)

#define TENSOR(T, suffix) \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) nf4_matmul_few8_##suffix(const TensorParams<T, Nf4Matrix> p) { nf4_few<T, 1>(p); } \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) nf4_matmul_few16_##suffix(const TensorParams<T, Nf4Matrix> p) { nf4_few<T, 2>(p); } \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS<64>, 1) nf4_matmul_tile64_##suffix(const TensorParams<T, Nf4Matrix> p) { nf4_matmul_tile<T, 64, false>(p, blockIdx.x / p.cluster); } \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS<128>, 1) nf4_matmul_tile128_##suffix(const TensorParams<T, Nf4Matrix> p) { nf4_matmul_tile<T, 128, false>(p, blockIdx.x / p.cluster); } \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS<64>, 1) nf4_matmul_dx_tile64_##suffix(const TensorParams<T, Nf4Matrix> p) { nf4_matmul_tile<T, 64, true>(p, blockIdx.x / p.cluster); } \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS<128>, 1) nf4_matmul_dx_tile128_##suffix(const TensorParams<T, Nf4Matrix> p) { nf4_matmul_tile<T, 128, true>(p, blockIdx.x / p.cluster); }
TENSOR(bf16, bf16)
TENSOR(f16, f16)
