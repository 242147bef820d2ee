// Values of a 4-bit matrix in the layout of bitsandbytes: flattened row-major, element 2i is the
// high nibble of byte i, blocks of a power of two may cross rows.
#pragma once

#include "common.cuh"
#include "nf4.h"

// code·absmax in the dtype that was quantized (0 f32, 1 bf16, 2 f16), then in T.
template <class T> __device__ __forceinline__ T nf4_value(int dtype, float x) {
    if (dtype == 1) x = to_f32(from_f32<bf16>(x));
    if (dtype == 2) x = to_f32(from_f32<f16>(x));
    return from_f32<T>(x);
}
