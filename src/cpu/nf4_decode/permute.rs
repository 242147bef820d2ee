//! The look-up itself. The compiler does not make a vector permutation of an indexed load, so it is
//! written out for x86-64: with AVX-512 a vector of 32 elements of 2 bytes, or 16 of 4, takes four
//! instructions and a store.

use crate::dtype::Float;

/// `out[2i] = values[bytes[i] >> 4]`, `out[2i + 1] = values[bytes[i] & 15]`, for as many elements as
/// `out` has; `bytes` has half as many, rounded up.
#[inline(always)]
pub(super) fn look_up_each<T: Float>(bytes: &[u8], values: &[T; 16], out: &mut [T]) {
    let (pairs, tail) = out.as_chunks_mut::<2>();
    for (last, &byte) in tail.iter_mut().zip(&bytes[pairs.len()..]) {
        *last = values[(byte >> 4) as usize];
    }
    for (pair, &byte) in pairs.iter_mut().zip(bytes) {
        *pair = [values[(byte >> 4) as usize], values[(byte & 15) as usize]];
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{decode_avx2, decode_avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::table_body;
    use super::look_up_each;
    use crate::dtype::{DType, Float};

    /// Whole blocks of a multiple of 32 elements, as many as there are maxima.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(in super::super) fn decode_avx512<T: Float>(
        bytes: &[u8],
        maxima: &[f32],
        code: &[f32; 16],
        dtype: DType,
        out: &mut [T],
    ) {
        let blocksize = out.len() / maxima.len();
        let blocks = bytes.chunks_exact(blocksize / 2).zip(out.chunks_exact_mut(blocksize));
        for ((bytes, out), &absmax) in blocks.zip(maxima) {
            let values: [T; 16] = table_body(code, absmax, dtype);
            match size_of::<T>() {
                2 => words_avx512(bytes, values.as_ptr().cast(), out.as_mut_ptr().cast()),
                4 => doublewords_avx512(bytes, values.as_ptr().cast(), out.as_mut_ptr().cast()),
                _ => look_up_each(bytes, &values, out),
            }
        }
    }

    /// A byte becomes a doubleword whose low half ends in the high nibble and whose high half ends
    /// in the low one; the permutation looks at five bits of each half, so the table is there twice.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn words_avx512(bytes: &[u8], values: *const __m256i, out: *mut __m512i) {
        // SAFETY: the caller's values are 16 readable words.
        let table = _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(values) });
        for (i, sixteen) in bytes.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: `sixteen` is 16 readable bytes.
            let codes = unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) };
            let wide = _mm512_cvtepu8_epi32(codes);
            let index = _mm512_or_si512(_mm512_srli_epi32(wide, 4), _mm512_slli_epi32(wide, 16));
            // SAFETY: the caller's output has two words for every byte.
            unsafe { _mm512_storeu_si512(out.add(i), _mm512_permutexvar_epi16(index, table)) };
        }
    }

    /// The same with quadwords of two doublewords; four bits of each choose.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn doublewords_avx512(bytes: &[u8], values: *const __m512i, out: *mut __m512i) {
        // SAFETY: the caller's values are 16 readable doublewords.
        let table = unsafe { _mm512_loadu_si512(values) };
        for (i, eight) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let wide = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*eight)));
            let index = _mm512_or_si512(_mm512_srli_epi64(wide, 4), _mm512_slli_epi64(wide, 32));
            // SAFETY: the caller's output has two doublewords for every byte.
            unsafe { _mm512_storeu_si512(out.add(i), _mm512_permutexvar_epi32(index, table)) };
        }
    }

    /// Whole blocks of a multiple of 32 elements, as many as there are maxima.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in super::super) fn decode_avx2<T: Float>(
        bytes: &[u8],
        maxima: &[f32],
        code: &[f32; 16],
        dtype: DType,
        out: &mut [T],
    ) {
        let blocksize = out.len() / maxima.len();
        let blocks = bytes.chunks_exact(blocksize / 2).zip(out.chunks_exact_mut(blocksize));
        for ((bytes, out), &absmax) in blocks.zip(maxima) {
            let values: [T; 16] = table_body(code, absmax, dtype);
            match size_of::<T>() {
                2 => words_avx2(bytes, values.as_ptr().cast(), out.as_mut_ptr().cast()),
                4 => doublewords_avx2(bytes, values.as_ptr().cast(), out.as_mut_ptr().cast()),
                _ => look_up_each(bytes, &values, out),
            }
        }
    }

    /// Low and high bytes of the words are looked up apart and interleaved.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn words_avx2(bytes: &[u8], values: *const __m256i, out: *mut __m256i) {
        // SAFETY: the caller's values are 16 readable words.
        let words = unsafe { _mm256_loadu_si256(values) };
        let low_bytes = _mm256_and_si256(words, _mm256_set1_epi16(0xFF));
        let (high_bytes, zero) = (_mm256_srli_epi16(words, 8), _mm256_setzero_si256());
        // A pack leaves the lanes' halves side by side: quadwords 0 and 2 are the 16 bytes.
        let low = _mm256_permute4x64_epi64(_mm256_packus_epi16(low_bytes, zero), 0b1000_1000);
        let high = _mm256_permute4x64_epi64(_mm256_packus_epi16(high_bytes, zero), 0b1000_1000);
        let low = _mm256_permute2x128_si256(low, low, 0);
        let high = _mm256_permute2x128_si256(high, high, 0);
        let nibble = _mm_set1_epi8(15);
        for (i, sixteen) in bytes.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: `sixteen` is 16 readable bytes.
            let codes = unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) };
            let first = _mm_and_si128(_mm_srli_epi16(codes, 4), nibble);
            let second = _mm_and_si128(codes, nibble);
            let index = _mm256_set_m128i(
                _mm_unpackhi_epi8(first, second),
                _mm_unpacklo_epi8(first, second),
            );
            let (low, high) = (_mm256_shuffle_epi8(low, index), _mm256_shuffle_epi8(high, index));
            let (a, b) = (_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high));
            // SAFETY: the caller's output has two words for every byte.
            unsafe {
                _mm256_storeu_si256(out.add(2 * i), _mm256_permute2x128_si256(a, b, 0x20));
                _mm256_storeu_si256(out.add(2 * i + 1), _mm256_permute2x128_si256(a, b, 0x31));
            }
        }
    }

    /// Two half tables; bit 3 of a code chooses between them.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn doublewords_avx2(bytes: &[u8], values: *const __m256, out: *mut __m256) {
        // SAFETY: the caller's values are 16 readable doublewords.
        let (low, high) =
            unsafe { (_mm256_loadu_ps(values.cast()), _mm256_loadu_ps(values.add(1).cast())) };
        for (i, four) in bytes.as_chunks::<4>().0.iter().enumerate() {
            let wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(i32::from_le_bytes(*four)));
            let index = _mm256_or_si256(_mm256_srli_epi64(wide, 4), _mm256_slli_epi64(wide, 32));
            let from_low = _mm256_permutevar8x32_ps(low, index);
            let from_high = _mm256_permutevar8x32_ps(high, index);
            let bit = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
            let found = _mm256_blendv_ps(from_low, from_high, bit);
            // SAFETY: the caller's output has two doublewords for every byte.
            unsafe { _mm256_storeu_ps(out.add(i).cast(), found) };
        }
    }
}
