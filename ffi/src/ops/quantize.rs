//! Quantization to 4 bits: `include/gradus/quantize.h`.

use gradus::Result;
use gradus::ops::*;

use crate::args::Op;
use crate::field::call;
use crate::sys::*;
use crate::tensor::Tensors;

impl Op for gradus_nf4_quantize_absmax_args {
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let offset = t.result("offset", self.offset)?;
        let mut mean = 0f32;
        call!(
            self,
            t,
            nf4_quantize_absmax(Nf4QuantizeAbsmax {
                absmax,
                table: t.read("nested_quant_map", &self.nested_quant_map)?,
                codes,
                nested: t.write("nested_absmax", &self.nested_absmax)?,
                offset: &mut mean,
            })
        )?;
        offset.set(mean as f64);
        Ok(())
    }
}
