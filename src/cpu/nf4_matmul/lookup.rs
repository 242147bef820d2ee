//! Expanding 4-bit codes through a table of 16 values. The compiler does not make a vector
//! permutation of an indexed load, so the permutation is written out for x86-64: 16 codes take
//! six instructions with AVX-512.

/// `out[2i] = values[bytes[i] >> 4]`, `out[2i + 1] = values[bytes[i] & 15]`, for as many elements as
/// `out` has; `bytes` has half as many, rounded up.
pub(super) fn expand(bytes: &[u8], values: &[f32; 16], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was detected just above.
            return unsafe { x86::expand_avx512(bytes, values, out) };
        }
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was detected just above.
            return unsafe { x86::expand_avx2(bytes, values, out) };
        }
    }
    expand_each(bytes, values, out);
}

/// The same, an element at a time.
pub(super) fn expand_each<A: Copy>(bytes: &[u8], values: &[A; 16], out: &mut [A]) {
    for (pair, &byte) in out.chunks_mut(2).zip(bytes) {
        pair[0] = values[(byte >> 4) as usize];
        if let Some(odd) = pair.get_mut(1) {
            *odd = values[(byte & 15) as usize];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// A byte becomes a 64-bit lane whose low half holds the high nibble and whose high half ends
    /// in the low nibble; the permutation looks at four bits of each half.
    #[target_feature(enable = "avx512f")]
    pub(super) fn expand_avx512(bytes: &[u8], values: &[f32; 16], out: &mut [f32]) {
        let (eights, sixteens) = (bytes.as_chunks::<8>().0, out.as_chunks_mut::<16>().0);
        // SAFETY: `values` is 16 readable floats.
        let table = unsafe { _mm512_loadu_ps(values.as_ptr()) };
        let done = eights.len().min(sixteens.len());
        for (eight, sixteen) in eights.iter().zip(sixteens) {
            let wide = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*eight)));
            let index = _mm512_or_si512(_mm512_srli_epi64(wide, 4), _mm512_slli_epi64(wide, 32));
            let found = _mm512_permutexvar_ps(index, table);
            // SAFETY: `sixteen` is 16 writable floats.
            unsafe { _mm512_storeu_ps(sixteen.as_mut_ptr(), found) };
        }
        super::expand_each(&bytes[8 * done..], values, &mut out[16 * done..]);
    }

    /// As above with two half tables; bit 3 of a code chooses between them.
    #[target_feature(enable = "avx2")]
    pub(super) fn expand_avx2(bytes: &[u8], values: &[f32; 16], out: &mut [f32]) {
        let (fours, eights) = (bytes.as_chunks::<4>().0, out.as_chunks_mut::<8>().0);
        // SAFETY: `values` is 16 readable floats.
        let (low, high) =
            unsafe { (_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))) };
        let done = fours.len().min(eights.len());
        for (four, eight) in fours.iter().zip(eights) {
            let wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(i32::from_le_bytes(*four)));
            let index = _mm256_or_si256(_mm256_srli_epi64(wide, 4), _mm256_slli_epi64(wide, 32));
            let from_low = _mm256_permutevar8x32_ps(low, index);
            let from_high = _mm256_permutevar8x32_ps(high, index);
            let bit = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
            let found = _mm256_blendv_ps(from_low, from_high, bit);
            // SAFETY: `eight` is 8 writable floats.
            unsafe { _mm256_storeu_ps(eight.as_mut_ptr(), found) };
        }
        super::expand_each(&bytes[4 * done..], values, &mut out[8 * done..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_finds_the_same_values() {
        let values: [f32; 16] = std::array::from_fn(|i| i as f32 - 7.5);
        let bytes: Vec<u8> = (0..=255).collect();
        for len in [0usize, 1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 511, 512] {
            let bytes = &bytes[256 - len.div_ceil(2)..];
            let mut want = vec![f32::NAN; len];
            expand_each(bytes, &values, &mut want);
            for (i, &w) in want.iter().enumerate() {
                let code = if i % 2 == 0 { bytes[i / 2] >> 4 } else { bytes[i / 2] & 15 };
                assert_eq!(w, code as f32 - 7.5, "{i} of {len}");
            }
            let mut got = vec![f32::NAN; len];
            expand(bytes, &values, &mut got);
            assert_eq!(got, want, "{len}");
            #[cfg(target_arch = "x86_64")]
            if std::is_x86_feature_detected!("avx2") {
                let mut got = vec![f32::NAN; len];
                // SAFETY: the feature was detected just above.
                unsafe { x86::expand_avx2(bytes, &values, &mut got) };
                assert_eq!(got, want, "{len}");
            }
        }
    }
}
