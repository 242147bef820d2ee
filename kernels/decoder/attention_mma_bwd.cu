// Gradients of attention on tensor cores: attention_bwd.cu for bf16 and f16 where D is a multiple
// of 16 up to 128. With p the probabilities, dp = dout·v and δ = Σ_j p·dp, ds = scale·p·(dp - δ),
// dq = Σ_j ds·k, dk = Σ_i ds·q, dv = Σ_i p·dout (arXiv:2205.14135, appendix B.4).
//
// | operand          | shape       | dtype           | layout                    |
// |------------------|-------------|-----------------|---------------------------|
// | q, dout, dq      | [Tq, Hq, D] | bf16, f16       | last dimension contiguous |
// | k, v, dk, dv     | [S, Hkv, D] | as q            | last dimension contiguous |
// | cu_seqlens, kv_start, kv_len | [B+1], [B], [B] | i64 | any stride        |
// | prefix_start, prefix_len | [B] | i64 | any stride; or none               |
// | stats            | [Tq, Hq]    | m, 1/l, δ       | scratch                   |
//
// Mapping: two launches. dq: one block per tile of 64 (query, head) rows, two sweeps over blocks of
// 32 keys, the first for m, l and δ, the second for dq. dk, dv: a block 64 rows of k, and for every
// sequence that has keys among them, in order, first those of its prefix and then its own: the
// heads of the group in order, for each its queries in blocks of 32. A warp has 16 rows; the next
// block arrives by cp.async while this one is multiplied; one barrier a block.
// Traffic: dq reads k and v twice per tile; dk, dv read q and dout of the group once per tile. 18·D
// flops and three exponentials per visible (query, head, key); no atomics on results. Counted by
// the emulator, bf16, 512 tokens of 4 heads over 1: at D = 128 174,080 mma for dq at 12.1
// instructions each and 135,168 for dk, dv at 19.9; at D = 64 87,040 at 16.1 and 69,632 at 16.6.
// A prompt of 128 tokens with 8 samples of 16: 0.30 of the products of whole sequences for dq,
// 0.40 for dk and dv.
// Passes over the banks are the fewest there are, up to 1.07 times that at D = 96.
// Numerics: p, ds in f32, rounded to T for the last products; sums of a block formed first and
// added with one fma; l and Σ p·dp in f64. In f16 a row of ds is multiplied by a power of two that
// brings its largest to 2^14. The order of a sum depends on the row's own sequence only, and on
// those that share its key. With u, u_T and ε as in attention_mma.cu and N terms, a gradient is
// within (4·ε + u_T + (5·D/4 + 160 + N/32)·u) times the sum of its terms' absolute values, and u_T
// of itself, of exact. An infinite operand or a NaN reaches the gradients of its sequence that
// share a tile with it.
#include "attention_mma_bwd.cuh"

// ---- dq ---------------------------------------------------------------------------------------

// A row of queries: what the first sweep finds.
struct QueryRow : Row {
    double product = 0.0;  // Σ weight·dp of this thread's keys
    RowStats stats = {0.0f, 0.0f, 0.0f, 0.0f};
};

template <class T>
__device__ __forceinline__ void gather(QueryRow& row, float (&s)[BLOCK / 8][4],
                                       const float (&dp)[BLOCK / 8][4], int h, float scale) {
    weigh<T>(row, s, h, scale);
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < BLOCK / 8; ++n)
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e)
            if (n * 8 + pair_of() + e % 2 < row.seen) sum = fma(s[n][e], dp[n][e], sum);
    row.product = fma(row.product, (double)row.factor, (double)sum);
}

template <class T> __device__ __forceinline__ void finish(QueryRow& row) {
    const double inverse = inverse_of(quad_reduce(row.total, Sum()));
    row.stats = {row.shifted<T>(), (float)inverse,
                 (float)(quad_reduce(row.product, Sum()) * inverse), 0.0f};
}

// Keeps what the second launch needs to know of a row.
template <class T>
__device__ __forceinline__ void store_stats(const AttentionBwdParams<T>& p, const QueryTile& tile,
                                            const QueryRow& row, i64 g, int h) {
    const int r = row_of(h);
    if (r < tile.rows && pair_of() == 0)
        ((RowStats*)p.stats)[tile.token_of(r) * p.heads + g * p.group + tile.head_of(r)] =
            row.stats;
}

template <class T, int D>
__device__ __forceinline__ void attention_mma_dq(const AttentionBwdParams<T>& p) {
    __shared__ __align__(16) Tile<T, D> k, v;  // two blocks each
    __shared__ QueryTile tile;
    if (threadIdx.x == 0) tile = query_tile(p.sequences, p.group, gridDim.x - 1 - blockIdx.x);
    __syncthreads();
    if (tile.rows == 0) return;
    const i64 g = blockIdx.y;
    const int d = (int)p.d, extent = tile.extent(), blocks = (extent + BLOCK - 1) / BLOCK;
    const bool aligned =
        rows_aligned(p.q) && rows_aligned(p.k) && rows_aligned(p.v) && rows_aligned(p.dout);
    auto fetch = [&](int i) {
        const int j0 = i % blocks * BLOCK, to = i % 2 * BLOCK;
        k.template fetch<BLOCK>(
            to,
            [&](int r) {
                return j0 + r < extent ? p.k.of(tile.keys.row_unpaged(j0 + r), g) : nullptr;
            },
            d, aligned, p.q.at);
        v.template fetch<BLOCK>(
            to,
            [&](int r) {
                return j0 + r < extent ? p.v.of(tile.keys.row_unpaged(j0 + r), g) : nullptr;
            },
            d, aligned, p.q.at);
    };

    k.template fetch<TILE>(0, [&](int r) { return tile.row(p.q, g, r); }, d, aligned, p.q.at);
    v.template fetch<TILE>(0, [&](int r) { return tile.row(p.dout, g, r); }, d, aligned, p.q.at);
    ptx_copy_wait();
    __syncthreads();
    u32 q[D / STEP][4], dout[D / STEP][4];
#pragma unroll
    for (int c = 0; c < D / STEP; ++c) {
        k.left(q[c], threadIdx.x / WARP * ROWS_OF_WARP, c * STEP);
        v.left(dout[c], threadIdx.x / WARP * ROWS_OF_WARP, c * STEP);
    }
    __syncthreads();
    if (blocks > 0) fetch(0);

    QueryRow row[2];
    row[0].visible = tile.visible(row_of(0)), row[1].visible = tile.visible(row_of(1));
    float dq[D / 8][4] = {};
    const float scale = (float)p.scale, scale2 = (float)p.scale2;
    for (int i = 0; i < 2 * blocks; ++i) {
        ptx_copy_wait();
        __syncthreads();
        if (i + 1 < 2 * blocks) fetch(i + 1);
        if (i == blocks) finish<T>(row[0]), finish<T>(row[1]);
        row[0].see(i % blocks * BLOCK, BLOCK), row[1].see(i % blocks * BLOCK, BLOCK);
        if (!__any_sync(ALL_LANES, row[0].seen > 0 || row[1].seen > 0)) continue;
        float s[BLOCK / 8][4], dp[BLOCK / 8][4];
        multiply(s, q, k, i % 2 * BLOCK);
        multiply(dp, dout, v, i % 2 * BLOCK);
        if (i < blocks) {
            gather<T>(row[0], s, dp, 0, scale2);
            gather<T>(row[1], s, dp, 1, scale2);
            continue;
        }
#pragma unroll
        for (int n = 0; n < BLOCK / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                differentiate(s[n][e], dp[n][e], row[e / 2].stats, scale, scale2);
                if (n * 8 + pair_of() + e % 2 >= row[e / 2].seen) dp[n][e] = 0.0f;
            }
        const float factor[2] = {fit<T>(dp, 0), fit<T>(dp, 1)};
        const bool takes[2] = {row[0].seen > 0, row[1].seen > 0};
        u32 ds[BLOCK / STEP][4];
        pack<T>(ds, dp);
        add_product(dq, ds, k, i % 2 * BLOCK, factor, takes);
    }
    ptx_copy_wait();
    __syncthreads();

#pragma unroll
    for (int h = 0; h < 2; ++h) store_stats(p, tile, row[h], g, h);
    store_rows(
        dq, 1.0f, 1.0f, k, [&](int r) { return tile.row(p.dq, g, r); }, d, rows_aligned(p.dq));
}

// ---- dk, dv -----------------------------------------------------------------------------------

// The rows from..to of a tile that hold keys of one sequence, and that sequence.
struct Segment {
    u32 number;  // twice the sequence's, 1 more for its keys behind the prefix; NOBODY: the end
    int from, to;
    int queries;
    i64 token;                // of its first query
    int first_key;            // that row 0 of the tile would be, less the keys that all queries see
    int first_block, blocks;  // of queries that see a key of the segment; blocks of one head
};

template <class T, int D> struct KeyTile {
    Tile<T, D> k, v, q, dout;  // of q and dout two blocks
    RowStats stats[2 * BLOCK];
    Segment segment;
};
static constexpr u32 NOBODY = ~0u;

static_assert(sizeof(KeyTile<bf16, 64>) == 4 * sizeof(Tile<bf16, 64>) + KEY_TILE_TABLES,
              "the launch asks for this much");

// The rows of the tile from `row0` on that hold keys of a sequence: those of its prefix, or those
// behind it. No rows: from >= to.
__device__ __forceinline__ Segment rows_in_tile(const Sequences& s, i64 row0, u32 number) {
    const i64 b = number / 2, behind = number % 2;
    Segment segment = {};
    if (b >= s.count) return segment;
    const i64 shared = s.prefix_len.get(b), len = s.kv_len.get(b),
              start = behind ? s.kv_start.get(b) : s.prefix_start.get(b);
    const i64 end = row0 + TILE < s.rows ? row0 + TILE : s.rows;
    if (shared < 0 || shared > s.rows || len <= 0 || start < 0 || start >= end) return segment;
    const i64 count = behind ? len - shared : len < shared ? len : shared;
    segment.number = number;
    segment.from = start > row0 ? (int)(start - row0) : 0;
    segment.to = count > end - start ? (int)(end - row0) : (int)(start + count - row0);
    return segment;
}

// The queries that see keys of the segment.
__device__ __forceinline__ void find_queries(Segment& segment, const Sequences& s, i64 row0) {
    const i64 b = segment.number / 2, behind = segment.number % 2;
    const Span all = span(s.cu_seqlens, b, s.tokens);
    const i64 hidden = s.kv_len.get(b) - (all.end - all.begin),
              start = behind ? s.kv_start.get(b) - s.prefix_len.get(b) : s.prefix_start.get(b),
              first = row0 - start - hidden;
    segment.token = all.begin, segment.queries = (int)(all.end - all.begin);
    segment.first_key = first < -LIMIT ? (int)-LIMIT : first > LIMIT ? (int)LIMIT : (int)first;
    const int lowest = segment.first_key + segment.from;
    segment.first_block = (lowest > 0 ? lowest : 0) / BLOCK;
    const int blocks = (segment.queries + BLOCK - 1) / BLOCK;
    segment.blocks = blocks > segment.first_block ? blocks - segment.first_block : 0;
}

// The next segment of the tile in the place of `segment`. Called by a whole warp.
__device__ __forceinline__ void next_segment(Segment& segment, const Sequences& s, i64 row0) {
    u32 from = segment.number + 1;
    __syncwarp();
    for (; from < 2 * (u32)s.count; from += WARP) {
        Segment mine = rows_in_tile(s, row0, from + threadIdx.x % WARP);
        const u32 found = __ballot_sync(ALL_LANES, mine.from < mine.to);
        if (!found) continue;
        if ((int)(threadIdx.x % WARP) == __ffs(found) - 1) {
            find_queries(mine, s, row0);
            segment = mine;
        }
        return;
    }
    if (threadIdx.x % WARP == 0) segment.number = NOBODY;
}

// N queries of a block from `query` on: p, times the unit of weights, and ds for a warp's rows,
// added to dv and dk. `at`: where the queries lie in the tiles and the tables.
template <int N, class T, int D>
__device__ __forceinline__ void add_queries(float (&dk)[D / 8][4], float (&dv)[D / 8][4],
                                            const KeyTile<T, D>& tile, const Segment& segment,
                                            int query, int at, float scale, float scale2) {
    // The first of the queries that sees a thread's row.
    int since[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int r = row_of(h), first = segment.first_key + r - query;
        since[h] = r < segment.from || r >= segment.to ? N : first < 0 ? 0 : first;
    }
    const int count = segment.queries - query < N ? segment.queries - query : N;
    const bool takes[2] = {since[0] < count, since[1] < count};
    if (!__any_sync(ALL_LANES, takes[0] || takes[1])) return;
    float s[N / 8][4], dp[N / 8][4];
    multiply_rows(s, tile.k, tile.q, at);
    multiply_rows(dp, tile.v, tile.dout, at);
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int column = n * 8 + pair_of() + e % 2;
            const bool sees = column >= since[e / 2] && column < count;
            const float probability =
                differentiate(s[n][e], dp[n][e], tile.stats[at + column], scale, scale2);
            s[n][e] = sees ? probability * Half<T>::UNIT : 0.0f;
            if (!sees) dp[n][e] = 0.0f;
        }
    u32 weight[N / STEP][4], ds[N / STEP][4];
    const float one[2] = {1.0f, 1.0f}, factor[2] = {fit<T>(dp, 0), fit<T>(dp, 1)};
    pack<T>(weight, s);
    pack<T>(ds, dp);
    add_product(dv, weight, tile.dout, at, one, takes);
    add_product(dk, ds, tile.q, at, factor, takes);
}

// The queries of the tile's segment, added to dk and dv.
template <class T, int D>
__device__ __forceinline__ void add_segment(const AttentionBwdParams<T>& p, KeyTile<T, D>& tile,
                                            float (&dk)[D / 8][4], float (&dv)[D / 8][4], i64 g,
                                            int d, bool aligned) {
    constexpr int PART = D > 96 ? 16 : BLOCK;  // queries at a time that registers hold
    const Segment& segment = tile.segment;
    const int count = segment.blocks * (int)p.group;
    auto fetch = [&](int i) {
        const int query = (segment.first_block + i % segment.blocks) * BLOCK, half = i % 2;
        const i64 h = g * p.group + i / segment.blocks, t = segment.token + query;
        tile.q.template fetch<BLOCK>(
            half * BLOCK,
            [&](int r) { return query + r < segment.queries ? p.q.of(t + r, h) : nullptr; }, d,
            aligned, p.k.at);
        tile.dout.template fetch<BLOCK>(
            half * BLOCK,
            [&](int r) { return query + r < segment.queries ? p.dout.of(t + r, h) : nullptr; }, d,
            aligned, p.k.at);
        if (threadIdx.x < BLOCK)
            tile.stats[half * BLOCK + threadIdx.x] =
                query + (int)threadIdx.x < segment.queries
                    ? ((const RowStats*)p.stats)[(t + threadIdx.x) * p.heads + h]
                    : RowStats{0.0f, 0.0f, 0.0f, 0.0f};
    };
    if (count > 0) fetch(0);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
        ptx_copy_wait();
        __syncthreads();
        if (i + 1 < count) fetch(i + 1);
        const int query = (segment.first_block + i % segment.blocks) * BLOCK;
#pragma unroll 1
        for (int part = 0; part < BLOCK; part += PART)
            add_queries<PART>(dk, dv, tile, segment, query + part, i % 2 * BLOCK + part,
                              (float)p.scale, (float)p.scale2);
    }
}

template <class T, int D>
__device__ __forceinline__ void attention_mma_dkv(const AttentionBwdParams<T>& p) {
    extern __shared__ __align__(16) unsigned char memory[];
    KeyTile<T, D>& tile = *(KeyTile<T, D>*)memory;
    const Sequences& s = p.sequences;
    const i64 row0 = (i64)blockIdx.x * TILE, g = blockIdx.y, left = s.rows - row0;
    const int d = (int)p.d, rows = left < TILE ? (int)left : TILE;
    const bool aligned =
        rows_aligned(p.q) && rows_aligned(p.k) && rows_aligned(p.v) && rows_aligned(p.dout);
    tile.k.template fetch<TILE>(
        0, [&](int r) { return r < rows ? p.k.of(row0 + r, g) : nullptr; }, d, aligned, p.k.at);
    tile.v.template fetch<TILE>(
        0, [&](int r) { return r < rows ? p.v.of(row0 + r, g) : nullptr; }, d, aligned, p.k.at);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    if (threadIdx.x == 0) tile.segment.number = NOBODY;
#pragma unroll 1
    for (;;) {
        __syncthreads();
        if (threadIdx.x < WARP) next_segment(tile.segment, s, row0);
        __syncthreads();
        if (tile.segment.number == NOBODY) break;
        add_segment<T, D>(p, tile, dk, dv, g, d, aligned);
    }
    ptx_copy_wait();
    __syncthreads();
    store_rows(
        dk, 1.0f, 1.0f, tile.k, [&](int r) { return r < rows ? p.dk.of(row0 + r, g) : nullptr; }, d,
        rows_aligned(p.dk));
    store_rows(
        dv, 1.0f / Half<T>::UNIT, 1.0f / Half<T>::UNIT, tile.v,
        [&](int r) { return r < rows ? p.dv.of(row0 + r, g) : nullptr; }, d, rows_aligned(p.dv));
}

KERNEL(attention_mma_dq_bf16_d64, (THREADS, 2), AttentionBwdParams<bf16>) {
    attention_mma_dq<bf16, 64>(p);
}
KERNEL(attention_mma_dkv_bf16_d64, (THREADS, 2), AttentionBwdParams<bf16>) {
    attention_mma_dkv<bf16, 64>(p);
}
KERNEL(attention_mma_dq_bf16_d96, (THREADS, 2), AttentionBwdParams<bf16>) {
    attention_mma_dq<bf16, 96>(p);
}
KERNEL(attention_mma_dkv_bf16_d96, (THREADS, 2), AttentionBwdParams<bf16>) {
    attention_mma_dkv<bf16, 96>(p);
}
KERNEL(attention_mma_dq_bf16_d128, (THREADS, 2), AttentionBwdParams<bf16>) {
    attention_mma_dq<bf16, 128>(p);
}
KERNEL(attention_mma_dkv_bf16_d128, (THREADS, 2), AttentionBwdParams<bf16>) {
    attention_mma_dkv<bf16, 128>(p);
}
KERNEL(attention_mma_dq_f16_d64, (THREADS, 2), AttentionBwdParams<f16>) {
    attention_mma_dq<f16, 64>(p);
}
KERNEL(attention_mma_dkv_f16_d64, (THREADS, 2), AttentionBwdParams<f16>) {
    attention_mma_dkv<f16, 64>(p);
}
KERNEL(attention_mma_dq_f16_d96, (THREADS, 2), AttentionBwdParams<f16>) {
    attention_mma_dq<f16, 96>(p);
}
KERNEL(attention_mma_dkv_f16_d96, (THREADS, 2), AttentionBwdParams<f16>) {
    attention_mma_dkv<f16, 96>(p);
}
KERNEL(attention_mma_dq_f16_d128, (THREADS, 2), AttentionBwdParams<f16>) {
    attention_mma_dq<f16, 128>(p);
}
KERNEL(attention_mma_dkv_f16_d128, (THREADS, 2), AttentionBwdParams<f16>) {
    attention_mma_dkv<f16, 128>(p);
}
