// Which tensor of a list a block works on.
#pragma once

#include "common.cuh"

// The last of `count` > 0 entries whose start is not behind `place`; starts ascend, from 0. Called
// by all threads of a block: one warp looks at 32 places at a time, where a search by halves would
// wait for five loads one after another.
template <class Start>
__device__ __forceinline__ i64 last_start(i64 count, i64 place, const Start& start) {
    __shared__ i64 found;
    if (threadIdx.x < WARP) {
        i64 low = 0, high = count;
        while (high - low > 1) {
            const i64 step = (high - low + WARP - 1) / WARP, i = low + threadIdx.x * step;
            const u32 before = __ballot_sync(ALL_LANES, i < high && start(i) <= place);
            low += (__popc(before) - 1) * step;
            high = low + step < high ? low + step : high;
        }
        if (threadIdx.x == 0) found = low;
    }
    __syncthreads();
    const i64 last = found;
    __syncthreads();
    return last;
}
