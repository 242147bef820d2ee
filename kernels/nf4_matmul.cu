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
#include "nf4.cuh"
#include "product.cuh"

struct Nf4Matrix {
    Column<const u8> packed;
    Column<const float> code;
    BlockMax max;
    i64 columns;
    i32 dtype;   // that was quantised: 0 f32, 1 bf16, 2 f16
    i32 across;  // lanes are columns: dX
};

// The matrix as a side, its code book at hand.
struct Nf4Side {
    const Nf4Matrix& w;
    const float* book;

    __device__ __forceinline__ bool along_steps() const { return !w.across; }
    __device__ __forceinline__ i64 place(i64 lane, i64 step) const { return w.across ? step * w.columns + lane : lane * w.columns + step; }
    template <class V> __device__ __forceinline__ V get(i64 i) const {
        const u32 byte = w.packed.get(i / 2);
        const u32 nibble = i % 2 ? byte & 15 : byte >> 4;
        return nf4_value<V>(w.dtype, __fmul_rn(book[nibble], w.max.of(i)));
    }
};

template <class Engine, class T>
__device__ __forceinline__ void nf4_matmul(const ProductParams<T, Nf4Matrix, typename Engine::Sum>& p) {
    __shared__ float book[16];
    if (threadIdx.x < 16) book[threadIdx.x] = p.right.code.get(threadIdx.x);
    __syncthreads();
    linear<Engine>(p, Nf4Side{p.right, book});
}

#define ENTRY(name, T, Engine, A) \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const ProductParams<T, Nf4Matrix, A> p) { nf4_matmul<Engine>(p); }
ENTRY(nf4_matmul_f32, float, Chain<float>, float)
ENTRY(nf4_matmul_bf16, bf16, Chain<float>, float)
ENTRY(nf4_matmul_f16, f16, Chain<float>, float)
ENTRY(nf4_matmul_f64, double, Chain<double>, double)
ENTRY(nf4_matmul_mma_bf16, bf16, Mma<bf16>, float)
ENTRY(nf4_matmul_mma_f16, f16, Mma<f16>, float)
