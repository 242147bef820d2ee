//! Products with a 4-bit weight on the CPU: the dense product over a matrix that expands stretches
//! of its rows when they are packed.

mod lookup;

use std::borrow::Cow;

use crate::cpu::math::dispatch_simd;
use crate::cpu::matmul::{Adapters, Backward, Forward, Matrix, backward, forward};
use crate::dtype::{DType, Float, f16};
use crate::ops::nf4_matmul::Nf4Matmul;
use crate::ops::nf4_matmul_dx::Nf4MatmulDx;
use crate::quant::Nf4View;

pub(crate) fn nf4_matmul<T: Float>(args: Nf4Matmul<'_, T>) {
    let Nf4Matmul { x, w, bias, lora, adapter, s, residual, y } = args;
    let w = Expanded::new(&w);
    let pass = Forward { x, bias, adapters: Adapters { lora, adapter }, s, residual, y };
    match T::DTYPE {
        DType::F64 => forward::<T, f64>(pass, &w),
        _ => forward::<T, f32>(pass, &w),
    }
}

pub(crate) fn nf4_matmul_dx<T: Float>(args: Nf4MatmulDx<'_, T>) {
    let Nf4MatmulDx { dy, w, lora, adapter, accumulate, dx } = args;
    let w = Expanded::new(&w);
    let pass = Backward { dy, adapters: Adapters { lora, adapter }, accumulate, dx };
    match T::DTYPE {
        DType::F64 => backward::<T, f64>(pass, &w),
        _ => backward::<T, f32>(pass, &w),
    }
}

/// A 4-bit matrix that reads as the floats it stands for.
struct Expanded<'a> {
    packed: Cow<'a, [u8]>,
    w: Nf4View<'a>,
    code: [f32; 16],
    k: usize,
    block_shift: u32,
    dtype: DType,
}

impl<'a> Expanded<'a> {
    fn new(w: &Nf4View<'a>) -> Expanded<'a> {
        Expanded {
            packed: w.packed.as_slice().map_or_else(|| w.packed.to_vec().into(), Cow::from),
            w: *w,
            code: std::array::from_fn(|i| w.code.at(i)),
            k: w.k,
            block_shift: w.blocksize.trailing_zeros(),
            dtype: w.dtype,
        }
    }

    /// The 16 values of a block: code · absmax in f32, rounded to the original dtype. There are 2
    /// to 256 times as many elements as values, so they are rounded once and looked up.
    fn values(&self, block: usize) -> [f32; 16] {
        scale(&self.code, self.w.absmax_at(block), self.dtype)
    }

    /// Hands out the row's stretch block by block: packed bytes (the even element of a byte is its
    /// high nibble), values, and where the elements go. A stretch that starts inside a byte hands
    /// out that byte's low nibble first, moved up.
    fn read_with<A>(
        &self,
        (row, first): (usize, usize),
        out: &mut [A],
        mut expand: impl FnMut(&[u8], &[f32; 16], &mut [A]),
    ) {
        let mut flat = row * self.k + first;
        let mut out = out;
        while !out.is_empty() {
            let block = flat >> self.block_shift;
            let run = (((block + 1) << self.block_shift) - flat).min(out.len());
            let (mut now, later) = out.split_at_mut(run);
            let values = self.values(block);
            if flat % 2 == 1 {
                let head;
                (head, now) = now.split_at_mut(1);
                expand(&[self.packed[flat / 2] << 4], &values, head);
            }
            let bytes = &self.packed[flat.div_ceil(2)..][..now.len().div_ceil(2)];
            expand(bytes, &values, now);
            flat += run;
            out = later;
        }
    }
}

impl Matrix<f32> for Expanded<'_> {
    fn read(&self, row: usize, first: usize, out: &mut [f32]) {
        self.read_with((row, first), out, lookup::expand);
    }
}

impl Matrix<f64> for Expanded<'_> {
    fn read(&self, row: usize, first: usize, out: &mut [f64]) {
        self.read_with((row, first), out, |bytes, values, out| {
            lookup::expand_each(bytes, &values.map(f64::from), out);
        });
    }
}

dispatch_simd!(
    /// code · absmax, each product rounded to `dtype`.
    fn scale(code: &[f32; 16], absmax: f32, dtype: DType) -> [f32; 16] = scale_body
);

#[inline(always)]
fn scale_body(code: &[f32; 16], absmax: f32, dtype: DType) -> [f32; 16] {
    let mut values = [0.0; 16];
    for (value, code) in values.iter_mut().zip(code) {
        *value = code * absmax;
    }
    match dtype {
        DType::Bf16 => values.iter_mut().for_each(|v| *v = round_to_bf16(*v)),
        DType::F16 => values.iter_mut().for_each(|v| *v = Float::to_f32(f16::from_f32(*v))),
        _ => {}
    }
    values
}

/// `bf16::from_f32` and back without branches, which the compiler vectorises: adding half a unit,
/// less one bit when the last kept bit is 0, carries exactly when rounding to nearest even does.
#[inline(always)]
fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000;
    let quiet = (bits & 0xFFFF_0000) | 0x0040_0000;
    let nan = 0u32.wrapping_sub((bits & 0x7FFF_FFFF > 0x7F80_0000) as u32);
    f32::from_bits((nearest & !nan) | (quiet & nan))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::bf16;

    #[test]
    fn rounding_to_bf16_is_that_of_half() {
        for high in 0..=0xFFFFu32 {
            for low in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let x = f32::from_bits(high << 16 | low);
                let want = Float::to_f32(bf16::from_f32(x));
                assert_eq!(round_to_bf16(x).to_bits(), want.to_bits(), "{:#x}", x.to_bits());
            }
        }
    }
}
