// What `lora_grad.cu` and its launch share.
#pragma once

#include "types.h"

static constexpr int THREADS = 128;
static constexpr int CHUNK = 128;  // rows whose sums are one chain
static constexpr int PICKERS = 1024;

// Threads of a block that adds sums, and its tile of lanes and columns.
static constexpr int ADDERS = 256, LANES = 16, COLUMNS = 64;

// One product. `base`: its first column in a line of sums.
template <class T, class S> struct Operands {
    const S* left;
    i64 left_lane, left_row;
    const T* right;
    i64 right_row, columns, base;
    i64 whole;  // neighboring columns of a thread are aligned as a vector
};

// The rows: of all, or those of a list whose length only the device knows.
struct Picked {
    const i64* count;
    const i32* list;
    i64 rows;
    __device__ __forceinline__ i64 size() const { return count ? *count : rows; }
    __device__ __forceinline__ i32 of(i64 i) const { return list ? list[i] : (i32)i; }
};

template <class T, class S, class A> struct LoraGradParams {
    Operands<T, S> first, second;
    Picked picked;
    i64 rank, chunk;  // chunk: the first of this launch
    A* sums;          // [chunks of this launch][rank][line]
    i64 line;
};

struct LoraPickParams {
    Column<const i32> adapter;
    i64 index, rows;
    i64* count;
    i32* list;
};

struct Target {
    float* out;
    i64 lane_stride, column_stride, columns, base;
};

template <class A> struct LoraAddParams {
    Target first, second;
    const i64* count;  // null: rows
    i64 rows, rank;
    i64 chunk, chunks;  // chunk: the first of this launch; chunks: most of a launch
    const A* sums;      // [chunks][rank][line]
    A* carry;           // [rank][line] sum of the launches before
    i64 line;
};
