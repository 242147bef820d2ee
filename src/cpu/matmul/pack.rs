//! The right operand B `[depth, columns]`, read panel by panel: 32 columns, one step of k after
//! another, filled up with zeros. Packing is where the shapes and dtypes of B end: transposed
//! weights, strided rows, bf16, 4-bit codes.

use super::tile::COLUMNS;
use crate::dtype::{DType, Float, bf16, f16};
use crate::quant::Nf4View;
use crate::view::View;

/// Something that can be packed.
pub(crate) trait Right: Sync {
    /// Steps of k.
    fn depth(&self) -> usize;
    /// Output columns.
    fn columns(&self) -> usize;
    /// Writes steps `k..k + out.len() / 32` of the panel that starts at column `first`; columns
    /// behind the last are left as they are (the caller zeroed them).
    fn pack(&self, k: usize, first: usize, out: &mut [f32]);
}

/// B[k, j] = rows[k, j].
pub(crate) struct Rows<'a, T>(pub View<'a, T>);

impl<T: Float> Right for Rows<'_, T> {
    fn depth(&self) -> usize {
        self.0.extent(0)
    }
    fn columns(&self) -> usize {
        self.0.extent(1)
    }
    fn pack(&self, k: usize, first: usize, out: &mut [f32]) {
        for (step, out) in out.chunks_exact_mut(COLUMNS).enumerate() {
            let row = &self.0.row(k + step)[first..];
            for (o, x) in out.iter_mut().zip(row) {
                *o = x.to_f32();
            }
        }
    }
}

/// B[k, j] = rows[j, k]: a weight `[N, K]` in the forward product.
pub(crate) struct Columns<'a, T>(pub View<'a, T>);

impl<T: Float> Right for Columns<'_, T> {
    fn depth(&self) -> usize {
        self.0.extent(1)
    }
    fn columns(&self) -> usize {
        self.0.extent(0)
    }
    fn pack(&self, k: usize, first: usize, out: &mut [f32]) {
        let (steps, width) = (out.len() / COLUMNS, COLUMNS.min(self.columns() - first));
        for j in 0..width {
            let row = &self.0.row(first + j)[k..k + steps];
            for (step, x) in row.iter().enumerate() {
                out[step * COLUMNS + j] = x.to_f32();
            }
        }
    }
}

/// A 4-bit weight `[N, K]`, decoded as it is packed: the bytes stay the only stored copy.
struct Nf4<'a> {
    w: Nf4View<'a>,
    packed: &'a [u8],
    code: [f32; 16],
}

impl<'a> Nf4<'a> {
    /// `w` was checked: its codes are contiguous.
    fn new(w: Nf4View<'a>) -> Nf4<'a> {
        let mut code = [0.0; 16];
        (0..16).for_each(|i| code[i] = w.code.at(i));
        Nf4 { packed: w.packed.as_slice().unwrap_or_default(), code, w }
    }

    /// Calls `put(i, value)` for elements `from + i`, `i < count`, of the flattened matrix:
    /// `RN(code · absmax)` in f32, then one rounding to the quantised dtype.
    #[inline(always)]
    fn decode(&self, from: usize, count: usize, mut put: impl FnMut(usize, f32)) {
        let mut done = 0;
        while done < count {
            let at = from + done;
            let block = at / self.w.blocksize;
            let absmax = self.w.absmax_at(block);
            let table = self.scaled(absmax);
            let end = count.min((block + 1) * self.w.blocksize - from);
            for i in done..end {
                let flat = from + i;
                let byte = self.packed[flat / 2];
                let nibble = if flat.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                put(i, table[nibble as usize]);
            }
            done = end;
        }
    }

    /// The 16 values of a block.
    fn scaled(&self, absmax: f32) -> [f32; 16] {
        self.code.map(|code| match self.w.dtype {
            DType::Bf16 => bf16::from_f32(code * absmax).to_f32(),
            DType::F16 => f16::from_f32(code * absmax).to_f32(),
            _ => code * absmax,
        })
    }
}

/// B[k, j] = W[j, k]: the forward product of a 4-bit weight.
pub(crate) struct Nf4Columns<'a>(Nf4<'a>);

impl<'a> Nf4Columns<'a> {
    pub fn new(w: Nf4View<'a>) -> Nf4Columns<'a> {
        Nf4Columns(Nf4::new(w))
    }
}

impl Right for Nf4Columns<'_> {
    fn depth(&self) -> usize {
        self.0.w.k
    }
    fn columns(&self) -> usize {
        self.0.w.n
    }
    fn pack(&self, k: usize, first: usize, out: &mut [f32]) {
        let (steps, width) = (out.len() / COLUMNS, COLUMNS.min(self.columns() - first));
        for j in 0..width {
            let from = (first + j) * self.0.w.k + k;
            self.0.decode(from, steps, |i, x| out[i * COLUMNS + j] = x);
        }
    }
}

/// B[n, j] = W[n, j]: the backward product of a 4-bit weight, dX = dY·W.
pub(crate) struct Nf4Rows<'a>(Nf4<'a>);

impl<'a> Nf4Rows<'a> {
    pub fn new(w: Nf4View<'a>) -> Nf4Rows<'a> {
        Nf4Rows(Nf4::new(w))
    }
}

impl Right for Nf4Rows<'_> {
    fn depth(&self) -> usize {
        self.0.w.n
    }
    fn columns(&self) -> usize {
        self.0.w.k
    }
    fn pack(&self, k: usize, first: usize, out: &mut [f32]) {
        let width = COLUMNS.min(self.columns() - first);
        for (step, out) in out.chunks_exact_mut(COLUMNS).enumerate() {
            let from = (k + step) * self.0.w.k + first;
            self.0.decode(from, width, |i, x| out[i] = x);
        }
    }
}
