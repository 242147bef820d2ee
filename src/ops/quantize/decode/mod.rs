//! Reading 4-bit matrices: stretches of values in flattened order, in any float type.
//!
//! A block has only 16 different values, code · absmax rounded to the original dtype, but 2 to 256 times as many
//! elements. So the 16 products are computed once per block, and elements are looked up among them by a
//! permutation of a vector register that holds all 16. Whole blocks go through one loop together with their
//! maxima; parts of blocks at the ends of a stretch are read element by element.

mod carry;
mod permute;

use crate::dtype::{DType, Float, f16, round_to_bf16};
use crate::ops::support::math::dispatch_simd;
use crate::quant::Nf4View;

/// Blocks whose maxima are decoded at a time.
const BLOCKS: usize = 64;

/// A 4-bit matrix whose packed codes lie side by side.
pub(crate) struct Nf4Reader<'a> {
    packed: &'a [u8],
    w: Nf4View<'a>,
    code: [f32; 16],
    block_shift: u32,
}

impl<'a> Nf4Reader<'a> {
    pub(crate) fn new(w: &Nf4View<'a>) -> Nf4Reader<'a> {
        Nf4Reader {
            // Nf4View::check has seen that they lie side by side.
            packed: w.packed.as_slice().unwrap_or(&[]),
            w: *w,
            code: std::array::from_fn(|i| w.code.at(i)),
            block_shift: w.blocksize.trailing_zeros(),
        }
    }

    /// Elements `first ..` of a row, as many as `out` takes.
    pub(crate) fn read<T: Float>(&self, row: usize, first: usize, out: &mut [T]) {
        let (mut flat, mut out) = (row * self.w.k + first, out);
        let mut maxima = [0.0; BLOCKS];
        while !out.is_empty() {
            let (block, inside) = (flat >> self.block_shift, flat & (self.w.blocksize - 1));
            let whole = if inside == 0 { (out.len() >> self.block_shift).min(BLOCKS) } else { 0 };
            let run = match whole {
                0 => (self.w.blocksize - inside).min(out.len()),
                _ => whole << self.block_shift,
            };
            let (now, later) = out.split_at_mut(run);
            if whole == 0 {
                self.read_part(
                    flat,
                    &table(&self.code, self.w.absmax_at(block), self.w.dtype),
                    now,
                );
            } else {
                let maxima = &mut maxima[..whole];
                self.w.maxima(block, maxima);
                let bytes = &self.packed[flat / 2..][..run / 2];
                decode(bytes, maxima, &self.code, self.w.dtype, now);
            }
            flat += run;
            out = later;
        }
    }

    /// Elements of one block, from element `flat` of the matrix on.
    fn read_part<T: Float>(&self, flat: usize, values: &[T; 16], out: &mut [T]) {
        let (head, body) = out.split_at_mut(flat % 2);
        for out in head {
            *out = values[(self.packed[flat / 2] & 15) as usize];
        }
        let bytes = &self.packed[flat.div_ceil(2)..][..body.len().div_ceil(2)];
        permute::look_up_each(bytes, values, body);
    }
}

dispatch_simd!(
    /// Values of a block.
    fn table<T: Float>(code: &[f32; 16], absmax: f32, dtype: DType) -> [T; 16] = table_body
);

#[inline(always)]
fn table_body<T: Float>(code: &[f32; 16], absmax: f32, dtype: DType) -> [T; 16] {
    let mut products = [0.0; 16];
    for i in 0..16 {
        products[i] = code[i] * absmax;
    }
    match dtype {
        DType::Bf16 => products.iter_mut().for_each(|v| *v = round_to_bf16(*v)),
        DType::F16 => products.iter_mut().for_each(|v| *v = Float::to_f32(f16::from_f32(*v))),
        _ => {}
    }
    let mut values = [T::from_f32(0.0); 16];
    for i in 0..16 {
        values[i] = T::from_f32(products[i]);
    }
    values
}

/// Whole blocks, as many as there are maxima.
fn decode<T: Float>(bytes: &[u8], maxima: &[f32], code: &[f32; 16], dtype: DType, out: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
            // SAFETY: the features were detected just above.
            return unsafe { permute::decode_avx512(bytes, maxima, code, dtype, out) };
        }
        if has!("avx2") && has!("fma") && has!("f16c") {
            // SAFETY: the features were detected just above.
            return unsafe { permute::decode_avx2(bytes, maxima, code, dtype, out) };
        }
    }
    let blocksize = out.len() / maxima.len();
    let blocks = bytes.chunks_exact(blocksize / 2).zip(out.chunks_exact_mut(blocksize));
    for ((bytes, out), &absmax) in blocks.zip(maxima) {
        permute::look_up_each(bytes, &table_body(code, absmax, dtype), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::quant::{Absmax, NF4_CODE};
    use crate::view::View;

    /// Every stretch of matrices with whole, split and short blocks, in every type.
    fn reads_code_times_absmax<T: Float>(n: usize, k: usize, blocksize: usize, dtype: DType) {
        let blocks = (n * k).div_ceil(blocksize);
        let packed: Vec<u8> = (0..(n * k).div_ceil(2)).map(|i| (i * 151 % 256) as u8).collect();
        let absmax: Vec<f32> = (0..blocks).map(|i| (i * 37 % 101) as f32 * 0.017).collect();
        let w = Nf4View {
            packed: (&packed).into(),
            absmax: Absmax::F32((&absmax).into()),
            code: View::from(&NF4_CODE[..]),
            n,
            k,
            blocksize,
            dtype,
        };
        let reader = Nf4Reader::new(&w);
        for row in 0..n {
            for (first, len) in [(0, k), (1, k - 1), (k / 3, k - k / 3), (k - 1, 1), (2, k / 2)] {
                let mut got = vec![T::from_f32(f32::NAN); len];
                reader.read(row, first, &mut got);
                for (i, got) in got.into_iter().enumerate() {
                    let flat = row * k + first + i;
                    let code = if flat.is_multiple_of(2) {
                        packed[flat / 2] >> 4
                    } else {
                        packed[flat / 2] & 15
                    };
                    let product = NF4_CODE[code as usize] * absmax[flat / blocksize];
                    let want = T::from_f32(match dtype {
                        DType::Bf16 => Float::to_f32(bf16::from_f32(product)),
                        DType::F16 => Float::to_f32(f16::from_f32(product)),
                        _ => product,
                    });
                    assert_eq!(
                        got, want,
                        "{n} x {k} / {blocksize} {dtype:?} at {row}, {first} + {i}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_stretch_is_code_times_absmax() {
        for (n, k, blocksize) in
            [(3, 64, 64), (5, 97, 32), (2, 4224, 64), (3, 300, 128), (4, 33, 4096)]
        {
            for dtype in [DType::F32, DType::Bf16, DType::F16] {
                reads_code_times_absmax::<f32>(n, k, blocksize, dtype);
                reads_code_times_absmax::<f64>(n, k, blocksize, dtype);
                reads_code_times_absmax::<bf16>(n, k, blocksize, dtype);
                reads_code_times_absmax::<f16>(n, k, blocksize, dtype);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn narrower_vectors_find_the_same_values() {
        if !(std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")) {
            return;
        }
        let bytes: Vec<u8> = (0..=255).collect();
        let maxima: Vec<f32> = (0..8).map(|i| 0.3 + i as f32 * 0.7).collect();
        let (mut wide, mut want) = ([0f32; 512], [bf16::ZERO; 512]);
        let (mut got_wide, mut got) = (wide, want);
        decode(&bytes, &maxima, &NF4_CODE, DType::Bf16, &mut wide);
        decode(&bytes, &maxima, &NF4_CODE, DType::Bf16, &mut want);
        // SAFETY: the features were detected just above (f16c came before avx2).
        unsafe {
            permute::decode_avx2(&bytes, &maxima, &NF4_CODE, DType::Bf16, &mut got_wide);
            permute::decode_avx2(&bytes, &maxima, &NF4_CODE, DType::Bf16, &mut got);
        }
        assert_eq!((wide, want), (got_wide, got));
    }
}
