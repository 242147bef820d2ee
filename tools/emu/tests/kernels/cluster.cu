// Row sums split over a cluster of four CTAs; the parts meet in rank 0 through distributed
// shared memory. x: (rows, n) f32; grid = 4 * rows CTAs of 64 threads.
// targets: sm90a
using u32 = unsigned int;

static __device__ __forceinline__ u32 smem(const void* p) { return (u32)__cvta_generic_to_shared(p); }

extern "C" __global__ void __cluster_dims__(4, 1, 1) __launch_bounds__(64)
cluster_sum(const float* x, float* out, int n) {
    __shared__ float warps[2];
    __shared__ float parts[4];
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    const int row = blockIdx.x / 4;
    float s = 0.0f;
    for (int j = rank * 64 + threadIdx.x; j < n; j += 256) s += x[(long long)row * n + j];
    for (int offset = 16; offset > 0; offset >>= 1) s += __shfl_xor_sync(~0u, s, offset);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 remote;
        asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(smem(&parts[rank])), "r"(0));
        asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(warps[0] + warps[1]) : "memory");
    }
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
    if (rank == 0 && threadIdx.x == 0) out[row] = parts[0] + parts[1] + parts[2] + parts[3];
}
