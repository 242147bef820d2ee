//! [`Nf4Tensor`] to and from dense weights.

use crate::check::Check;
use crate::device::{Device, zeros};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::quantize::nf4_quantize::NESTED_BLOCKSIZE;
use crate::ops::{
    Nf4Dequantize, Nf4Quantize, Nf4QuantizeAbsmax, nf4_dequantize, nf4_quantize,
    nf4_quantize_absmax,
};
use crate::quant::nf4::{check_blocksize, check_geometry};
use crate::quant::{Nf4Options, Nf4Parts, Nf4Tensor, OwnedAbsmax, dynamic_map};
use crate::view::{View, ViewMut};

impl Nf4Tensor {
    /// Quantizes `x` `[N, K]`.
    ///
    /// # Errors
    /// `NonFinite` with the flat index of the first NaN or infinity; `InvalidArgument` for a bad
    /// block size, a dtype other than f16, bf16, f32, or strided columns; `OutOfMemory`.
    pub fn quantize<T: Float>(
        device: &Device,
        x: View<'_, T>,
        options: &Nf4Options,
    ) -> Result<Nf4Tensor> {
        let check = Check("nf4_quantize");
        check.rank(device, "x", &x, 2)?;
        check_blocksize(check, "blocksize", options.blocksize)?;
        let (n, k) = (x.extent(0), x.extent(1));
        let (quant_type, blocksize) = (options.quant_type, options.blocksize);
        let numel = check_geometry(check, "x", n, k, blocksize, T::DTYPE)?;
        let mut packed = zeros::<u8>(numel.div_ceil(2), "packed codes")?;
        let mut absmax = zeros::<f32>(numel.div_ceil(blocksize), "block maxima")?;
        let args = Nf4Quantize {
            x,
            quant_type,
            blocksize,
            packed: (&mut packed).into(),
            absmax: (&mut absmax).into(),
        };
        nf4_quantize(device, args)?;
        let absmax = if options.double_quant {
            quantize_absmax(device, &absmax)?
        } else {
            OwnedAbsmax::F32(absmax)
        };
        let code = quant_type.code().to_vec();
        let parts = Nf4Parts { packed, absmax, code, n, k, blocksize, dtype: T::DTYPE, quant_type };
        Ok(Nf4Tensor { parts })
    }

    /// The weight, row-major: each value rounded to the original dtype, then to `T` (exact where
    /// `T` holds that dtype).
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn dequantize<T: Float>(&self, device: &Device) -> Result<Vec<T>> {
        let (n, k) = (self.parts.n, self.parts.k);
        let mut y = zeros::<T>(n * k, "dequantized weight")?;
        let view = ViewMut::new(&mut y, &[n as i64, k as i64])?;
        nf4_dequantize(device, Nf4Dequantize { w: self.view(), y: view })?;
        Ok(y)
    }
}

fn quantize_absmax(device: &Device, absmax: &[f32]) -> Result<OwnedAbsmax> {
    let table = dynamic_map(true);
    let mut codes = zeros::<u8>(absmax.len(), "codes of the block maxima")?;
    let mut nested = zeros::<f32>(absmax.len().div_ceil(NESTED_BLOCKSIZE), "nested maxima")?;
    let mut offset = 0.0;
    let args = Nf4QuantizeAbsmax {
        absmax: absmax.into(),
        table: table[..].into(),
        codes: (&mut codes).into(),
        nested: (&mut nested).into(),
        offset: &mut offset,
    };
    nf4_quantize_absmax(device, args)?;
    let table = table.to_vec();
    Ok(OwnedAbsmax::Nested { codes, nested, table, offset, nested_blocksize: NESTED_BLOCKSIZE })
}
