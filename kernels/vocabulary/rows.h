// What all kernels of rows of logits and their launches share.
#pragma once

#include "types.h"

static constexpr int THREADS = 256;
static constexpr int SPAN = 4;            // vectors of a lane in a tile
static constexpr int TILE = SPAN * WARP;  // vectors of a tile

// t(x): x, -x or tanh(inner_scale·x).
enum Transform : i32 { TRANSFORM_IDENTITY, TRANSFORM_NEGATE, TRANSFORM_SOFTCAP };

// What all row kernels know of their rows.
struct RowSet {
    i64 vocab;           // columns that exist
    i64 columns;         // columns of the matrix
    double logit_scale;  // z = logit_scale·t
    float log2_scale;    // logit_scale·log2 e
    i32 cluster;         // blocks that share a row: 2^cluster_shift
    i32 cluster_shift;
    Transform transform;
    float inner_scale;
    i32 unused;
    i64 tiles_per_block;
    i64 staged_words;  // 16-byte words of a slice in shared memory; 0 = the row is read again
};
