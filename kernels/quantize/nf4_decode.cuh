// Eight 4-bit codes to eight 16-bit weights with byte permutations: no arithmetic, no conversion
// and no branch a weight.
//
// A block has 16 different weights. They are rounded once, cut into low and high bytes and kept as
// two planes of 16 bytes; `prmt` then looks up four nibbles at a time:
//
//     below = prmt(plane[0..8], nibbles & 7)      as if bit 3 were clear
//     above = prmt(plane[8..16], nibbles & 7)     as if it were set
//     byte  = prmt(below, above, 4·bit 3 + place)
//
// Two planes and two permutations that interleave them: 8 for four weights.
#pragma once

#include "nf4.cuh"

// Both values through the dtype that was quantized (0 f32, 1 bf16, 2 f16).
__device__ __forceinline__ void nf4_round_pair(int dtype, float& a, float& b) {
    if (dtype == 1) {
        const u32 pair = ptx_pack_bf16(a, b);
        a = __int_as_float(pair << 16), b = __int_as_float(pair & 0xffff0000u);
    } else if (dtype == 2) {
        const u32 pair = ptx_pack_f16(a, b);
        a = ptx_f32_from_f16((u16)pair), b = ptx_f32_from_f16((u16)(pair >> 16));
    }
}

// Number of `T` where the dtype that was quantized is told by numbers.
template <class T> struct Nf4Dtype;
template <> struct Nf4Dtype<bf16> {
    static constexpr int NUMBER = 1;
};
template <> struct Nf4Dtype<f16> {
    static constexpr int NUMBER = 2;
};

// Word q of both planes, made of entries 4q..4q+3 of the code book. Rounding to the dtype that was
// quantized and then to T is one rounding where they are the same.
template <class T>
__device__ __forceinline__ void nf4_plane_word(int dtype, const float4& book, float max, u32& low,
                                               u32& high) {
    float a = __fmul_rn(book.x, max), b = __fmul_rn(book.y, max), c = __fmul_rn(book.z, max),
          d = __fmul_rn(book.w, max);
    if (dtype != Nf4Dtype<T>::NUMBER) nf4_round_pair(dtype, a, b), nf4_round_pair(dtype, c, d);
    const u32 ab = Halves<T>::pack(a, b), cd = Halves<T>::pack(c, d);
    low = __byte_perm(ab, cd, 0x6420), high = __byte_perm(ab, cd, 0x7531);
}

// Bytes of a plane at the four lowest nibbles: `code` without their bits 3, `side` = 4·bit 3 +
// place.
__device__ __forceinline__ u32 nf4_plane_bytes(const uint4& plane, u32 code, u32 side) {
    return ptx_permute(ptx_permute(plane.x, plane.y, code), ptx_permute(plane.z, plane.w, code),
                       side);
}

// The eight weights of a word of codes, in order: element 2i is the high nibble of byte i.
__device__ __forceinline__ uint4 nf4_decode(const uint4& low, const uint4& high, u32 word) {
    const u32 code = word & 0x77777777u, side = (word >> 1 & 0x44444444u) | 0x32103210u;
    const u32 l0 = nf4_plane_bytes(low, code, side), h0 = nf4_plane_bytes(high, code, side);
    const u32 l1 = nf4_plane_bytes(low, code >> 16, side >> 16),
              h1 = nf4_plane_bytes(high, code >> 16, side >> 16);
    uint4 v;
    v.x = ptx_permute(l0, h0, 0x4051), v.y = ptx_permute(l0, h0, 0x6273);
    v.z = ptx_permute(l1, h1, 0x4051), v.w = ptx_permute(l1, h1, 0x6273);
    return v;
}
