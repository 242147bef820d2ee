// What the headers are written in that kernels share with their launches (`<family>/<op>.h`).
// `kernelc` reads those headers and writes their Rust side, `generated/params.rs`.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

// Threads of a warp.
static constexpr int WARP = 32;

// A vector of any stride; at = null if it was not given.
template <class T> struct Column {
    T* at;
    i64 stride;
    __device__ __forceinline__ T get(i64 i) const { return at ? at[i * stride] : T(0); }
    __device__ __forceinline__ T get_or(i64 i, T otherwise) const {
        return at ? at[i * stride] : otherwise;
    }
    __device__ __forceinline__ void set(i64 i, T value) const {
        if (at) at[i * stride] = value;
    }
};
