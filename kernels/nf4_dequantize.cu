// w[i] = code[nibble i]·absmax[i / blocksize], rounded once to the dtype that was quantised.
//
// QLoRA (arXiv:2305.14314, eq. 1) in the layout of bitsandbytes: the matrix is flattened row-major,
// element 2i is the high nibble of byte i, blocks may cross rows.
//
// | operand | shape         | dtype          | layout                                  |
// |---------|---------------|----------------|-----------------------------------------|
// | packed  | [ceil(NK/2)]  | u8             | contiguous, any alignment               |
// | absmax  | [blocks]      | f32            | any stride; or                          |
// | codes, nested, table | [blocks], [ceil(blocks/nested_blocksize)], [256] | u8, f32, f32 | any stride |
// | code    | [16]          | f32            | any stride                              |
// | y       | [N, K]        | f32, bf16, f16, f64 | rows contiguous, any row stride    |
//
// Mapping: 8 values a thread and pass (4 packed bytes in, 16 bytes of bf16 out), 4 passes, so that a
// warp reads 128 and writes 512 neighbouring bytes; a vector lies in one block because block sizes
// are multiples of 32. Rows with gaps, odd addresses and the tail go value by value.
// Traffic: N·K·(1/2 + sizeof T) + blocks·(4, or 1 + 4/256) bytes; one product a value.
//
// 1. The code book is 16 words in 16 different banks of shared memory: lanes with different nibbles
//    never meet in a bank, lanes with equal ones share the word. Counted wavefronts = ideal.
// 2. A vector has one maximum: one load (nested: one table lookup) for 8 values.
//
// Numerics: product in f32, one rounding to the original dtype, an exact or second one to T. Nested
// maxima are table[c]·nested + offset with both operations rounded, the bits of bitsandbytes.
#include "nf4.cuh"

template <class T> struct Nf4DequantizeParams {
    const u8* packed;
    Column<const float> code;
    BlockMax max;
    T* y;
    i64 rows, columns, row_stride;
    i32 dtype;  // that was quantised: 0 f32, 1 bf16, 2 f16
    i32 linear; // y has no gaps and is aligned
};

static constexpr int THREADS = 256;
static constexpr int VECTOR = 8;
static constexpr int PASSES = 4;
static constexpr int TILE = THREADS * VECTOR * PASSES;

template <class T> __device__ __forceinline__ void one_value(const Nf4DequantizeParams<T>& p, i64 i, const float* code) {
    const u8 byte = p.packed[i / 2];
    const int nibble = i % 2 ? byte & 15 : byte >> 4;
    const float x = __fmul_rn(code[nibble], p.max.of(i));
    p.y[i / p.columns * p.row_stride + i % p.columns] = nf4_value<T>(p.dtype, x);
}

template <class T> __device__ __forceinline__ void one_vector(const Nf4DequantizeParams<T>& p, i64 i, u32 bytes, const float* code) {
    constexpr int N = Vec16<T>::N;
    const float scale = p.max.of(i);
    T values[VECTOR];
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) {
        // High nibble first: value 2k is bits 8k+4.., value 2k+1 bits 8k...
        const u32 nibble = bytes >> (4 * (k ^ 1)) & 15;
        values[k] = nf4_value<T>(p.dtype, __fmul_rn(code[nibble], scale));
    }
#pragma unroll
    for (int part = 0; part < VECTOR / N; ++part) {
        Vec16<T> v;
#pragma unroll
        for (int k = 0; k < N; ++k) v.at[k] = values[part * N + k];
        *(uint4*)(p.y + i + part * N) = v.raw;
    }
}

template <class T> __device__ __forceinline__ void nf4_dequantize(const Nf4DequantizeParams<T>& p) {
    __shared__ float code[16];
    if (threadIdx.x < 16) code[threadIdx.x] = p.code.get(threadIdx.x);
    __syncthreads();
    const i64 count = p.rows * p.columns, first = (i64)blockIdx.x * TILE + threadIdx.x * VECTOR;
    const bool whole = p.linear && ((u64)p.packed & 3) == 0 && first + (PASSES - 1) * THREADS * VECTOR + VECTOR <= count;
    if (whole) {
        u32 bytes[PASSES];
#pragma unroll
        for (int k = 0; k < PASSES; ++k) bytes[k] = *(const u32*)(p.packed + (first + k * THREADS * VECTOR) / 2);
#pragma unroll
        for (int k = 0; k < PASSES; ++k) one_vector(p, first + k * THREADS * VECTOR, bytes[k], code);
        return;
    }
    for (int k = 0; k < PASSES; ++k) {
        const i64 from = first + k * THREADS * VECTOR;
        for (i64 i = from; i < from + VECTOR && i < count; ++i) one_value(p, i, code);
    }
}

#define ENTRY(T, suffix) \
    extern "C" __global__ void __launch_bounds__(THREADS) nf4_dequantize_##suffix(const Nf4DequantizeParams<T> p) { nf4_dequantize(p); }
ENTRY(float, f32)
ENTRY(bf16, bf16)
ENTRY(f16, f16)
ENTRY(double, f64)
