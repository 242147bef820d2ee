// A 4-bit matrix as one side of a product.
#pragma once

#include "nf4.h"
#include "mma_gemm.h"

// Shared memory of the kernels for few rows: what may precede the table of code pairs, the table,
// and the maxima that the warps of a block hold.
static constexpr int TABLE = 4096, TABLE_BYTES = 256 * 256;
static constexpr int SKINNY_SHARED = TABLE + TABLE_BYTES + SKINNY_SEGMENT * SKINNY_THREADS * 4;

struct Nf4Matrix {
    Column<const u8> packed;
    Column<const float> code;
    BlockMax max;
    i64 columns;
    i32 dtype;   // that was quantized: 0 f32, 1 bf16, 2 f16
    i32 across;  // lanes are columns: dX
    // What the faster kernels need: rows are whole blocks of 64 values without gaps, a maximum
    // spans such a block, nested ones a power of two of maxima; and 8-bit maxima of 64 values each
    // can be read four at a time, which share a nested maximum.
    i32 regular, quads;
    i32 nested_shift, pad;
};
