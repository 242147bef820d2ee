// o[i, h] = Σ_j softmax_j(scale·q[i, h]·k[j, g])·v[j, g] over the keys that query i sees, g =
// h/(Hq/Hkv), on tensor cores (arXiv:2205.14135, arXiv:2307.08691): attention.cu for bf16 and f16
// where D is a multiple of 16 up to 128.
//
// | operand   | shape        | dtype     | layout                                       |
// |-----------|--------------|-----------|----------------------------------------------|
// | q, o      | [Tq, Hq, D]  | bf16, f16 | last dimension contiguous                    |
// | k, v      | [S, Hkv, D]  | as q      | last dimension contiguous                    |
// | cu_seqlens, kv_start, kv_len | [B+1], [B], [B] | i64 | any stride                 |
// | prefix_start, prefix_len | [B] | i64 | any stride; or none                        |
// | pages     | [B, P]       | i32       | rows contiguous; or kv_start                 |
// | lse       | [Tq, Hq]     | f32       | rows contiguous                              |
//
// Mapping: one block per tile of 64 (query, head) rows and a key/value head, a warp 16 rows; one
// sweep over blocks of 64 keys. Keys arrive by cp.async while values of the last block are summed,
// values while scores are formed: two barriers per block. The last tiles, which see the most keys,
// start first. Rows that do not begin at 16 bytes are copied by elements.
// Traffic: q, o once; k, v once per tile. Counted by the emulator, bf16: 512 tokens of 4 heads over
// 1 at D = 128 take 73,728 mma (131,072 without causality) at 13.1 instructions each, cold bytes
// 1.01 of the least; at D = 64 36,864 at 17.2. Four decoding queries of 8 heads over 2 with 1,024
// keys each: 16,384 mma, cold bytes 1.00 of the least. Passes over the banks are the fewest there
// are, 1.09 times that at D = 80 and 96, where 12 chunks of a row do not fill two phases of 8
// lanes.
// Numerics: products and sums in f32, the normalizer in f64, a block's sum of values formed first
// and added with one fma; the reference is a whole power of two (attention.cuh). Weights are
// rounded to T for the product with v. With u = 2^-24, u_T = 2^-8 (bf16) or 2^-11 (f16), n visible
// keys and ε = (5·D/4 + 5)·u·|scale|·max_j Σ|q_d·k_jd|, an output is within
// (2·ε + u_T + (120 + n/64)·u)·Σ p_j·|v_j| + u_T·|o| + n·2^-54·max|v| of exact (NUMERICS.md).
#include "attention_mma.cuh"

// Halves of a right side whose rows, from `row` on, are not below `limit`: zeros.
__device__ __forceinline__ void hide(u32 (&b)[4], int row, int limit) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int first = row + pair_of() + i % 2 * 8;
        b[i] = first >= limit ? 0 : first + 1 >= limit ? b[i] & 0xffffu : b[i];
    }
}

// o = factor·o + Σ weight·v for the rows of which `takes` is true. HIDE: values from `limit` on are
// not read as numbers. That is rare, so the common loop has no test between its loads and products.
template <bool HIDE, class T, int D>
__device__ __forceinline__ void add_values(float (&o)[D / 8][4],
                                           const u32 (&weight)[TILE / STEP][4], const Tile<T, D>& v,
                                           const Row (&row)[2], const bool (&takes)[2], int limit) {
#pragma unroll
    for (int c = 0; c < D / 16; ++c) {
        float sum[2][4] = {};
#pragma unroll
        for (int k = 0; k < TILE / STEP; ++k) {
            u32 b[4];
            v.right_down(b, k * STEP, c * 16);
            if (HIDE) hide(b, k * STEP, limit);
            Half<T>::mma(sum[0], weight[k], b);
            Half<T>::mma(sum[1], weight[k], b + 2);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (takes[e / 2])
                    o[2 * c + i][e] = fma(row[e / 2].factor, o[2 * c + i][e], sum[i][e]);
    }
}

// The block's part of o. A hidden value is multiplied by a weight of 0, which an infinite one or a
// NaN survives: where there are such values among hidden ones (`odd`), rows that see equally many
// keys take turns.
template <class T, int D>
__device__ __forceinline__ void combine_block(float (&o)[D / 8][4], const float (&s)[TILE / 8][4],
                                              const Tile<T, D>& v, const Row (&row)[2], bool odd) {
    u32 weight[TILE / STEP][4];
    pack<T>(weight, s);
    if (!odd) {
        const bool takes[2] = {row[0].seen > 0, row[1].seen > 0};
        add_values<false>(o, weight, v, row, takes, TILE);
        return;
    }
    int before = 0;
#pragma unroll 1
    for (int turn = 0; turn < ROWS_OF_WARP; ++turn) {
        const int low = __shfl_sync(ALL_LANES, row[0].seen, turn % 8 * 4),
                  high = __shfl_sync(ALL_LANES, row[1].seen, turn % 8 * 4);
        const int limit = turn < 8 ? low : high;
        if (limit == before) continue;
        const bool takes[2] = {row[0].seen > 0 && row[0].seen == limit,
                               row[1].seen > 0 && row[1].seen == limit};
        add_values<true>(o, weight, v, row, takes, limit);
        before = limit;
    }
}

// 1/l of row `h`, and its log-normalizer where it is wanted.
template <class T>
__device__ __forceinline__ float finish_row(const AttentionParams<T>& p, const QueryTile& tile,
                                            const Row& row, i64 g, int h) {
    const double ln2 = 0.693147180559945309417;
    const double total = quad_reduce(row.total, Sum());
    const float inverse = (float)inverse_of(total);
    const int r = row_of(h);
    if (p.lse && r < tile.rows && pair_of() == 0)
        p.lse[tile.token_of(r) * p.lse_stride + g * p.group + tile.head_of(r)] =
            (float)(((double)row.reference.m - Half<T>::SHIFT + log2f((float)total)) * ln2);
    return inverse;
}

template <class T, int D>
__device__ __forceinline__ void attention_mma(const AttentionParams<T>& p) {
    __shared__ __align__(16) Tile<T, D> k, v;
    __shared__ int rows[2][TILE];  // of the keys of this block and of the next, -1 for none
    __shared__ QueryTile tile;     // not in registers: it is needed at the beginning and at the end
    if (threadIdx.x == 0) tile = query_tile(p.sequences, p.group, gridDim.x - 1 - blockIdx.x);
    __syncthreads();
    if (tile.rows == 0) return;
    const i64 g = blockIdx.y;
    const int d = (int)p.d, extent = tile.extent();
    const int first = tile.visible(0), last = tile.visible(tile.rows - 1),
              least = first < last ? first : last;
    const bool aligned = rows_aligned(p.q) && rows_aligned(p.k) && rows_aligned(p.v);
    auto find = [&](int j0) {
        const int j = j0 + threadIdx.x;
        if (threadIdx.x < TILE)
            rows[j0 / TILE % 2][threadIdx.x] = j < extent ? (int)tile.keys.row(j) : -1;
    };
    auto fetch = [&](Tile<T, D>& to, const Heads<const T>& x, int j0) {
        const int* at = rows[j0 / TILE % 2];
        to.template fetch<TILE>(
            0, [&](int i) { return at[i] < 0 ? nullptr : x.of(at[i], g); }, d, aligned, p.q.at);
    };

    k.template fetch<TILE>(0, [&](int i) { return tile.row(p.q, g, i); }, d, aligned, p.q.at);
    find(0);
    ptx_copy_wait();
    __syncthreads();
    u32 q[D / STEP][4];
#pragma unroll
    for (int c = 0; c < D / STEP; ++c) k.left(q[c], threadIdx.x / WARP * ROWS_OF_WARP, c * STEP);
    __syncthreads();
    fetch(k, p.k, 0);

    Row row[2];
    row[0].visible = tile.visible(row_of(0)), row[1].visible = tile.visible(row_of(1));
    float o[D / 8][4] = {};
    for (int j0 = 0; j0 < extent; j0 += TILE) {
        ptx_copy_wait();
        __syncthreads();
        fetch(v, p.v, j0);
        find(j0 + TILE);
        row[0].see(j0, TILE), row[1].see(j0, TILE);
        const bool busy = __any_sync(ALL_LANES, row[0].seen > 0 || row[1].seen > 0);
        float s[TILE / 8][4];
        if (busy) {
            multiply(s, q, k, 0);
            weigh<T>(row[0], s, 0, (float)p.scale);
            weigh<T>(row[1], s, 1, (float)p.scale);
        }
        ptx_copy_wait();
        // Hidden keys among visible ones: are there values that a weight of 0 does not hide?
        const bool odd = __syncthreads_or(least < extent && j0 + TILE > least && v.odd());
        if (j0 + TILE < extent) fetch(k, p.k, j0 + TILE);
        if (busy) combine_block(o, s, v, row, odd);
    }
    ptx_copy_wait();
    __syncthreads();

    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) inverse[h] = finish_row(p, tile, row[h], g, h);
    store_rows(
        o, inverse[0], inverse[1], k, [&](int r) { return tile.row(p.o, g, r); }, d,
        rows_aligned(p.o));
}

KERNEL(attention_mma_bf16_d64, (THREADS, 3), AttentionParams<bf16>) { attention_mma<bf16, 64>(p); }
KERNEL(attention_mma_bf16_d96, (THREADS, 2), AttentionParams<bf16>) { attention_mma<bf16, 96>(p); }
KERNEL(attention_mma_bf16_d128, (THREADS, 2), AttentionParams<bf16>) {
    attention_mma<bf16, 128>(p);
}
KERNEL(attention_mma_f16_d64, (THREADS, 3), AttentionParams<f16>) { attention_mma<f16, 64>(p); }
KERNEL(attention_mma_f16_d96, (THREADS, 2), AttentionParams<f16>) { attention_mma<f16, 96>(p); }
KERNEL(attention_mma_f16_d128, (THREADS, 2), AttentionParams<f16>) { attention_mma<f16, 128>(p); }
