// y[t] = table[ids[t]], and dtable[v] += Σ_{t: ids[t] = v} dy[t].
//
// | operand | shape  | dtype               | layout                          |
// |---------|--------|---------------------|---------------------------------|
// | ids     | [T]    | i32                 | any stride                      |
// | table   | [V, D] | f32, bf16, f16, f64 | rows contiguous, any row stride |
// | y, dy   | [T, D] | as table            | rows contiguous, any row stride |
// | dtable  | [V, D] | f32                 | rows contiguous, any row stride |
//
// Mapping: one block per token. Backward, the block of an id's first token adds all its tokens; the
// others find an earlier one and stop. No sort, no atomics: T²/2 ids are read from L2, which is
// small beside the gradients until T reaches tens of thousands.
// Traffic: 2·T·D elements; T·D elements and 2·D f32 a distinct id.
// Numerics: copies keep their bits. Sums in f64 in the order of t, rounded once: the bits of the
// CPU. Ids outside the table are zeros forward and skipped backward (host memory is checked
// before).
#include "common.cuh"
#include "embedding.h"

template <class T> __device__ __forceinline__ void embedding(const EmbeddingParams<T>& p) {
    const i64 t = blockIdx.x, id = p.ids.get(t);
    const bool real = id >= 0 && id < p.vocab;
    for (i64 j = threadIdx.x; j < p.columns; j += THREADS)
        p.y[t * p.y_stride + j] = real ? p.table[id * p.table_stride + j] : from_f32<T>(0.0f);
}

template <class T> __device__ __forceinline__ void embedding_bwd(const EmbeddingParams<T>& p) {
    const i64 t = blockIdx.x, id = p.ids.get(t);
    if (id < 0 || id >= p.vocab) return;
    bool earlier = false;
    for (i64 i = threadIdx.x; i < t; i += THREADS) earlier |= p.ids.get(i) == id;
    if (__syncthreads_or(earlier)) return;
    for (i64 j = threadIdx.x; j < p.columns; j += THREADS) {
        float* out = p.dtable + id * p.dtable_stride + j;
        double sum = *out;
        for (i64 i = t; i < p.tokens; ++i)
            if (p.ids.get(i) == id) sum += to_f64(p.dy[i * p.dy_stride + j]);
        *out = (float)sum;
    }
}

KERNEL(embedding_f32, (THREADS), EmbeddingParams<float>) { embedding(p); }
KERNEL(embedding_bwd_f32, (THREADS), EmbeddingParams<float>) { embedding_bwd(p); }
KERNEL(embedding_bf16, (THREADS), EmbeddingParams<bf16>) { embedding(p); }
KERNEL(embedding_bwd_bf16, (THREADS), EmbeddingParams<bf16>) { embedding_bwd(p); }
KERNEL(embedding_f16, (THREADS), EmbeddingParams<f16>) { embedding(p); }
KERNEL(embedding_bwd_f16, (THREADS), EmbeddingParams<f16>) { embedding_bwd(p); }
KERNEL(embedding_f64, (THREADS), EmbeddingParams<double>) { embedding(p); }
KERNEL(embedding_bwd_f64, (THREADS), EmbeddingParams<double>) { embedding_bwd(p); }
