// Operands of tile products on their way to shared memory, 64 steps at a time.
//
// A stage of X is [rows][64 steps], 128 bytes per row. A stage of W is [128 columns][64 steps] if
// its rows are read along the depth (Y = X·Wᵀ), and [64 steps][128 columns] if they are read across
// it (dX = dY·W). Pieces of 16 bytes are permuted so that no reader and no writer meets another in
// a bank; wgmma also wants the pieces u and 4+u of a row, which it multiplies together, side by
// operand.
#pragma once

#include "mma_gemm_nf4.cuh"

#if __CUDA_ARCH__ >= 900
static constexpr int STAGES = STAGES_SM90A;
static constexpr int PRODUCERS = PRODUCERS_SM90A;  // threads: a warpgroup of their own
static constexpr int PREFETCH_DISTANCE =
    PREFETCH_DISTANCE_SM90A;  // stages that are copied while another is expanded

__device__ __forceinline__ int place_of(int piece) { return piece < 4 ? 2 * piece : 2 * piece - 7; }
__device__ __forceinline__ int k_major_offset(int row, int piece) {
    return row * 128 + (place_of(piece) ^ row % 8) * 16;
}
// Two atoms of 64 columns; steps are permuted as the pieces of X are.
__device__ __forceinline__ int n_major_offset(int step, int piece) {
    const int row = place_of(step / 8) * 8 + step % 8;
    return piece / 8 * 8192 + row * 128 + (piece % 8 ^ row % 8) * 16;
}
#else
static constexpr int STAGES = STAGES_SM80;
static constexpr int PRODUCERS = PRODUCERS_SM80;  // all threads, which are the consumers, too
static constexpr int PREFETCH_DISTANCE = PREFETCH_DISTANCE_SM80;

__device__ __forceinline__ int k_major_offset(int row, int piece) {
    return row * 128 + (piece ^ row % 8) * 16;
}
// A row is 256 bytes, so the key of its permutation takes another bit of the step.
__device__ __forceinline__ int n_major_offset(int step, int piece) {
    return step * 256 + (piece ^ (step ^ step / 16) % 8) * 16;
}
#endif

// Rows row0.. of X, ROWS of them, and zeros beyond its end.
template <class T, int ROWS> struct Input {
    static constexpr int APART = PRODUCERS / 8;  // rows from one of a producer's pieces to the next
    const T* x;
    i64 stride, rows, depth;
    bool pieces;  // of 16 bytes can be copied

    __device__ __forceinline__ Input(const T* x, i64 stride, i64 row0, i64 rows, i64 depth)
        : x(x + row0 * stride),
          stride(stride),
          rows(rows - row0),
          depth(depth),
          pieces(in_pieces(x, stride, 16)) {}

    __device__ __forceinline__ void copy(char* stage, int thread, i64 k) const {
        const int piece = thread % 8, row = thread / 8;
        const T* from = x + row * stride + k + 8 * piece;
        const u32 to = shared_address(stage) + k_major_offset(row, piece);
        if (pieces && rows >= ROWS && k + STEPS <= depth) {
            // Rows that lie a multiple of 8 apart have one permutation.
#pragma unroll
            for (int i = 0; i < ROWS / APART; ++i, from += APART * stride)
                ptx_copy16_whole(to + i * APART * 128, from);
            return;
        }
        const i64 left = depth - k - 8 * piece, count = left < 0 ? 0 : left < 8 ? left : 8;
#pragma unroll 1
        for (int i = 0; i < ROWS / APART; ++i, from += APART * stride) {
            const i64 there = row + i * APART < rows ? count : 0;
            if (pieces) ptx_copy16_partly(to + i * APART * 128, there ? from : x, (int)there * 2);
            else copy_elements(stage + k_major_offset(row + i * APART, piece), from, there);
        }
    }
    // `count` elements and zeros up to 8.
    static __device__ __forceinline__ void copy_elements(char* to, const T* from, i64 count) {
#pragma unroll 1
        for (int e = 0; e < 8; ++e) ((T*)to)[e] = e < count ? from[e] : T{};
    }
};

// ---- weights ----------------------------------------------------------------------------------
//
// A loader of W has `copy`, which starts what can run beside the arithmetic, or `skip` when there
// is nothing more to start, and `expand`, which finishes the stage PREFETCH_DISTANCE calls later,
// when the copies are done; there is nothing to finish unless it EXPANDS. All are called by all
// producers.

// Pieces of 16 bytes, straight into the stage.
template <class T, bool N_MAJOR> struct DenseLoader {
    static constexpr bool EXPANDS = false;
    static constexpr int PIECES = N_MAJOR ? 16 : 8, APART = PRODUCERS / PIECES;
    const T* w;
    i64 stride, columns, depth;

    __device__ __forceinline__ DenseLoader(const GemmParams<T, Strided<T>>& p, i64 column0)
        : stride(N_MAJOR ? p.right.step_stride : p.right.lane_stride),
          columns(p.columns - column0),
          depth(p.depth) {
        w = p.right.at + p.right.place(column0, 0);
    }
    __device__ __forceinline__ void copy(char* stage, char*, int thread, i64 k) {
        const int piece = thread % PIECES, row = thread / PIECES;
        const u32 to = shared_address(stage);
        // The producer's first row of the matrix and its place in it.
        const i64 first = N_MAJOR ? 8 * piece : k + 8 * piece;
        const T* from = w + (N_MAJOR ? k + row : row) * stride + first;
        if (columns >= TILE_COLUMNS && k + STEPS <= depth) {
#pragma unroll
            for (int i = 0; i < 1024 / PRODUCERS; ++i, from += APART * stride)
                ptx_copy16_whole(to + place(row + i * APART, piece), from);
            return;
        }
        const i64 left = (N_MAJOR ? columns : depth) - first, count = left < 0   ? 0
                                                                      : left < 8 ? left
                                                                                 : 8;
#pragma unroll 1
        for (int i = 0; i < 1024 / PRODUCERS; ++i, from += APART * stride) {
            const int at = row + i * APART;
            const i64 there = (N_MAJOR ? k + at < depth : at < columns) ? count : 0;
            ptx_copy16_partly(to + place(at, piece), there ? from : w, (int)there * 2);
        }
    }
    static __device__ __forceinline__ int place(int row, int piece) {
        return N_MAJOR ? n_major_offset(row, piece) : k_major_offset(row, piece);
    }
    __device__ __forceinline__ void skip() {}
    __device__ __forceinline__ void expand(char*, char*, int, i64) {}
};

// Any side of a product, an element at a time.
template <class T, bool N_MAJOR, class Operand> struct GatheredLoader {
    static constexpr bool EXPANDS = true;
    const Operand& operand;
    i64 column0, columns, depth;

    __device__ __forceinline__ void copy(char*, char*, int, i64) {}
    __device__ __forceinline__ void skip() {}
    __device__ __forceinline__ void expand(char* stage, char*, int thread, i64 k) {
#pragma unroll 1
        for (int at = thread; at < 1024 * 8; at += PRODUCERS) {
            const int piece = at / 8 % (N_MAJOR ? 16 : 8), row = at / (N_MAJOR ? 128 : 64),
                      e = at % 8;
            const i64 column = column0 + (N_MAJOR ? 8 * piece + e : row),
                      step = k + (N_MAJOR ? row : 8 * piece + e);
            char* to = stage + (N_MAJOR ? n_major_offset(row, piece) : k_major_offset(row, piece));
            ((T*)to)[e] = column < columns && step < depth
                              ? operand.template get<T>(operand.place(column, step))
                              : T{};
        }
    }
};

// The adapters' factors, each three times over, for the parts of S. What cannot be copied in pieces
// of 16 bytes goes by the threads' registers, at once.
template <class T, bool N_MAJOR> struct LowRankLoader {
    const Adapters& lora;
    i64 column0, columns;  // columns: what is left of them
    int rank, stages;      // of an adapter

    template <class W>
    __device__ __forceinline__ LowRankLoader(const GemmParams<T, W>& p, i64 column0)
        : lora(p.lora), column0(column0), columns(p.columns - column0), rank((int)p.lora.rank) {
        stages = p.lora.count > 0 ? (3 * rank + STEPS - 1) / STEPS : 0;
    }
    // Stage `k` / 64 of adapter `g`.
    __device__ __forceinline__ void copy(char* stage, int thread, i64 g, int k) const {
        constexpr int PIECES = N_MAJOR ? 16 : 8;
        const Strided<T> operand = lora.template operand<T>(g);
        const T* factor = operand.at + operand.place(column0, 0);
        const i64 stride = N_MAJOR ? operand.step_stride : operand.lane_stride;
        const bool whole = (N_MAJOR || rank % 8 == 0) &&
                           (N_MAJOR ? operand.lane_stride : operand.step_stride) == 1 &&
                           in_pieces(factor, stride, 16);
        const int piece = thread % PIECES;
#pragma unroll 1
        for (int i = 0; i < 1024 / PRODUCERS; ++i) {
            const int row = thread / PIECES + i * (PRODUCERS / PIECES);
            const int step = k + (N_MAJOR ? row : 8 * piece), column = N_MAJOR ? 8 * piece : row;
            const i64 left = step >= 3 * rank || column >= columns ? 0
                             : N_MAJOR                             ? columns - column
                                                                   : 3 * rank - step;
            const int count = left < 8 ? (int)left : 8;
            char* to = stage + (N_MAJOR ? n_major_offset(row, piece) : k_major_offset(row, piece));
            const T* from = factor + (count ? operand.place(column, step % rank) : 0);
            if (whole) {
                ptx_copy16_partly(shared_address(to), from, count * 2);
                continue;
            }
#pragma unroll 1
            for (int e = 0; e < 8; ++e)
                ((T*)to)[e] = e < count ? factor[N_MAJOR ? operand.place(column + e, step % rank)
                                                         : operand.place(column, (step + e) % rank)]
                                        : T{};
        }
    }
};

// 4-bit rows of whole blocks of 64, packed without gaps. A stage has 128 units of one row and one
// block, 32 bytes; a producer expands a unit (half of one on sm_80). Its maximum is asked for when
// the unit is, and waits in registers.
template <class T, bool N_MAJOR> struct Nf4Loader {
    static constexpr bool EXPANDS = true;
    static constexpr int PARTS = PRODUCERS / 128;
    const BlockMax& max;
    const float* table;         // 256 nested maxima and 16 codes, in shared memory
    const u8* start;            // of the matrix
    const u8* packed;           // the first piece that this producer copies, at step 0
    i64 pitch, columns, depth;  // values per row; what is left from the tile's first column on
    i64 own;                    // flat index of the unit that it expands, at step 0
    int nested_shift;
    struct Maximum {
        u32 code;
        float nested;
    } waiting[PREFETCH_DISTANCE + 1];

    __device__ __forceinline__ Nf4Loader(const GemmParams<T, Nf4Matrix>& p, i64 column0,
                                         const float* table, int thread)
        : max(p.right.max),
          table(table),
          start(p.right.packed.at),
          pitch(p.right.columns),
          columns(p.columns - column0),
          depth(p.depth) {
        const i64 first = N_MAJOR ? column0 : column0 * pitch;
        nested_shift = p.right.nested_shift;
        own = first + inside(unit_of(thread));
        packed = start + (first + inside(copied_of(thread))) / 2 + thread % 2 * 16;
    }
    static __device__ __forceinline__ int unit_of(int thread) {
        return PARTS == 1 ? thread : thread / 2;
    }
    // The threads of a warp copy the warp's units, neighbors the halves of one, 16 units at a
    // time.
    static __device__ __forceinline__ int copied_of(int thread) {
        return PARTS == 1 ? thread - thread % WARP + thread % WARP / 2 : thread / 2;
    }
    // Neither the lanes that copy the halves of 4 units nor those that read one half of 8 meet in a
    // bank.
    static __device__ __forceinline__ int slot(int unit, int half) {
        return PARTS == 1 ? (half * 128 + (unit ^ half * 4)) * 16 : (unit * 2 + half) * 16;
    }
    static __device__ __forceinline__ int row_of(int unit) { return N_MAJOR ? unit % 64 : unit; }
    static __device__ __forceinline__ int column_of(int unit) {
        return N_MAJOR ? unit / 64 * 64 : unit;
    }
    __device__ __forceinline__ i64 inside(int unit) const {
        return row_of(unit) * pitch + (N_MAJOR ? column_of(unit) : 0);
    }
    __device__ __forceinline__ bool there(int unit, i64 k) const {
        return (!N_MAJOR || k + row_of(unit) < depth) && column_of(unit) < columns;
    }

    __device__ __forceinline__ void copy(char*, char* ring, int thread, i64 k) {
        const i64 move = N_MAJOR ? k * pitch : k;
        const int copied = copied_of(thread), half = thread % 2;
        const u32 to = shared_address(ring);
#pragma unroll
        for (int i = 0; i < 2 / PARTS; ++i) {
            const bool exists = there(copied + 16 * i, k);
            ptx_copy16_partly(to + slot(copied + 16 * i, half),
                              exists ? packed + (move / 2 + i * 8 * pitch) : start,
                              exists ? 16 : 0);
        }
        skip();
        const int unit = unit_of(thread);
        if (!there(unit, k)) return;
        const i64 block = (own + move) >> max.block_shift;
        if (max.absmax.at)
            waiting[PREFETCH_DISTANCE].code =
                __float_as_int(max.absmax.at[block * max.absmax.stride]);
        else
            waiting[PREFETCH_DISTANCE] = {
                max.codes.at[block * max.codes.stride],
                max.nested.at[(block >> nested_shift) * max.nested.stride]};
    }
    __device__ __forceinline__ void skip() {
#pragma unroll
        for (int i = 0; i < PREFETCH_DISTANCE; ++i) waiting[i] = waiting[i + 1];
        waiting[PREFETCH_DISTANCE] = {0, 0.0f};
    }
    __device__ __forceinline__ void expand(char* stage, char* ring, int thread, i64 k) {
        const int unit = unit_of(thread);
        const Maximum m = waiting[0];
        const float nested = max.of_nested(table[m.code & 255], m.nested);
        const float scale = max.absmax.at ? __int_as_float(m.code) : there(unit, k) ? nested : 0.0f;
        u32 low[4], high[4];
#pragma unroll
        for (int q = 0; q < 4; ++q)
            nf4_plane_word<T>(Nf4Dtype<T>::NUMBER, ((const float4*)(table + 256))[q], scale, low[q],
                              high[q]);
        const uint4 lows = make_uint4(low[0], low[1], low[2], low[3]),
                    highs = make_uint4(high[0], high[1], high[2], high[3]);
        // A piece's place is the first one's with bits 4 to 6 turned over.
        const u32 to = shared_address(stage) + (N_MAJOR ? n_major_offset(unit % 64, unit / 64 * 8)
                                                        : k_major_offset(unit, 0));
#pragma unroll
        for (int i = 0; i < 2 / PARTS; ++i) {
            const int half = PARTS == 1 ? i : thread % 2;
            const uint4 words = *(const uint4*)(ring + slot(unit, half));
            const u32 word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
            for (int c = 0; c < 4; ++c)
                ptx_store_shared(
                    to ^ (N_MAJOR ? (half * 4 + c) * 16 : k_major_offset(0, half * 4 + c)),
                    nf4_decode(lows, highs, word[c]));
        }
    }
};
