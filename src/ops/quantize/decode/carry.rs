//! Lanes of a product carried through 4-bit rows that are decoded in registers: a row that is read once is
//! not written down first.

#[cfg(target_arch = "x86_64")]
use super::BLOCKS;
use super::Nf4Reader;
use crate::ops::products::gemm_cpu::{COLUMNS, LANES};
#[cfg(target_arch = "x86_64")]
use crate::ops::support::prefetch::fetch;

/// Groups of rows between the one that is asked for and the one that is read.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 2;

impl Nf4Reader<'_> {
    /// As [`Matrix::carry`](crate::ops::products::gemm_cpu::Matrix::carry), in f32: where rows are whole blocks and the
    /// machine has vectors.
    pub(crate) fn carry_row(&self, rows: [usize; COLUMNS], x: &[f32], lanes: &mut [f32]) -> bool {
        assert!(lanes.len() >= COLUMNS * LANES && x.len() <= self.w.k);
        #[cfg(target_arch = "x86_64")]
        if self.w.k.is_multiple_of(self.w.blocksize) && x.len() == self.w.k {
            use std::is_x86_feature_detected as has;
            let wide = has!("avx512f") && has!("avx512bw");
            if !(wide || has!("avx2") && has!("fma") && has!("f16c")) {
                return false;
            }
            let mut maxima = [[0.0; BLOCKS]; COLUMNS];
            for (i, x) in x.chunks(BLOCKS << self.block_shift).enumerate() {
                let mut bytes = [std::ptr::null(); COLUMNS];
                for j in 0..COLUMNS {
                    let flat = rows[j] * self.w.k + i * (BLOCKS << self.block_shift);
                    bytes[j] = self.packed[flat / 2..][..x.len() / 2].as_ptr();
                    // Rows are short and six are read side by side: the processor sees no pattern.
                    fetch(bytes[j].wrapping_add(AHEAD * COLUMNS * self.w.k / 2), x.len() / 2);
                    let maxima = &mut maxima[j][..x.len() >> self.block_shift];
                    self.w.maxima(flat >> self.block_shift, maxima);
                }
                let rows = x86::Rows { x, bytes, maxima: &maxima, blocksize: self.w.blocksize };
                // SAFETY: the features were detected; rows have half a byte for each of `x`, whole blocks.
                unsafe {
                    match wide {
                        true => x86::carry_512(&rows, &self.code, self.w.dtype, lanes),
                        false => x86::carry_256(&rows, &self.code, self.w.dtype, lanes),
                    }
                }
            }
            return true;
        }
        let _ = (rows, x, lanes);
        false
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::BLOCKS;
    use super::super::permute::{look_up_8, products};
    use crate::dtype::DType;
    use crate::ops::products::gemm_cpu::{COLUMNS, LANES};

    /// Whole blocks of some rows, and what they are multiplied by.
    pub(super) struct Rows<'a> {
        pub x: &'a [f32],
        pub bytes: [*const u8; COLUMNS],
        pub maxima: &'a [[f32; BLOCKS]; COLUMNS],
        pub blocksize: usize,
    }

    /// All rows side by side, 16 elements of each at a time: 8 bytes are spread so that a doubleword ends in each
    /// nibble, of which the permutation looks at four bits.
    ///
    /// # Safety
    /// The machine has the features; `x` is whole blocks, at most [`BLOCKS`]; every row has a byte for two of its
    /// elements, `lanes` 16 places for every row.
    #[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
    pub(super) unsafe fn carry_512(
        rows: &Rows<'_>,
        code: &[f32; 16],
        dtype: DType,
        lanes: &mut [f32],
    ) {
        let (x, lanes) = (rows.x.as_ptr(), lanes.as_mut_ptr());
        // Byte i of eight goes to both doublewords of quadword i.
        let place = _mm512_set_epi64(
            0x0707_0707_0707_0707,
            0x0606_0606_0606_0606,
            0x0505_0505_0505_0505,
            0x0404_0404_0404_0404,
            0x0303_0303_0303_0303,
            0x0202_0202_0202_0202,
            0x0101_0101_0101_0101,
            0,
        );
        let nibble = _mm512_setr_epi32(4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0);
        // SAFETY: the caller's.
        unsafe {
            let code = _mm512_loadu_ps(code.as_ptr());
            let mut c = [_mm512_setzero_ps(); COLUMNS];
            for j in 0..COLUMNS {
                c[j] = _mm512_loadu_ps(lanes.add(LANES * j));
            }
            for block in 0..rows.x.len() / rows.blocksize {
                let mut values = [_mm512_setzero_ps(); COLUMNS];
                for j in 0..COLUMNS {
                    let absmax = _mm512_set1_ps(rows.maxima[j][block]);
                    values[j] = rounded(_mm512_mul_ps(code, absmax), dtype);
                }
                let first = block * rows.blocksize;
                for at in (first..first + rows.blocksize).step_by(LANES) {
                    let a = _mm512_loadu_ps(x.add(at));
                    for j in 0..COLUMNS {
                        let eight = rows.bytes[j].add(at / 2).cast::<i64>().read_unaligned();
                        let spread = _mm512_shuffle_epi8(_mm512_set1_epi64(eight), place);
                        let index = _mm512_srlv_epi32(spread, nibble);
                        let w = _mm512_permutexvar_ps(index, values[j]);
                        c[j] = _mm512_fmadd_ps(a, w, c[j]);
                    }
                }
            }
            for j in 0..COLUMNS {
                _mm512_storeu_ps(lanes.add(LANES * j), c[j]);
            }
        }
    }

    /// Products rounded to the original dtype. A NaN of a product is a quiet one, and stays one without its low bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
    fn rounded(exact: __m512, dtype: DType) -> __m512 {
        match dtype {
            DType::Bf16 => {
                let bits = _mm512_castps_si512(exact);
                let last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
                let half = _mm512_add_epi32(last, _mm512_set1_epi32(0x7FFF));
                let number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(exact, exact);
                let nearest = _mm512_mask_add_epi32(bits, number, bits, half);
                _mm512_castsi512_ps(_mm512_and_si512(nearest, _mm512_set1_epi32(!0xFFFF)))
            }
            DType::F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(exact)),
            _ => exact,
        }
    }

    /// Row by row, 8 elements at a time: two half tables, between which bit 3 of a code chooses.
    ///
    /// # Safety
    /// As [`carry_512`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn carry_256(
        rows: &Rows<'_>,
        code: &[f32; 16],
        dtype: DType,
        lanes: &mut [f32],
    ) {
        let (x, lanes) = (rows.x.as_ptr(), lanes.as_mut_ptr());
        for j in 0..COLUMNS {
            // SAFETY: the caller's.
            unsafe {
                let lanes = lanes.add(LANES * j);
                let mut c = [_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes.add(8))];
                for block in 0..rows.x.len() / rows.blocksize {
                    let values = products(code, rows.maxima[j][block], dtype);
                    let first = block * rows.blocksize;
                    for at in (first..first + rows.blocksize).step_by(LANES) {
                        for half in 0..2 {
                            let at = at + 8 * half;
                            let four = rows.bytes[j].add(at / 2).cast::<i32>().read_unaligned();
                            let w = look_up_8(four, values);
                            c[half] = _mm256_fmadd_ps(_mm256_loadu_ps(x.add(at)), w, c[half]);
                        }
                    }
                }
                _mm256_storeu_ps(lanes, c[0]);
                _mm256_storeu_ps(lanes.add(8), c[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::quant::{Absmax, NF4_CODE, Nf4View};
    use crate::view::View;

    /// Rows of whole blocks give the bits of the values that they read as, with vectors of either width.
    #[test]
    fn rows_in_place_give_the_bits_of_their_values() {
        for (k, blocksize) in [(32, 32), (320, 64), (8192, 64), (256, 256)] {
            let n = 9;
            let packed: Vec<u8> = (0..n * k / 2).map(|i| (i * 151 % 256) as u8).collect();
            let absmax: Vec<f32> =
                (0..n * k / blocksize).map(|i| (i % 101) as f32 / 59.0).collect();
            let x: Vec<f32> = (0..k).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0).collect();
            for dtype in [DType::F32, DType::Bf16, DType::F16] {
                let w = Nf4View {
                    packed: (&packed).into(),
                    absmax: Absmax::F32((&absmax).into()),
                    code: View::from(&NF4_CODE[..]),
                    n,
                    k,
                    blocksize,
                    dtype,
                };
                let (reader, rows) = (Nf4Reader::new(&w), [0, 3, 8, 7, 7, 1]);
                let start: Vec<f32> = (0..COLUMNS * LANES).map(|i| i as f32 / 7.0).collect();
                let mut want = start.clone();
                for (row, lanes) in rows.into_iter().zip(want.chunks_exact_mut(LANES)) {
                    let mut values = vec![0f32; k];
                    reader.read(row, 0, &mut values);
                    for (i, (x, w)) in x.iter().zip(&values).enumerate() {
                        lanes[i % LANES] = x.mul_add(*w, lanes[i % LANES]);
                    }
                }
                let mut got = start.clone();
                match reader.carry_row(rows, &x, &mut got) {
                    true => assert_eq!(got, want, "{k} {blocksize} {dtype:?}"),
                    false => assert_eq!(got, start),
                }
                #[cfg(target_arch = "x86_64")]
                if std::is_x86_feature_detected!("avx2") && k / blocksize <= BLOCKS {
                    let mut maxima = [[0.0; BLOCKS]; COLUMNS];
                    let mut bytes = [std::ptr::null(); COLUMNS];
                    for j in 0..COLUMNS {
                        w.maxima(rows[j] * k / blocksize, &mut maxima[j][..k / blocksize]);
                        bytes[j] = packed[rows[j] * k / 2..][..k / 2].as_ptr();
                    }
                    let rows = x86::Rows { x: &x, bytes, maxima: &maxima, blocksize };
                    let mut got = start;
                    // SAFETY: the features were detected (fma and f16c came before avx2); rows are whole blocks.
                    unsafe { x86::carry_256(&rows, &NF4_CODE, dtype, &mut got) };
                    assert_eq!(got, want, "{k} {blocksize} {dtype:?}");
                }
            }
        }
    }
}
