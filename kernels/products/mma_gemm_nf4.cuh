// 4-bit weights for products on tensor cores: w = RN(code·absmax) in the dtype of the product, on
// the way from the packed bytes to the operand. The bits are those of nf4_dequantize.
#pragma once

#include "nf4_decode.cuh"
#include "mma_gemm_skinny.cuh"
#include "nf4_matrix.h"

// The matrix as a operand, its code book at hand: any layout, an element at a time.
struct Nf4Operand {
    const Nf4Matrix& w;
    const float* book;

    __device__ __forceinline__ bool along_steps() const { return !w.across; }
    __device__ __forceinline__ i64 place(i64 lane, i64 step) const {
        return w.across ? step * w.columns + lane : lane * w.columns + step;
    }
    template <class V> __device__ __forceinline__ V get(i64 i) const {
        const u32 byte = w.packed.get(i / 2);
        const u32 nibble = i % 2 ? byte & 15 : byte >> 4;
        return nf4_value<V>(w.dtype, __fmul_rn(book[nibble], w.max.of(i)));
    }
};

// ---- a table of code pairs --------------------------------------------------------------------

// Entry b holds what a byte b of the weight and a code b of a block maximum stand for, once for
// every lane that may ask in the same cycle, so that lanes never meet in a bank:
//
//     bytes 0..128     16 times (code[b / 16], code[b % 16]); a warp reads 8 bytes per lane in two
//                      halves
//     bytes 128..256   32 times table[b]
//
// The table stands 4,096 bytes into the block's memory, whatever precedes the block's own (1 KB on
// today's devices), so an entry's address is one byte permutation: the lane's copy, b, and the
// block's window. In a cluster a shared address has the block's rank in its highest byte, and what
// a block stores without it is an illegal instruction.

__device__ __forceinline__ u32 shared_window() { return shared_address(shared) & 0xff000000; }

// Eight times 16 bytes from shared address `at` on, a lane's copies in an order of its own.
__device__ __forceinline__ void nf4_fill_half(u32 at, float even, float odd) {
    const u32 mine = at | threadIdx.x % 8 * 16;
#pragma unroll
    for (int i = 0; i < 8; ++i) ptx_store_shared(mine ^ i * 16, make_float4(even, odd, even, odd));
}

// Written by 256 threads, one entry each.
__device__ __forceinline__ void nf4_fill_table(const Nf4Matrix& w) {
    const int b = threadIdx.x;
    const u32 entry = shared_window() + TABLE + b * 256;
    const float high = w.code.at[b / 16 * w.code.stride], low = w.code.at[b % 16 * w.code.stride];
    nf4_fill_half(entry, high, low);
    if (!w.max.codes.at) return;
    const float nested = w.max.table.at[b * w.max.table.stride];
    nf4_fill_half(entry + 128, nested, nested);
}

// ---- up to 16 rows ----------------------------------------------------------------------------

// Maxima of a warp's 32 rows in segments of 8 blocks of 64 steps. Lane l looks after row l: it
// reads the codes of the next segment while this one is in use.
struct SkinnyMaxima {
    const BlockMax& max;
    i64 first;  // the row's first block of 64 steps in this chunk
    u32 codes[2];
    float scale[2];
    const Nf4Matrix& w;

    __device__ __forceinline__ SkinnyMaxima(const Nf4Matrix& w, i64 row, i64 begin)
        : max(w.max), w(w) {
        first = (i64)((u64)(row * w.columns + begin) / STEPS);
    }
    // Shared address of [SKINNY_SEGMENT][32] maxima.
    static __device__ __forceinline__ u32 stage() {
        return shared_window() + TABLE + TABLE_BYTES +
               threadIdx.x / WARP * (SKINNY_SEGMENT * WARP * 4);
    }
    __device__ __forceinline__ void fetch(int block, int count) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const i64 at = first + block + i * 4;
            if (!w.quads || block + i * 4 >= count) continue;
            codes[i] = *(const u32*)(max.codes.at + at);
            scale[i] = max.nested.at[(at >> w.nested_shift) * max.nested.stride];
        }
    }
    __device__ __forceinline__ void write(int block, int count) const {
        const u32 lane = threadIdx.x % WARP * 4, to = stage() + lane;
        __syncwarp();
        if (w.quads) {
            const u32 copy = shared_window() + 128 + lane;
#pragma unroll
            for (int j = 0; j < SKINNY_SEGMENT; ++j) {
                const float code =
                    ptx_load_one<TABLE>(__byte_perm(codes[j / 4], copy, 0x7604 | j % 4 << 4));
                ptx_store_one(to + j * (WARP * 4), max.of_nested(code, scale[j / 4]));
            }
        } else {
            for (int j = 0; j < SKINNY_SEGMENT && block + j < count; ++j)
                ptx_store_one(to + j * (WARP * 4), max.of((first + block + j) * STEPS));
        }
        __syncwarp();
    }
};

// A matrix whose rows are whole blocks of 64 steps, packed without gaps, 16-byte aligned. Lanes 2i
// and 2i+1 read the same 16 bytes; lane t takes bytes 2·(t % 2) and the next of each word.
template <class T> struct SkinnyNf4 {
    const u8* at[2][2];
    SkinnyMaxima maxima;
    float scale[2][2];
    u32 copy, first, second;  // lane's copy in the table, permutations that take its bytes
    u32 block;                // the maximum of lane g's first row in the next block
    struct Raw {
        uint4 at[2][2];
    };

    __device__ __forceinline__ SkinnyNf4(const Nf4Matrix& w, i64 row0, i64 rows, i64 begin,
                                         int count)
        : maxima(w, row0 + threadIdx.x % WARP < rows ? row0 + threadIdx.x % WARP : rows - 1,
                 begin) {
        const u64 pitch = (u64)w.columns / 2;
        const u8* from =
            w.packed.at + (u64)row0 * pitch + (u64)begin / 2 + threadIdx.x % 4 / 2 * 16;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h)
                at[i][h] = from + (u32)skinny_row_inside(row0, rows, i, h) * pitch;
        copy = ptx_keep(shared_window() + threadIdx.x % 16 * 8);
        first = ptx_keep(0x7604 | threadIdx.x % 2 * 0x20), second = ptx_keep(first + 0x10);
        maxima.fetch(0, count);
    }
    template <int BLOCK> __device__ __forceinline__ void load(Raw& raw, bool there) const {
        ptx_load4x16_if<BLOCK * 32>(raw.at[0][0], raw.at[0][1], raw.at[1][0], raw.at[1][1],
                                    at[0][0], at[0][1], at[1][0], at[1][1], there);
    }
    __device__ __forceinline__ void segment(int first_block, int count) {
        maxima.write(first_block, count);
        maxima.fetch(first_block + SKINNY_SEGMENT, count);
        block = SkinnyMaxima::stage() + skinny_row(0, 0) * 4;
    }
    __device__ __forceinline__ void next() {
        scale[0][0] = ptx_load_one<0>(block), scale[0][1] = ptx_load_one<32>(block);
        scale[1][0] = ptx_load_one<64>(block), scale[1][1] = ptx_load_one<96>(block);
        block += WARP * 4;
    }
    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int i = 0; i < 2; ++i) at[i][0] += STEPS, at[i][1] += STEPS;
    }
    __device__ __forceinline__ u32 pair(u32 word, u32 select, float scale) const {
        const float2 codes = ptx_load_pair<TABLE>(__byte_perm(word, copy, select));
        return Halves<T>::pack(__fmul_rn(codes.x, scale), __fmul_rn(codes.y, scale));
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

template <class T, int N>
__device__ __forceinline__ void nf4_matmul_skinny(const GemmParams<T, Nf4Matrix>& p, i64 tile) {
    nf4_fill_table(p.right);
    __syncthreads();
    skinny<T, N>(p, (float*)(shared + (TABLE - (shared_address(shared) - shared_window()))), tile,
                 [&](i64 row0, i64 begin, i64 end) {
                     return SkinnyNf4<T>(p.right, row0, p.columns, begin,
                                         (int)(end - begin) / STEPS);
                 });
}
