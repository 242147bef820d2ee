// One launch of many instructions: local arrays, calls, packed arithmetic, bit operations,
// warp votes, atomics, wide integer arithmetic, double precision. Answers are checked on the host.
// local memory: zoo: an array is indexed at run time and helpers are not inlined, on purpose
// targets: sm80
using u32 = unsigned int;
using u64 = unsigned long long;

static __device__ __noinline__ u32 collatz(u32 n, u32* steps) {
    u32 high = n;
    while (n != 1) { n = n & 1 ? 3 * n + 1 : n >> 1; if (n > high) high = n; ++*steps; }
    return high;
}

static __device__ __noinline__ float horner(const float* c, int n, float x) {
    float y = 0.0f;
    for (int i = 0; i < n; i++) y = fmaf(y, x, c[i]);
    return y;
}

__constant__ float coefficients[4] = {0.5f, -1.25f, 2.0f, 3.0f};

extern "C" __global__ void zoo(u32* words, u64* wides, float* floats, double* doubles, u32* counters) {
    const u32 i = threadIdx.x, n = blockDim.x;
    u32 table[8];
    #pragma unroll
    for (u32 j = 0; j < 8; j++) table[j] = j * j + i;
    u32 steps = 0, high = collatz(i + 1, &steps);
    words[i] = table[i % 8] + high;
    words[n + i] = steps;
    words[2 * n + i] = __popc(i * 2654435761u) + __clz(i) * 100 + __ffs(i) * 10000;
    words[3 * n + i] = __brev(i) ^ __byte_perm(i, ~i, 0x5140);
    words[4 * n + i] = __funnelshift_l(i, ~i, 5);
    words[5 * n + i] = __ballot_sync(~0u, i % 3 == 0);
    words[6 * n + i] = __match_any_sync(~0u, i % 5);
    words[7 * n + i] = i < 20 ? __activemask() : 0u;
    words[8 * n + i] = __umulhi(i * 0x9e3779b9u, 0xdeadbeefu);
    words[9 * n + i] = (u32)((int)(i - 16) / 3) + (u32)((int)(i - 16) % 7);
    wides[i] = (u64)(i + 1) * 0x123456789abcdefull / (i + 3) + (0xfedcba9876543210ull % (i + 7));
    floats[i] = horner(coefficients, 4, (float)i * 0.125f);
    floats[n + i] = sqrtf((float)i) / (1.0f + (float)i);
    floats[2 * n + i] = expf(-(float)i * 0.25f) + tanhf((float)i * 0.1f) + log1pf((float)i);
    floats[3 * n + i] = rintf((float)i * 0.3f) + floorf((float)i * 0.7f) + (float)(int)((float)i * -0.9f);
    doubles[i] = sqrt((double)i) + fma((double)i, 1.0 / 3.0, -(double)i);
    doubles[n + i] = exp((double)i * 0.01) + log((double)i + 1.0);
    atomicAdd(&counters[0], i);
    atomicMax(&counters[1], i * 7 % 31);
    atomicCAS(&counters[2], 0u, i + 1);
    atomicOr(&counters[3], 1u << i);
    switch (i % 4) {
    case 0: atomicAdd(&counters[4], 1u); break;
    case 1: atomicSub(&counters[4], 2u); break;
    case 2: atomicXor(&counters[5], i); break;
    default: atomicMin(&counters[6], i);
    }
}
