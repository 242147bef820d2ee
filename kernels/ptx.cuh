// The only file with `asm`: what CUDA C++ has no words for, one instruction a function.
#pragma once

// Ends the kernel with an error of the device.
__device__ __forceinline__ void ptx_trap() { asm volatile("trap;"); }

// ---- conversions ------------------------------------------------------------------------------

__device__ __forceinline__ float ptx_f32_from_f16(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

__device__ __forceinline__ unsigned short ptx_f16_from_f32(float x) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ unsigned short ptx_bf16_from_f32(float x) {
    unsigned short y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// ---- fast functions: relative error about 2^-22 ------------------------------------------------

// 2^x.
__device__ __forceinline__ float ptx_ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// log2(x).
__device__ __forceinline__ float ptx_lg2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1/x.
__device__ __forceinline__ float ptx_rcp(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The larger of two; NaN if either is NaN.
__device__ __forceinline__ float ptx_max_nan(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// ---- matrix products of a warp: d[16, 8] += a[16, 16]·b[8, 16]ᵀ, sums in f32 --------------------

__device__ __forceinline__ void ptx_mma_bf16(float (&d)[4], const unsigned int (&a)[4],
                                             const unsigned int (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void ptx_mma_f16(float (&d)[4], const unsigned int (&a)[4],
                                            const unsigned int (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two numbers rounded once to nearest; `low` is the one at the lower address.
__device__ __forceinline__ unsigned int ptx_pack_bf16(float low, float high) {
    unsigned int d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

__device__ __forceinline__ unsigned int ptx_pack_f16(float low, float high) {
    unsigned int d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

// Four 8 x 8 matrices of halves from shared memory: lane i names row i % 8 of matrix i / 8 and gets
// elements 2·(i % 4) and the next of row i / 4 of each.
__device__ __forceinline__ void ptx_load_matrices(unsigned int (&d)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"((unsigned int)__cvta_generic_to_shared(row))
                 : "memory");
}

// The same matrices, each transposed.
__device__ __forceinline__ void ptx_load_matrices_transposed(unsigned int (&d)[4],
                                                             const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"((unsigned int)__cvta_generic_to_shared(row))
                 : "memory");
}

// ---- copies to shared memory that run beside the arithmetic ------------------------------------
//
// By the L1 (.ca): without it (.cg) a sector of 32 bytes whose halves go to different places of
// shared memory is fetched twice. Tiles permute such halves apart: 0.510 -> 0.161 ms for a bf16
// product of 2,048 x 4,096 x 4,096 on an H200.

// 16 bytes, or as many zeros if `there` is 0; both addresses are multiples of 16.
__device__ __forceinline__ void ptx_copy16(void* to, const void* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (unsigned int)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

// 16 bytes to a shared address; both are multiples of 16.
__device__ __forceinline__ void ptx_copy16_whole(unsigned int to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// The first `bytes` of 16 bytes, zeros behind them; both addresses are multiples of 16.
__device__ __forceinline__ void ptx_copy16_partly(unsigned int to, const void* from, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}

// Waits for this thread's copies.
__device__ __forceinline__ void ptx_copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Ends a group of copies, and waits until at most PENDING groups are under way.
__device__ __forceinline__ void ptx_copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int PENDING> __device__ __forceinline__ void ptx_copy_wait_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- memory -----------------------------------------------------------------------------------

// 16 bytes that are read once: past L1, first to leave L2.
__device__ __forceinline__ uint4 ptx_load_stream(const void* p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

// Numbers at shared address `at` + OFFSET, OFFSET a part of the instruction.
template <int OFFSET> __device__ __forceinline__ float2 ptx_load_pair(unsigned int at) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2+%3];"
                 : "=f"(v.x), "=f"(v.y)
                 : "r"(at), "n"(OFFSET));
    return v;
}
template <int OFFSET> __device__ __forceinline__ float ptx_load_one(unsigned int at) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1+%2];" : "=f"(v) : "r"(at), "n"(OFFSET));
    return v;
}

// 16 bytes at each of four places + OFFSET in global memory if `there`, else what the registers
// hold: no branch, and no copies of registers where two paths meet. Read once, as by
// ptx_load_stream.
template <int OFFSET>
__device__ __forceinline__ void ptx_load4x16_if(uint4& a, uint4& b, uint4& c, uint4& d,
                                                const void* pa, const void* pb, const void* pc,
                                                const void* pd, bool there) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %20, 0;\n"
        "@p ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%16+%21];\n"
        "@p ld.global.L1::no_allocate.v4.u32 {%4, %5, %6, %7}, [%17+%21];\n"
        "@p ld.global.L1::no_allocate.v4.u32 {%8, %9, %10, %11}, [%18+%21];\n"
        "@p ld.global.L1::no_allocate.v4.u32 {%12, %13, %14, %15}, [%19+%21];\n}"
        : "+r"(a.x), "+r"(a.y), "+r"(a.z), "+r"(a.w), "+r"(b.x), "+r"(b.y), "+r"(b.z), "+r"(b.w),
          "+r"(c.x), "+r"(c.y), "+r"(c.z), "+r"(c.w), "+r"(d.x), "+r"(d.y), "+r"(d.z), "+r"(d.w)
        : "l"(pa), "l"(pb), "l"(pc), "l"(pd), "r"((int)there), "n"(OFFSET));
}
template <int OFFSET>
__device__ __forceinline__ void ptx_load8_if(uint2& v, const void* p, bool there) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %3, 0;\n@p ld.global.v2.u32 {%0, %1}, [%2+%4];\n}"
        : "+r"(v.x), "+r"(v.y)
        : "l"(p), "r"((int)there), "n"(OFFSET));
}
template <int OFFSET> __device__ __forceinline__ void ptx_load8(uint2& v, const void* p) {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2+%3];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p), "n"(OFFSET));
}

__device__ __forceinline__ void ptx_store_shared(unsigned int at, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}
__device__ __forceinline__ void ptx_store_one(unsigned int at, float v) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
}
// 16 bytes at a shared address.
__device__ __forceinline__ void ptx_store_shared(unsigned int at, float4 v) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v.x), "f"(v.y), "f"(v.z),
                 "f"(v.w)
                 : "memory");
}

// Four bytes of a (places 0 to 3) and b (4 to 7), chosen by the nibbles of `places`, which are
// below 8: __byte_perm spends an instruction on making them so.
__device__ __forceinline__ unsigned int ptx_permute(unsigned int a, unsigned int b,
                                                    unsigned int places) {
    unsigned int d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(places));
    return d;
}

// x, computed once: the compiler cannot see that it could compute it again in a loop.
__device__ __forceinline__ unsigned int ptx_keep(unsigned int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// 16 bytes that are not read again soon.
__device__ __forceinline__ void ptx_store_stream(void* p, uint4 v) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
}

// 16 bytes in one instruction, where the compiler makes several of a vector's store.
__device__ __forceinline__ void ptx_store16(float* p, const float* v) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v[0]), "f"(v[1]),
                 "f"(v[2]), "f"(v[3])
                 : "memory");
}
__device__ __forceinline__ void ptx_store16(double* p, const double* v) {
    asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(p), "d"(v[0]), "d"(v[1]) : "memory");
}

// ---- clusters: blocks that read each other's shared memory; before sm_90 a cluster is a block -

// Which block of its cluster this is.
__device__ __forceinline__ int ptx_cluster_rank() {
#if __CUDA_ARCH__ >= 900
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return 0;
#endif
}

// Waits for all threads of the cluster and makes their writes to shared memory visible.
__device__ __forceinline__ void ptx_cluster_sync() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Shared address in block `rank` of the cluster of what this block has at `at`, and numbers there.
__device__ __forceinline__ unsigned int ptx_cluster_address(unsigned int at, int rank) {
#if __CUDA_ARCH__ >= 900
    unsigned int there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
#else
    return at;
#endif
}
__device__ __forceinline__ float2 ptx_cluster_load_pair(unsigned int at) {
    float2 v;
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];"
                 : "=f"(v.x), "=f"(v.y)
                 : "r"(at)
                 : "memory");
#else
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
#endif
    return v;
}
__device__ __forceinline__ float4 ptx_cluster_load_quad(unsigned int at) {
    float4 v;
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(at)
                 : "memory");
#else
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(at)
                 : "memory");
#endif
    return v;
}

// The 8 bytes that block `rank` of the cluster holds where this block holds `p`.
__device__ __forceinline__ unsigned long long ptx_cluster_load(const void* p, int rank) {
#if __CUDA_ARCH__ >= 900
    unsigned int here = (unsigned int)__cvta_generic_to_shared(p), there;
    unsigned long long value;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
    asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(value) : "r"(there) : "memory");
    return value;
#else
    return *(const unsigned long long*)p;
#endif
}

// ---- what only sm_90a has: barriers that count bytes or arrivals, and products of a warpgroup ---
#if __CUDA_ARCH__ >= 900

// A barrier at a shared address that `arrivals` arrivals complete.
__device__ __forceinline__ void ptx_barrier_init(unsigned int barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

__device__ __forceinline__ void ptx_barrier_arrive(unsigned int barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives once this thread's copies by ptx_copy16_* have landed, without waiting for them.
__device__ __forceinline__ void ptx_barrier_arrive_after_copies(unsigned int barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Waits until the phase of this parity is complete.
__device__ __forceinline__ void ptx_barrier_wait(unsigned int barrier, unsigned int parity) {
    unsigned int done;
    do {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, "
            "1, 0, p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!done);
}

// Makes the writes to shared memory that this thread knows of visible to wgmma.
__device__ __forceinline__ void ptx_fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void ptx_wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void ptx_wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most PENDING groups are under way.
template <int PENDING> __device__ __forceinline__ void ptx_wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// d[64, 128] = (keep ? d : 0) + a[64, 16]·b[16, 128]. `N_MAJOR`: b's columns are contiguous, not
// its depth.
#define PTX_F8(d, i)                                                                            \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define PTX_WGMMA(type)                                                                           \
    asm volatile(                                                                                 \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                              \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                              \
        " "                                                                                       \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                 \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "        \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "        \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "       \
        "%64, %65, p, 1, 1, 0, %67;\n}"                                                           \
        : PTX_F8(d, 0), PTX_F8(d, 8), PTX_F8(d, 16), PTX_F8(d, 24), PTX_F8(d, 32), PTX_F8(d, 40), \
          PTX_F8(d, 48), PTX_F8(d, 56)                                                            \
        : "l"(a), "l"(b), "r"(keep), "n"(N_MAJOR))
template <int N_MAJOR>
__device__ __forceinline__ void ptx_wgmma_bf16(float (&d)[64], unsigned long long a,
                                               unsigned long long b, int keep) {
    PTX_WGMMA("bf16");
}
template <int N_MAJOR>
__device__ __forceinline__ void ptx_wgmma_f16(float (&d)[64], unsigned long long a,
                                              unsigned long long b, int keep) {
    PTX_WGMMA("f16");
}

#endif
