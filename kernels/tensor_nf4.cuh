// 4-bit weights for products on tensor cores: w = RN(code·absmax) in the dtype of the product, on the
// way from the packed bytes to the operand. The bits are those of nf4_dequantize.
#pragma once

#include "nf4.cuh"
#include "tensor_few.cuh"

struct Nf4Matrix {
    Column<const u8> packed;
    Column<const float> code;
    BlockMax max;
    i64 columns;
    i32 dtype;   // that was quantised: 0 f32, 1 bf16, 2 f16
    i32 across;  // lanes are columns: dX
};

// The matrix as a side, its code book at hand: any layout, an element at a time.
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

// ---- a table of code pairs --------------------------------------------------------------------

// Entry b holds what a byte b of the weight and a code b of a block maximum stand for, once for every
// lane that may ask in the same cycle, so that lanes never meet in a bank:
//
//     bytes 0..128     16 times (code[b / 16], code[b % 16]); a warp reads 8 bytes a lane in two halves
//     bytes 128..256   32 times table[b]
//
// The table stands at shared address 4,096, whatever precedes the block's memory (1 KB on today's
// devices), so an entry's address is one byte permutation: the lane's copy, then b.
static constexpr int TABLE = 4096, TABLE_BYTES = 256 * 256;

__device__ __forceinline__ char* nf4_table() { return shared + (TABLE - shared_address(shared)); }

// Written by 256 threads.
__device__ __forceinline__ void nf4_fill_table(const Nf4Matrix& w) {
    const int b = threadIdx.x;
    const float high = w.code.get(b / 16), low = w.code.get(b % 16), nested = w.max.table.get(b);
    char* entry = nf4_table() + b * 256;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int at = (i ^ b % 8) * 16;
        *(float4*)(entry + at) = make_float4(high, low, high, low);
        if (w.max.codes.at) *(float4*)(entry + 128 + at) = make_float4(nested, nested, nested, nested);
    }
}

// ---- up to 16 rows ----------------------------------------------------------------------------

// Maxima of a warp's 32 rows in segments of 8 blocks of 64 steps. Lane l looks after row l: it reads
// the codes of the next segment while this one is in use.
struct FewMaxima {
    static constexpr int BLOCKS = 8;
    const BlockMax& max;
    float* stage;  // [BLOCKS][32]
    i64 first;     // the row's first block of 64 steps in this chunk
    u32 codes[2];
    float scale[2];
    int nested_shift;
    bool quads;  // codes can be read four at a time, which share a nested maximum

    __device__ __forceinline__ FewMaxima(const Nf4Matrix& w, float* stage, i64 row, i64 begin) : max(w.max), stage(stage) {
        first = (row * w.columns + begin) / STEPS;
        quads = max.codes.at && max.codes.stride == 1 && max.block_shift == 6 && ((u64)max.codes.at & 3) == 0 &&
                (w.columns | chunk_steps(w.columns)) % 256 == 0 && max.nested_blocksize % 4 == 0 &&
                (max.nested_blocksize & (max.nested_blocksize - 1)) == 0;
        nested_shift = 31 - __clz((int)max.nested_blocksize);
    }
    __device__ __forceinline__ void fetch(int k, int end) {
        if (!quads) return;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (k + i * 4 * STEPS >= end) continue;
            const i64 block = first + k / STEPS + i * 4;
            codes[i] = *(const u32*)(max.codes.at + block);
            scale[i] = max.nested.get(block >> nested_shift);
        }
    }
    __device__ __forceinline__ void write(int k, int end) {
        const int lane = threadIdx.x % WARP;
        __syncwarp();
        if (quads) {
#pragma unroll
            for (int j = 0; j < BLOCKS; ++j) {
                const float code = ptx_load_one<TABLE>(__byte_perm(codes[j / 4], 128 + lane * 4, 0x5504 | j % 4 << 4));
                stage[j * WARP + lane] = __fadd_rn(__fmul_rn(code, scale[j / 4]), max.offset);
            }
        } else {
            for (int j = 0; j < BLOCKS && k + j * STEPS < end; ++j)
                stage[j * WARP + lane] = max.of((first + k / STEPS + j) * STEPS);
        }
        __syncwarp();
    }
};

// A matrix whose rows are whole blocks of 64 steps, packed without gaps, 16-byte aligned. Lanes 2i and
// 2i+1 read the same 16 bytes; lane t takes bytes 2·(t % 2) and the next of each word.
template <class T> struct FewNf4 {
    const u8* at;
    u32 row[2][2];  // bytes from `at`
    FewMaxima maxima;
    float scale[2][2];
    u32 copy, first, second;  // lane's copy in the table, permutations that take its bytes
    struct Raw { uint4 at[2][2]; };

    __device__ __forceinline__ FewNf4(const Nf4Matrix& w, float* stage, i64 row0, i64 rows, i64 begin, int end)
        : maxima(w, stage, row0 + threadIdx.x % WARP < rows ? row0 + threadIdx.x % WARP : rows - 1, begin) {
        at = w.packed.at + (row0 * w.columns + begin) / 2;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const i64 inside = row0 + few_row(i, h) < rows ? few_row(i, h) : rows - 1 - row0;
                row[i][h] = (u32)(inside * (w.columns / 2)) + threadIdx.x % 4 / 2 * 16;
            }
        copy = threadIdx.x % 16 * 8;
        first = 0x5504 | threadIdx.x % 2 * 0x20, second = first + 0x10;
        maxima.fetch(0, end);
    }
    __device__ __forceinline__ void load(Raw& raw, int k, int) const {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) raw.at[i][h] = ptx_load_stream(at + (row[i][h] + k / 2));
    }
    __device__ __forceinline__ void at_step(int step, int end) {
        const int block = step / STEPS % FewMaxima::BLOCKS;
        if (block == 0) {
            maxima.write(step, end);
            maxima.fetch(step + FewMaxima::BLOCKS * STEPS, end);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) scale[i][h] = maxima.stage[block * WARP + few_row(i, h)];
    }
    __device__ __forceinline__ u32 pair(u32 word, u32 select, float scale) const {
        const float2 codes = ptx_load_pair<TABLE>(__byte_perm(word, copy, select));
        return pack(__fmul_rn(codes.x, scale), __fmul_rn(codes.y, scale), T{});
    }
    __device__ __forceinline__ void fragment(const Raw& raw, int i, int u, u32 (&a)[4]) const {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint4& v = raw.at[i][h];
            const u32 word = u == 0 ? v.x : u == 1 ? v.y : u == 2 ? v.z : v.w;
            a[h] = pair(word, first, scale[i][h]), a[h + 2] = pair(word, second, scale[i][h]);
        }
    }
};

template <class T, int N> __device__ __forceinline__ void nf4_few(const TensorParams<T, Nf4Matrix>& p) {
    nf4_fill_table(p.right);
    __syncthreads();
    float* stages = (float*)(nf4_table() + TABLE_BYTES) + threadIdx.x / WARP * FewMaxima::BLOCKS * WARP;
    few<T, N>(p, (float*)nf4_table(), [&](i64 row0, i64 begin, i64 end) {
        return FewNf4<T>(p.right, stages, row0, p.columns, begin, (int)(end - begin));
    });
}
