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
pub(super) use x86::{decode_avx2, decode_avx512, look_up_8, products};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::table_body;
    use super::look_up_each;
    use crate::dtype::{DType, Float};

    /// A block's 16 products, rounded to the original dtype.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in super::super) fn products(code: &[f32; 16], absmax: f32, dtype: DType) -> [__m256; 2] {
        let mut products = [_mm256_setzero_ps(); 2];
        for (i, product) in products.iter_mut().enumerate() {
            // SAFETY: `code` is twice 8 readable floats.
            let code = unsafe { _mm256_loadu_ps(code.as_ptr().add(8 * i)) };
            let exact = _mm256_mul_ps(code, _mm256_set1_ps(absmax));
            *product = match dtype {
                DType::Bf16 => nearest_bf16(exact),
                DType::F16 => _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(exact)),
                _ => exact,
            };
        }
        products
    }

    /// [`round_to_bf16`](crate::dtype::round_to_bf16) of each: in loops the compiler takes vectors of
    /// a few values apart.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn nearest_bf16(x: __m256) -> __m256 {
        let (bits, high) = (_mm256_castps_si256(x), _mm256_set1_epi32(!0xFFFF));
        let last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(last, _mm256_set1_epi32(0x7FFF));
        let nearest = _mm256_castsi256_ps(_mm256_add_epi32(bits, half));
        let quiet = _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000)));
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
        _mm256_and_ps(_mm256_blendv_ps(nearest, quiet, nan), _mm256_castsi256_ps(high))
    }

    /// The products as 16 bf16 or f16.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn to_words([a, b]: [__m256; 2], dtype: DType) -> __m256i {
        if dtype == DType::F16 {
            let [a, b] = [a, b].map(|half| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(half));
            return _mm256_set_m128i(b, a);
        }
        let a = _mm256_srli_epi32(_mm256_castps_si256(nearest_bf16(a)), 16);
        let b = _mm256_srli_epi32(_mm256_castps_si256(nearest_bf16(b)), 16);
        // A pack works on 128-bit lanes.
        _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0b1101_1000)
    }

    /// Stamps the loop over whole blocks of a multiple of 32 elements, as many as there are maxima.
    macro_rules! decode {
        ($name:ident, $features:literal, $words:ident, $doublewords:ident) => {
            #[target_feature(enable = $features)]
            pub(in super::super) fn $name<T: Float>(
                bytes: &[u8],
                maxima: &[f32],
                code: &[f32; 16],
                dtype: DType,
                out: &mut [T],
            ) {
                let blocksize = out.len() / maxima.len();
                let blocks = bytes.chunks_exact(blocksize / 2).zip(out.chunks_exact_mut(blocksize));
                for ((bytes, out), &absmax) in blocks.zip(maxima) {
                    let products = products(code, absmax, dtype);
                    let to = out.as_mut_ptr();
                    match T::DTYPE {
                        DType::F32 => $doublewords(bytes, products, to.cast()),
                        DType::Bf16 | DType::F16 => {
                            $words(bytes, to_words(products, T::DTYPE), to.cast())
                        }
                        _ => look_up_each(bytes, &table_body(code, absmax, dtype), out),
                    }
                }
            }
        };
    }
    decode!(
        decode_avx512,
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
        words_avx512,
        doublewords_avx512
    );
    decode!(decode_avx2, "avx2,fma,f16c", words_avx2, doublewords_avx2);

    /// A byte becomes a doubleword whose low half ends in the high nibble and whose high half ends
    /// in the low one; the permutation looks at five bits of each half, so the table is there twice.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn words_avx512(bytes: &[u8], words: __m256i, out: *mut __m512i) {
        let table = _mm512_broadcast_i64x4(words);
        for (i, sixteen) in bytes.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: `sixteen` is 16 readable bytes.
            let codes = unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) };
            let wide = _mm512_cvtepu8_epi32(codes);
            let index = _mm512_or_si512(_mm512_srli_epi32(wide, 4), _mm512_slli_epi32(wide, 16));
            // SAFETY: the caller's output has two words for every byte.
            unsafe { _mm512_storeu_si512(out.add(i), _mm512_permutexvar_epi16(index, table)) };
        }
    }

    /// A byte becomes a quadword whose two doublewords end in its nibbles; the permutation looks at four
    /// bits of each.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn doublewords_avx512(bytes: &[u8], [low, high]: [__m256; 2], out: *mut __m512) {
        let table = _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
        for (i, eight) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let wide = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*eight)));
            let index = _mm512_or_si512(_mm512_srli_epi64(wide, 4), _mm512_slli_epi64(wide, 32));
            // SAFETY: the caller's output has two doublewords for every byte.
            unsafe { _mm512_storeu_ps(out.add(i).cast(), _mm512_permutexvar_ps(index, table)) };
        }
    }

    /// Low and high bytes of the words are looked up apart and interleaved.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn words_avx2(bytes: &[u8], words: __m256i, out: *mut __m256i) {
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

    /// The values of 8 codes. Two half tables; bit 3 of a code chooses between them.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in super::super) fn look_up_8(four: i32, [low, high]: [__m256; 2]) -> __m256 {
        let wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
        let index = _mm256_or_si256(_mm256_srli_epi64(wide, 4), _mm256_slli_epi64(wide, 32));
        let from_low = _mm256_permutevar8x32_ps(low, index);
        let from_high = _mm256_permutevar8x32_ps(high, index);
        let bit = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
        _mm256_blendv_ps(from_low, from_high, bit)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn doublewords_avx2(bytes: &[u8], [low, high]: [__m256; 2], out: *mut __m256) {
        for (i, four) in bytes.as_chunks::<4>().0.iter().enumerate() {
            let found = look_up_8(i32::from_le_bytes(*four), [low, high]);
            // SAFETY: the caller's output has two doublewords for every byte.
            unsafe { _mm256_storeu_ps(out.add(i).cast(), found) };
        }
    }
}
