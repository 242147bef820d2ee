// What products on tensor cores take.
#pragma once

#include "product.h"

static constexpr int CHUNKS = 8;
static constexpr int STEPS = 64;
static constexpr int SKINNY_THREADS = 256;
static constexpr int SKINNY_ROWS = 32;

// Blocks of 64 steps whose maxima are fetched at once.
static constexpr int SKINNY_SEGMENT = 8;

static constexpr int TILE_COLUMNS = 128;
static constexpr int PITCH = TILE_COLUMNS + 8;  // of a tile of sums, in words

// Tiles: stages of shared memory, threads that fill them, and stages that are copied while another
// one is expanded, by kernel set.
static constexpr int STAGES_SM80 = 2, PRODUCERS_SM80 = 256, PREFETCH_DISTANCE_SM80 = 0;
static constexpr int STAGES_SM90A = 6, PRODUCERS_SM90A = 128, PREFETCH_DISTANCE_SM90A = 3;

// Bytes of a slot of the ring buffer: packed weights of a stage.
static constexpr int SLOT_BYTES = 4096;

template <class T, class W> struct GemmParams {
    const T* x;
    i64 x_stride, rows, columns, depth;
    Adapters lora;
    // [count][rows][3·rank]: what the adapters' second factors are multiplied with, in three parts
    // that add up to it; 0 in rows that take another adapter.
    const T* parts;
    Column<const T> bias;
    T* y;
    const T* addend;  // added last: the residual, or y itself; null for none
    i64 y_stride, addend_stride;
    // Instead of y: scale·sum in the rows of adapter `only`, and 0 in those of none if it is 0; and
    // the same in three parts, 0 in all other rows, if they are wanted.
    float* factor;
    T* factor_parts;
    i64 factor_stride, only;
    double scale;
    i32 chunk, chunks;  // 64·ceil(depth/512) steps; how many there are
    i32 cluster;        // 8 blocks of a chunk each share a piece of the output, or 1
    i32 pad;
    W right;
};
