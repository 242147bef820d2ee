// What all kernels of rows of logits and their launches share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr int SPAN = 4;            // vectors of a lane in a tile
static constexpr int TILE = SPAN * WARP;  // vectors of a tile

// What all row kernels know of their rows.
struct RowSet {
    i64 vocab;    // columns that exist
    i64 columns;  // columns of the matrix
    double k;     // z = k·t
    float c;      // k·log2 e
    i32 cluster;  // blocks that share a row: 2^shift
    i32 shift;
    i32 bend;  // t = x (0), -x (1) or tanh(a·x) (2)
    float a;   // inner factor of t
    i32 unused;
    i64 share;  // tiles of a block
    i64 held;   // 16-byte words of a block's slice in shared memory; 0 = read the row again instead
};
