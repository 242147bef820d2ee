// dA += dSᵀ·X and dB += dYᵀ·S over the rows that took the adapter: a product whose steps are rows,
// some of them left out.
//
// Gradients of a low-rank adapter (LoRA, arXiv:2106.09685, eq. 3). dS = scale·dY·B comes from
// `matmul_low`.
//
// | operand | shape          | dtype                     | layout                                  |
// |---------|----------------|---------------------------|-----------------------------------------|
// | left    | [M, r]         | f32 (f64 with f64 x): dS, S | any strides                           |
// | right   | [M, C]         | f32, bf16, f16, f64: X, dY | rows contiguous, any row stride        |
// | adapter | [M]            | i32                       | any stride                              |
// | out     | [r, C] or its transpose | f32              | any strides                             |
//
// Mapping and engine: product.cuh, Chain. An output is one chain of fused multiply-adds over the
// adapter's rows in order, added to the old value last: the bits of the CPU.
// Traffic: M·(r·ceil(C/64) + C·ceil(r/32)) elements, r·C read and written; 2·M·r·C flops.
// Not yet tuned: the depth M is not split, so a long batch keeps few blocks busy.
#include "product.cuh"

template <class T, class S, class A> struct LoraGradParams {
    Dense<S> left;
    Dense<T> right;
    i64 rows, columns, depth;
    Column<const i32> adapter;
    i64 index;
    float* out;
    i64 row_stride, column_stride;
};

template <class T, class S, class A> __device__ __forceinline__ void lora_grad(const LoraGradParams<T, S, A>& p) {
    typedef Chain<A> Engine;
    constexpr int DEPTH = Engine::Left::DEPTH;
    __shared__ __align__(16) typename Engine::Left l;
    __shared__ __align__(16) typename Engine::Right r;
    const i64 row0 = (i64)blockIdx.x * ROWS, column0 = (i64)blockIdx.y * COLUMNS;
    Staging<typename Engine::Left> next_l;
    Staging<typename Engine::Right> next_r;
    Engine e;
    clear(e);
    for (i64 first = 0; first < p.depth; first += DEPTH) {
        next_l.fetch(p.left, row0, p.rows, first, p.depth);
        next_r.fetch(p.right, column0, p.columns, first, p.depth);
        __syncthreads();
        next_l.store(l, p.left.along_steps());
        next_r.store(r, p.right.along_steps());
        __syncthreads();
#pragma unroll 1
        for (int s = 0; s < DEPTH && first + s < p.depth; ++s) {
            if (p.adapter.at && p.adapter.get(first + s) != p.index) continue;
#pragma unroll
            for (int i = 0; i < Engine::HEIGHT; ++i)
#pragma unroll
                for (int j = 0; j < Engine::WIDTH; ++j)
                    e.acc[i][j] = fma(l.at(Engine::row(i), s), r.at(Engine::column(j), s), e.acc[i][j]);
        }
    }
    each(e, row0, p.rows, column0, p.columns, [&](i64 row, i64 column, A sum) {
        float* out = p.out + row * p.row_stride + column * p.column_stride;
        *out = narrow<float>((A)*out + sum);
    });
}

#define ENTRY(name, T, S, A) \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const LoraGradParams<T, S, A> p) { lora_grad(p); }
ENTRY(lora_grad_f32, float, float, float)
ENTRY(lora_grad_bf16, bf16, float, float)
ENTRY(lora_grad_f16, f16, float, float)
ENTRY(lora_grad_f64, double, double, double)
ENTRY(lora_grad_kept_f64, double, float, double)
