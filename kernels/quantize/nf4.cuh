// Values of a 4-bit matrix in the layout of bitsandbytes: flattened row-major, element 2i is the
// high nibble of byte i, blocks of a power of two may cross rows.
#pragma once

#include "common.cuh"

// Block maxima, plain or quantised themselves.
struct BlockMax {
    Column<const float> absmax;
    Column<const u8> codes;
    Column<const float> nested, table;
    i64 nested_blocksize;
    float offset;
    i32 block_shift;

    // A quantised maximum, both operations rounded: the bits of bitsandbytes.
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

// code·absmax in the dtype that was quantised (0 f32, 1 bf16, 2 f16), then in T.
template <class T> __device__ __forceinline__ T nf4_value(int dtype, float x) {
    if (dtype == 1) x = to_f32(from_f32<bf16>(x));
    if (dtype == 2) x = to_f32(from_f32<f16>(x));
    return from_f32<T>(x);
}
