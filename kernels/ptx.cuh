// The only file with `asm`: what CUDA C++ has no words for, one instruction a function.
#pragma once

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

__device__ __forceinline__ void ptx_mma_bf16(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void ptx_mma_f16(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
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
__device__ __forceinline__ void ptx_load_matrices_transposed(unsigned int (&d)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"((unsigned int)__cvta_generic_to_shared(row))
                 : "memory");
}

// ---- copies to shared memory that run beside the arithmetic ------------------------------------

// 16 bytes, or as many zeros if `there` is 0; both addresses are multiples of 16.
__device__ __forceinline__ void ptx_copy16(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned int)__cvta_generic_to_shared(to)), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

// Waits for this thread's copies.
__device__ __forceinline__ void ptx_copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

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

// 16 bytes that are not read again soon.
__device__ __forceinline__ void ptx_store_stream(void* p, uint4 v) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

// 16 bytes in one instruction, where the compiler makes several of a vector's store.
__device__ __forceinline__ void ptx_store_few(float* p, const float* v) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
}
__device__ __forceinline__ void ptx_store_few(double* p, const double* v) {
    asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(p), "d"(v[0]), "d"(v[1]) : "memory");
}

// ---- clusters: blocks that read each other's shared memory; sm_90 has them, before it a cluster is one block ----

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
