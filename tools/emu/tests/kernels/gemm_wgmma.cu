// C = A B^T for Hopper: one producer warp moves 64x64 bf16 tiles of A and B by TMA (128-byte
// swizzle) through a ring of two stages; one warpgroup multiplies with wgmma m64n64k16.
// M, N multiples of 64 are not required (TMA fills zeros); K % 64 == 0.
// targets: sm90a
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

struct __align__(64) TensorMap { unsigned char bytes[128]; };

constexpr int STAGES = 2, TILE = 64 * 64 * 2;

static __device__ __forceinline__ u32 smem(const void* p) { return (u32)__cvta_generic_to_shared(p); }

static __device__ __forceinline__ void wait(u32 bar, u32 parity) {
    asm volatile("{\n.reg .pred p;\nW:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra D;\nbra W;\nD:\n}" ::"r"(bar), "r"(parity) : "memory");
}

static __device__ __forceinline__ void tma(u32 dst, const TensorMap* map, int x, int y, u32 bar) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(dst), "l"(map), "r"(x), "r"(y), "r"(bar) : "memory");
}

static __device__ __forceinline__ u64 descriptor(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

static __device__ __forceinline__ void wgmma(float (&d)[32], u64 a, u64 b) {
    asm volatile("{\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
        "%32, %33, 1, 1, 1, 0, 0;\n}"
        : "+f"(d[0]),"+f"(d[1]),"+f"(d[2]),"+f"(d[3]),"+f"(d[4]),"+f"(d[5]),"+f"(d[6]),"+f"(d[7]),
          "+f"(d[8]),"+f"(d[9]),"+f"(d[10]),"+f"(d[11]),"+f"(d[12]),"+f"(d[13]),"+f"(d[14]),"+f"(d[15]),
          "+f"(d[16]),"+f"(d[17]),"+f"(d[18]),"+f"(d[19]),"+f"(d[20]),"+f"(d[21]),"+f"(d[22]),"+f"(d[23]),
          "+f"(d[24]),"+f"(d[25]),"+f"(d[26]),"+f"(d[27]),"+f"(d[28]),"+f"(d[29]),"+f"(d[30]),"+f"(d[31])
        : "l"(a), "l"(b));
}

extern "C" __global__ void __launch_bounds__(160)
gemm_wgmma(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, float* c, int m, int n, int k) {
    extern __shared__ __align__(1024) unsigned char tiles[];
    __shared__ __align__(8) u64 full[STAGES], empty[STAGES];
    const int tid = threadIdx.x, warp = tid / 32;
    const int m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
    if (tid == 0) {
        for (int s = 0; s < STAGES; s++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(smem(&full[s])) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 128;" ::"r"(smem(&empty[s])) : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (warp == 4) {
        if (tid == 128) {
            for (int i = 0; i < k / 64; i++) {
                int s = i % STAGES;
                if (i >= STAGES) wait(smem(&empty[s]), (i / STAGES - 1) & 1);
                asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem(&full[s])), "r"(2 * TILE) : "memory");
                tma(smem(tiles + s * 2 * TILE), &map_a, i * 64, m0, smem(&full[s]));
                tma(smem(tiles + s * 2 * TILE + TILE), &map_b, i * 64, n0, smem(&full[s]));
            }
        }
        return;
    }
    float acc[32] = {};
    for (int i = 0; i < k / 64; i++) {
        int s = i % STAGES;
        wait(smem(&full[s]), (i / STAGES) & 1);
        u64 da = descriptor(smem(tiles + s * 2 * TILE)), db = descriptor(smem(tiles + s * 2 * TILE + TILE));
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        #pragma unroll
        for (int kk = 0; kk < 4; kk++) wgmma(acc, da + kk * 2, db + kk * 2);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem(&empty[s])) : "memory");
    }
    const int g = (tid % 32) / 4, t = tid % 4;
    #pragma unroll
    for (int j = 0; j < 8; j++)
        #pragma unroll
        for (int e = 0; e < 4; e++) {
            int row = m0 + warp * 16 + g + (e / 2) * 8, col = n0 + j * 8 + t * 2 + e % 2;
            if (row < m && col < n) c[(long long)row * n + col] = acc[j * 4 + e];
        }
}

// C = A B^T of one 64x64x64 tile whose operands are written to shared memory by st.shared: the
// generic proxy writes, wgmma reads through the async proxy, fence.proxy.async stands between.
extern "C" __global__ void __launch_bounds__(128) tile_wgmma(const u32* a, const u32* b, float* c) {
    __shared__ __align__(1024) unsigned char ta[TILE];
    __shared__ __align__(1024) unsigned char tb[TILE];
    const int tid = threadIdx.x, warp = tid / 32;
    for (int i = tid; i < 64 * 32; i += 128) {
        int row = i / 32, byte = (i % 32) * 4;
        int at = row * 128 + (byte ^ ((row & 7) << 4));
        *(u32*)(ta + at) = a[i];
        *(u32*)(tb + at) = b[i];
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    float acc[32] = {};
    u64 da = descriptor(smem(ta)), db = descriptor(smem(tb));
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    #pragma unroll
    for (int kk = 0; kk < 4; kk++) wgmma(acc, da + kk * 2, db + kk * 2);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    const int g = (tid % 32) / 4, t = tid % 4;
    #pragma unroll
    for (int j = 0; j < 8; j++)
        #pragma unroll
        for (int e = 0; e < 4; e++)
            c[(warp * 16 + g + (e / 2) * 8) * 64 + j * 8 + t * 2 + e % 2] = acc[j * 4 + e];
}
