// w[i] = code[nibble i]·absmax[i / blocksize], rounded once to the dtype that was quantized.
//
// QLoRA (arXiv:2305.14314, eq. 1) in the layout of bitsandbytes: the matrix is flattened row-major,
// element 2i is the high nibble of byte i, blocks may cross rows.
//
// | operand | shape                           | dtype               | layout                      |
// |---------|---------------------------------|---------------------|-----------------------------|
// | packed  | [ceil(NK/2)]                    | u8                  | contiguous, any alignment   |
// | absmax  | [blocks]                        | f32                 | any stride; or              |
// | codes   | [blocks]                        | u8                  | any stride                  |
// | nested  | [ceil(blocks/nested_blocksize)] | f32                 | any stride                  |
// | table   | [256]                           | f32                 | any stride                  |
// | code    | [16]                            | f32                 | any stride                  |
// | y       | [N, K]                          | f32, bf16, f16, f64 | contiguous rows, any stride |
//
// Mapping: a warp takes runs of 1,024 values, one after another. It asks for their bytes, makes the
// 16 weights of every block in the run (16 products, lanes side by side) and keeps them in shared
// memory; then a lane looks up what fills 16 bytes of y, neighbors beside it, so that a warp reads
// and writes whole sectors. Rows with gaps, odd addresses and the last, short run go value by
// value.
// Traffic: N·K·(1/2 + sizeof T) + blocks·(4, or 1 + 4/nested_blocksize) bytes; a block of threads
// reads the code book and the table of nested maxima once: one in 8 to 64 thousand values.
//
// Counted, bf16, 512 x 4,096, blocks of 64, floor model of an H200 (memory: 1.25 µs):
// 1. A weight is looked up and not computed: conversions 2.0 -> 0.21 µs.
// 2. Planes of bytes and `prmt` (nf4_decode.cuh) against a code book in shared memory with one
//    packed conversion for two values: conversions 0.85 -> 0.21 µs, 12.3 -> 10.0 instructions a
//    weight (8.2 in 4,096 x 4,096).
// 3. A warp loads the maxima of neighboring blocks at once, nested ones for two runs: bytes 1.027
//    -> 1.003 of the least; nested, 4,096 x 4,096: 1.019.
// 4. Low and high planes lie apart, so that those of 8 blocks fill the 32 banks: wavefronts are
//    ideal. (f32 in blocks of 32: 1.65, as four tables of 16 words meet.)
//
// Numerics: product in f32, one rounding to the original dtype, an exact or second one to T. Nested
// maxima are table[c]·nested + offset with both operations rounded, the bits of bitsandbytes.
#include "nf4_decode.cuh"
#include "nf4_dequantize.h"

static constexpr int WARPS = THREADS / WARP;

static constexpr int BLOCKS = RUN / 32;  // most quantization blocks among them

// The maxima of 32 neighboring blocks, one per lane: two runs of blocks of 64 share a load.
struct Maxima {
    i64 first;  // block of lane 0
    int skip;   // blocks before the run's
    float held;

    // For the run that begins with `block` and has `blocks` blocks; nobody asks for `end` and later
    // ones.
    __device__ __forceinline__ void move_to(const BlockMax& max, i64 block, int blocks, i64 end,
                                            const float* table) {
        if (block + blocks > first + WARP) {
            first = block;
            const i64 mine = block + threadIdx.x % WARP;
            held = mine < end ? max.of_block(mine, table) : 0.0f;
        }
        skip = (int)(block - first);
    }
    // Of block i of the run, any i a lane. Called by the whole warp.
    __device__ __forceinline__ float of(int i) const {
        return __shfl_sync(ALL_LANES, held, skip + i);
    }
};

// ---- the 16 weights of every block of a run, in shared memory -----------------------------------

// 16-bit weights: two planes of bytes, a lane makes a word of each.
template <class T> struct Weights {
    typedef u32 Codes;
    uint4 low[BLOCKS], high[BLOCKS];

    __device__ __forceinline__ void fill(const float* book, const Maxima& maxima, int blocks,
                                         int dtype) {
        const int lane = threadIdx.x % WARP;
        const float4 four = ((const float4*)book)[lane % 4];
#pragma unroll 1
        for (int at = lane; at < 4 * blocks + lane; at += WARP)
            nf4_plane_word<T>(dtype, four, maxima.of(at / 4), ((u32*)low)[at], ((u32*)high)[at]);
    }
    __device__ __forceinline__ uint4 decode(int block, Codes codes) const {
        return nf4_decode(low[block], high[block], codes);
    }
};

// f32 weights, one entry per lane; f64 ones are widened on their way out.
template <class T> struct WideWeights {
    static constexpr int N = Vec16<T>::N;
    float at[BLOCKS][16];

    __device__ __forceinline__ void fill(const float* book, const Maxima& maxima, int blocks,
                                         int dtype) {
        const int lane = threadIdx.x % WARP;
        const float entry = book[lane % 16];
        for (int first = 0; first < blocks; first += 2) {
            const int block = first + lane / 16;
            at[block][lane % 16] = nf4_value<float>(dtype, __fmul_rn(entry, maxima.of(block)));
        }
    }
    __device__ __forceinline__ uint4 decode(int block, u32 codes) const {
        Vec16<T> v;
#pragma unroll
        // High nibble first: value 2k is bits 8k+4.., value 2k+1 bits 8k...
        for (int k = 0; k < N; ++k) v.at[k] = from_f32<T>(at[block][codes >> (4 * (k ^ 1)) & 15]);
        return v.raw;
    }
};
template <> struct Weights<float> : WideWeights<float> {
    typedef u16 Codes;
};
template <> struct Weights<double> : WideWeights<double> {
    typedef u8 Codes;
};

// ---- values -------------------------------------------------------------------------------------

// What a block of threads shares.
template <class T> struct Shared {
    float book[16], table[256];
    Weights<T> weights[WARPS];
};

template <class T>
__device__ __forceinline__ void one_value(const Nf4DequantizeParams<T>& p, i64 i,
                                          const Shared<T>& shared) {
    const u8 byte = p.packed[i / 2];
    const int nibble = i % 2 ? byte & 15 : byte >> 4;
    const float x =
        __fmul_rn(shared.book[nibble], p.max.of_block(i >> p.max.block_shift, shared.table));
    p.y[i / p.columns * p.row_stride + i % p.columns] = nf4_value<T>(p.dtype, x);
}

// A whole run: all bytes are asked for, then the weights of its blocks are made.
template <class T>
__device__ __forceinline__ void one_run(const Nf4DequantizeParams<T>& p, i64 first, i64 stop,
                                        Maxima& maxima, Shared<T>& shared) {
    typedef typename Weights<T>::Codes Codes;
    constexpr int N = Vec16<T>::N, PASSES = RUN / WARP / N;
    const int lane = threadIdx.x % WARP, shift = p.max.block_shift, blocks = max(RUN >> shift, 1);
    Weights<T>& weights = shared.weights[threadIdx.x / WARP];
    const Codes* packed = (const Codes*)(p.packed + first / 2) + lane;
    Codes codes[PASSES];
#pragma unroll
    for (int k = 0; k < PASSES; ++k) codes[k] = packed[k * WARP];
    maxima.move_to(p.max, first >> shift, blocks, (stop - 1 >> shift) + 1, shared.table);
    __syncwarp();
    weights.fill(shared.book, maxima, blocks, p.dtype);
    __syncwarp();
    uint4* y = (uint4*)(p.y + first) + lane;
#pragma unroll
    for (int k = 0; k < PASSES; ++k)
        y[k * WARP] = weights.decode((k * WARP + lane) * N >> shift, codes[k]);
}

template <class T> __device__ __forceinline__ void nf4_dequantize(const Nf4DequantizeParams<T>& p) {
    __shared__ __align__(16) Shared<T> shared;
    if (threadIdx.x < 16) shared.book[threadIdx.x] = p.code.get(threadIdx.x);
    if (p.max.table.at) shared.table[threadIdx.x] = p.max.table.get(threadIdx.x);
    __syncthreads();
    const i64 count = p.rows * p.columns, warp = (i64)blockIdx.x * WARPS + threadIdx.x / WARP;
    i64 first = warp * p.runs * RUN;
    const i64 stop = first + p.runs * RUN < count ? first + p.runs * RUN : count;
    Maxima maxima = {-WARP, 0, 0.0f};
    if (p.linear)
        for (; first + RUN <= stop; first += RUN) one_run(p, first, stop, maxima, shared);
    for (i64 i = first + threadIdx.x % WARP; i < stop; i += WARP) one_value(p, i, shared);
}

KERNEL(nf4_dequantize_f32, (THREADS), Nf4DequantizeParams<float>) { nf4_dequantize(p); }
KERNEL(nf4_dequantize_bf16, (THREADS), Nf4DequantizeParams<bf16>) { nf4_dequantize(p); }
KERNEL(nf4_dequantize_f16, (THREADS), Nf4DequantizeParams<f16>) { nf4_dequantize(p); }
KERNEL(nf4_dequantize_f64, (THREADS), Nf4DequantizeParams<double>) { nf4_dequantize(p); }
