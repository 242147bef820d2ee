// Log-softmax gather over rows: one CTA of 256 threads a row, online maximum and sum.
//
//   logp[i] = x[i, target[i]] - lse[i],   lse[i] = max + ln(sum exp(x[i, :] - max))
//
// x: (rows, vocab) bf16, row stride `vocab`, 16-byte aligned rows are not required.
// targets: sm80
using u16 = unsigned short;
using u32 = unsigned int;

static __device__ __forceinline__ float from_bf16(u16 bits) { return __uint_as_float((u32)bits << 16); }

struct MaxSum { float max, sum; };

static __device__ __forceinline__ MaxSum join(MaxSum a, MaxSum b) {
    float m = fmaxf(a.max, b.max);
    float s = 0.0f;
    if (a.sum > 0.0f) s += a.sum * __expf(a.max - m);
    if (b.sum > 0.0f) s += b.sum * __expf(b.max - m);
    return {m, s};
}

extern "C" __global__ void __launch_bounds__(256)
logprob(const u16* __restrict__ x, const int* __restrict__ target, float* __restrict__ logp,
        float* __restrict__ lse, int vocab) {
    __shared__ float maxes[8], sums[8];
    const long long row = blockIdx.x;
    const u16* r = x + row * vocab;
    MaxSum acc = {-__int_as_float(0x7f800000), 0.0f};
    for (int j = threadIdx.x; j < vocab; j += 256) {
        float v = from_bf16(r[j]);
        acc = join(acc, {v, 1.0f});
    }
    for (int offset = 16; offset > 0; offset >>= 1) {
        MaxSum other = {__shfl_xor_sync(~0u, acc.max, offset), __shfl_xor_sync(~0u, acc.sum, offset)};
        acc = join(acc, other);
    }
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) { maxes[warp] = acc.max; sums[warp] = acc.sum; }
    __syncthreads();
    if (warp == 0) {
        MaxSum a = {-__int_as_float(0x7f800000), 0.0f};
        if (lane < 8) a = {maxes[lane], sums[lane]};
        for (int offset = 4; offset > 0; offset >>= 1) {
            MaxSum other = {__shfl_xor_sync(~0u, a.max, offset), __shfl_xor_sync(~0u, a.sum, offset)};
            a = join(a, other);
        }
        if (lane == 0) {
            float l = a.max + logf(a.sum);
            lse[row] = l;
            logp[row] = from_bf16(r[target[row]]) - l;
        }
    }
}

// The mean over rows of a group, subtracted: one warp a group, groups by offsets.
extern "C" __global__ void group_center(const float* reward, const int* offsets, float* advantage) {
    int begin = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];
    float sum = 0.0f;
    for (int i = begin + threadIdx.x; i < end; i += 32) sum += reward[i];
    for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_down_sync(~0u, sum, offset);
    float mean = __shfl_sync(~0u, sum, 0) / (float)(end - begin);
    for (int i = begin + threadIdx.x; i < end; i += 32) advantage[i] = reward[i] - mean;
}

// Sum of x in a fixed order: each CTA leaves a partial, the last CTA to arrive adds them.
extern "C" __global__ void last_block_sum(const float* x, float* partial, u32* ticket, float* out, int n) {
    __shared__ float lanes[4];
    __shared__ u32 last;
    float s = 0.0f;
    for (int i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128) s += x[i];
    for (int offset = 16; offset > 0; offset >>= 1) s += __shfl_down_sync(~0u, s, offset);
    if (threadIdx.x % 32 == 0) lanes[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = lanes[0] + lanes[1] + lanes[2] + lanes[3];
        __threadfence();
        last = atomicAdd(ticket, 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float total = 0.0f;
        for (int b = 0; b < gridDim.x; b++) total += __ldcg(partial + b);
        *out = total;
    }
}
