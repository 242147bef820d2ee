// How maxima of 4-bit blocks reach a kernel.
#pragma once

#include "types.h"

// Block maxima, plain or quantized themselves.
struct BlockMax {
    Column<const float> absmax;
    Column<const u8> codes;
    Column<const float> nested, table;
    i64 nested_blocksize;
    float offset;
    i32 block_shift;

    // A quantized maximum, both operations rounded: the bits of bitsandbytes.
    __device__ __forceinline__ float of_nested(float code, float scale) const {
        return __fadd_rn(__fmul_rn(code, scale), offset);
    }
    __device__ __forceinline__ float of_block(i64 block) const {
        if (absmax.at) return absmax.get(block);
        const float scale = nested.get(block / nested_blocksize);
        return of_nested(table.get(codes.get(block)), scale);
    }
    // The same with the table of nested maxima in shared memory. The usual group size is a power of
    // two, and a division of 64 bits is a call.
    __device__ __forceinline__ float of_block(i64 block, const float* shared_table) const {
        if (absmax.at) return absmax.get(block);
        const bool power = (nested_blocksize & (nested_blocksize - 1)) == 0;
        const i64 group =
            power ? block >> (63 - __clzll(nested_blocksize)) : block / nested_blocksize;
        return of_nested(shared_table[codes.get(block)], nested.get(group));
    }
    // The maximum of the block that holds element i.
    __device__ __forceinline__ float of(i64 i) const { return of_block(i >> block_shift); }
};
