// 16 bytes of elements as the words of one store.
#pragma once

#include "common.cuh"

// Words of 16-bit elements; of others their own.
template <class T> __device__ __forceinline__ uint4 words_of(const Vec16<T>& v) { return v.raw; }
template <class T> __device__ __forceinline__ uint4 words_of_halves(const Vec16<T>& v) {
    u32 words[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) words[k] = (u32)v.at[2 * k].bits | (u32)v.at[2 * k + 1].bits << 16;
    return make_uint4(words[0], words[1], words[2], words[3]);
}
template <> __device__ __forceinline__ uint4 words_of(const Vec16<bf16>& v) {
    return words_of_halves(v);
}
template <> __device__ __forceinline__ uint4 words_of(const Vec16<f16>& v) {
    return words_of_halves(v);
}

// One store, where the compiler makes four: twice the sectors.
template <class T> __device__ __forceinline__ void store16(T* to, const Vec16<T>& v) {
    const uint4 words = words_of(v);
    const float four[4] = {__int_as_float(words.x), __int_as_float(words.y),
                           __int_as_float(words.z), __int_as_float(words.w)};
    ptx_store16((float*)to, four);
}
