// What all kernels of attention and their launches share.
#pragma once

#include "types.h"

static constexpr int THREADS = 128;
static constexpr int WARPS = THREADS / WARP;

// Rows of heads: [rows, heads, D], the last dimension contiguous.
template <class T> struct Heads {
    T* at;
    i64 row, head;  // strides
    __device__ __forceinline__ T* of(i64 r, i64 h) const { return at + r * row + h * head; }
};

// A page table [count, width]; no table if keys lie one after another from kv_start on.
struct Pages {
    const i32* table;
    i64 stride, width, shift;  // 2^shift rows are a page
};

// Key j of sequence b lies in row prefix_start[b] + j where j < prefix_len[b], else in row
// kv_start[b] + j - prefix_len[b].
struct Sequences {
    Column<const i64> cu_seqlens, kv_start, kv_len, prefix_start, prefix_len;
    Pages pages;
    i64 count, tokens, rows;  // sequences, rows of q, rows of k
};

template <class T> struct AttentionParams {
    Heads<const T> q, k, v;
    Heads<T> o;
    Sequences sequences;
    float* lse;
    i64 lse_stride, heads, group, d;
    double scale;  // scale·log2(e)
};

template <class T> struct AttentionBwdParams {
    Heads<const T> q, k, v, dout;
    Heads<T> dq, dk, dv;
    Sequences sequences;
    void* stats;  // Stats of the kernels
    i64 heads, group, d;
    double scale, scale2;  // scale, scale·log2(e)
};
