//! Products with a 4-bit weight on the CPU: the dense product over a matrix that expands stretches
//! of its rows when they are packed.

use std::borrow::Cow;

use crate::cpu::matmul::{Adapters, Backward, Forward, Lane, Matrix, backward, forward};
use crate::dtype::{DType, Float, bf16, f16};
use crate::ops::nf4_matmul::Nf4Matmul;
use crate::ops::nf4_matmul_dx::Nf4MatmulDx;
use crate::quant::{Absmax, Nf4View};

pub(crate) fn nf4_matmul<T: Float>(args: Nf4Matmul<'_, T>) {
    let Nf4Matmul { x, w, bias, lora, adapter, s, y } = args;
    let w = Expanded::new(&w);
    let pass = Forward { x, bias, adapters: Adapters { lora, adapter }, s, y };
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
    absmax: Absmax<'a>,
    code: [f32; 16],
    k: usize,
    block_shift: u32,
    dtype: DType,
}

impl<'a> Expanded<'a> {
    fn new(w: &Nf4View<'a>) -> Expanded<'a> {
        Expanded {
            packed: w.packed.as_slice().map_or_else(|| w.packed.to_vec().into(), Cow::from),
            absmax: w.absmax,
            code: std::array::from_fn(|i| w.code.at(i)),
            k: w.k,
            block_shift: w.blocksize.trailing_zeros(),
            dtype: w.dtype,
        }
    }

    /// The 16 values of a block: code · absmax in f32, rounded to the original dtype. There are 2
    /// to 256 times as many elements as values, so they are rounded once and looked up.
    fn values<A: Lane>(&self, block: usize) -> [A; 16] {
        let absmax = match &self.absmax {
            Absmax::F32(absmax) => absmax.at(block),
            Absmax::Nested { codes, nested, table, offset, nested_blocksize } => {
                let scale = nested.at(block / nested_blocksize);
                table.at(codes.at(block) as usize).mul_add(scale, *offset)
            }
        };
        let products = self.code.map(|code| code * absmax);
        match self.dtype {
            DType::Bf16 => products.map(|w| A::widen(bf16::from_f32(w))),
            DType::F16 => products.map(|w| A::widen(f16::from_f32(w))),
            _ => products.map(A::widen),
        }
    }
}

impl<A: Lane> Matrix<A> for Expanded<'_> {
    fn read(&self, row: usize, first: usize, out: &mut [A]) {
        let mut flat = row * self.k + first;
        let mut out = out;
        while !out.is_empty() {
            let block = flat >> self.block_shift;
            let run = (((block + 1) << self.block_shift) - flat).min(out.len());
            let (now, later) = out.split_at_mut(run);
            expand(&self.packed, flat, &self.values(block), now);
            flat += run;
            out = later;
        }
    }
}

/// Elements `flat ..` of one block; the even one of a byte is its high nibble.
fn expand<A: Copy>(packed: &[u8], flat: usize, values: &[A; 16], out: &mut [A]) {
    let (mut flat, mut out) = (flat, out);
    if flat % 2 == 1 {
        let Some((head, rest)) = out.split_first_mut() else { return };
        *head = values[(packed[flat / 2] & 15) as usize];
        (flat, out) = (flat + 1, rest);
    }
    let bytes = &packed[flat / 2..][..out.len().div_ceil(2)];
    for (pair, &byte) in out.chunks_mut(2).zip(bytes) {
        pair[0] = values[(byte >> 4) as usize];
        if let Some(odd) = pair.get_mut(1) {
            *odd = values[(byte & 15) as usize];
        }
    }
}
