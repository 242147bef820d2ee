// C = A B^T in bf16 with f32 accumulation: CTA tile 64x64x32, 4 warps of 32x32, two cp.async
// stages, ldmatrix from swizzled shared memory, mma.sync m16n8k16. Ragged M and N; K % 32 == 0.
// targets: sm80
using u16 = unsigned short;
using u32 = unsigned int;

constexpr int BM = 64, BN = 64, BK = 32, STAGES = 2;

static __device__ __forceinline__ u32 smem(const void* p) { return (u32)__cvta_generic_to_shared(p); }

static __device__ __forceinline__ void copy16(u32 dst, const void* src, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}

static __device__ __forceinline__ void ldmatrix4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Byte offset of 16-byte chunk `c` (0..3) of row `r`: rows of 64 bytes, two rows share a 128-byte line.
static __device__ __forceinline__ u32 at(int r, int c) { return r * 64 + ((c ^ ((r >> 1) & 3)) << 4); }

extern "C" __global__ void __launch_bounds__(128)
gemm_mma(const u16* __restrict__ a, const u16* __restrict__ b, u16* __restrict__ c, int m, int n, int k) {
    __shared__ __align__(128) unsigned char tiles[STAGES][2][BM * BK * 2];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    const int wm = (warp / 2) * 32, wn = (warp % 2) * 32;
    float acc[2][4][4] = {};

    auto load = [&](int stage, int k0) {
        for (int i = 0; i < 2; i++) {
            int chunk = tid + i * 128, r = chunk / 4, ch = chunk % 4;
            bool in_a = m0 + r < m, in_b = n0 + r < n;
            copy16(smem(tiles[stage][0]) + at(r, ch), a + (long long)(in_a ? m0 + r : 0) * k + k0 + ch * 8, in_a ? 16 : 0);
            copy16(smem(tiles[stage][1]) + at(r, ch), b + (long long)(in_b ? n0 + r : 0) * k + k0 + ch * 8, in_b ? 16 : 0);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    load(0, 0);
    for (int k0 = 0, stage = 0; k0 < k; k0 += BK, stage ^= 1) {
        if (k0 + BK < k) {
            load(stage ^ 1, k0 + BK);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        u32 ta = smem(tiles[stage][0]), tb = smem(tiles[stage][1]);
        #pragma unroll
        for (int kk = 0; kk < 2; kk++) {
            u32 fa[2][4], fb[2][4];
            #pragma unroll
            for (int i = 0; i < 2; i++) ldmatrix4(fa[i], ta + at(wm + i * 16 + lane % 16, kk * 2 + lane / 16));
            #pragma unroll
            for (int j = 0; j < 2; j++) ldmatrix4(fb[j], tb + at(wn + j * 16 + lane % 8 + 8 * (lane / 16), kk * 2 + (lane / 8) % 2));
            #pragma unroll
            for (int i = 0; i < 2; i++)
                #pragma unroll
                for (int j = 0; j < 4; j++) mma(acc[i][j], fa[i], fb[j / 2][(j % 2) * 2], fb[j / 2][(j % 2) * 2 + 1]);
        }
        __syncthreads();
    }
    const int g = lane / 4, t = lane % 4;
    #pragma unroll
    for (int i = 0; i < 2; i++)
        #pragma unroll
        for (int j = 0; j < 4; j++)
            #pragma unroll
            for (int h = 0; h < 2; h++) {
                int row = m0 + wm + i * 16 + g + h * 8, col = n0 + wn + j * 8 + t * 2;
                u32 packed;
                asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(acc[i][j][h * 2 + 1]), "f"(acc[i][j][h * 2]));
                if (row < m && col < n) c[(long long)row * n + col] = (u16)packed;
                if (row < m && col + 1 < n) c[(long long)row * n + col + 1] = (u16)(packed >> 16);
            }
}
