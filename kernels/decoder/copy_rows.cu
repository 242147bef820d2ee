// y[to[i]] = x[from[i]] for i in 0..R: rows gathered, scattered, or both.
//
// | operand  | shape          | dtype               | layout                          |
// |----------|----------------|---------------------|---------------------------------|
// | x, y     | [S, D], [Q, D] | f32, bf16, f16, f64 | rows contiguous, any row stride |
// | from, to | [R]            | i32                 | any stride; not given: row i    |
//
// Mapping: 2^k lanes per row, so many that each has four moves, 256 at most; 256 threads per block.
// A lane moves 16 bytes at a time where both sides are aligned, an element at a time where not,
// four loads in flight.
// Traffic: 2·R·D elements and the tables; no flops.
// Numerics: copies keep their bits, so a kernel knows widths, not dtypes.
// Whatever the tables hold: a row of x that is not there is zeros, a row of y that is not there is
// not written. Which row stays where two have one target is not defined (host memory is checked
// before). Bound by memory.
#include "common.cuh"
#include "copy_rows.h"

// Moves count elements of V from lane `lane` on; source = null writes zeros.
template <class V>
__device__ __forceinline__ void copy(const V* source, V* target, i64 count, int lane, int lanes,
                                     V zero) {
    constexpr int AHEAD = 4;
#pragma unroll 1
    for (i64 j = lane; j < count; j += AHEAD * lanes) {
        V values[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; ++a)
            values[a] = source && j + a * lanes < count ? source[j + a * lanes] : zero;
#pragma unroll
        for (int a = 0; a < AHEAD; ++a)
            if (j + a * lanes < count) target[j + a * lanes] = values[a];
    }
}

template <class T> __device__ __forceinline__ void copy_rows(const CopyRowsParams<T>& p) {
    constexpr int N = 16 / sizeof(T);
    const int shift = (int)p.shift, lanes = 1 << shift;
    const i64 i = (i64)blockIdx.x * (THREADS >> shift) + (threadIdx.x >> shift);
    if (i >= p.rows) return;
    const i64 from = p.from.at ? p.from.get(i) : i, to = p.to.at ? p.to.get(i) : i;
    if (to < 0 || to >= p.y_rows) return;
    const T* source = from >= 0 && from < p.x_rows ? p.x + from * p.x_stride : 0;
    T* target = p.y + to * p.y_stride;
    const int lane = threadIdx.x & (lanes - 1);
    i64 done = 0;
    if (aligned16(source) && aligned16(target)) {
        done = p.columns / N * N;
        copy((const uint4*)source, (uint4*)target, p.columns / N, lane, lanes,
             make_uint4(0, 0, 0, 0));
    }
    copy(source ? source + done : 0, target + done, p.columns - done, lane, lanes, T(0));
}

KERNEL(copy_rows_b16, (THREADS), CopyRowsParams<u16>) { copy_rows(p); }
KERNEL(copy_rows_b32, (THREADS), CopyRowsParams<u32>) { copy_rows(p); }
KERNEL(copy_rows_b64, (THREADS), CopyRowsParams<u64>) { copy_rows(p); }
