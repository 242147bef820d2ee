//! Products, 4-bit weights and adapters: `include/gradus/matrix.h`.

use gradus::Result;
use gradus::ops::*;
use gradus::quant::{Nf4View, QuantType};

use crate::args::Op;
use crate::memory::room;
use crate::quant::{adapter, adapters, nf4};
use crate::sys::*;
use crate::tensor::{Tensors, for_float};

/// The weights of a mixture's experts.
fn experts<'a>(t: &Tensors<'a>, at: *const gradus_nf4, count: i64) -> Result<Vec<Nf4View<'a>>> {
    let all = t.list("w", at, count)?;
    let mut found = room(t.op, all.len())?;
    for (i, one) in all.iter().enumerate() {
        found.push(nf4(t, &format!("w[{i}]"), one)?);
    }
    Ok(found)
}

impl Op for gradus_nf4_quantize_args {
    fn defaults(&mut self) {
        self.blocksize = 64;
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "x", &self.x, T, {
            let args = Nf4Quantize::<T> {
                x: t.read("x", &self.x)?,
                quant_type: t.choice(
                    "quant_type",
                    self.quant_type,
                    &[QuantType::Nf4, QuantType::Fp4],
                )?,
                blocksize: t.size("blocksize", self.blocksize)?,
                packed: t.write("packed", &self.packed)?,
                absmax: t.write("absmax", &self.absmax)?,
            };
            t.disjoint()?;
            nf4_quantize(t.device, args)
        })
    }
}

impl Op for gradus_nf4_quantize_absmax_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let offset = t.result("offset", self.offset)?;
        let mut mean = 0f32;
        let args = Nf4QuantizeAbsmax {
            absmax: t.read("absmax", &self.absmax)?,
            table: t.read("nested_quant_map", &self.nested_quant_map)?,
            codes: t.write("codes", &self.codes)?,
            nested: t.write("nested_absmax", &self.nested_absmax)?,
            offset: &mut mean,
        };
        t.disjoint()?;
        nf4_quantize_absmax(t.device, args)?;
        offset.set(mean as f64);
        Ok(())
    }
}

impl Op for gradus_nf4_dequantize_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "y", &self.y, T, {
            let args = Nf4Dequantize::<T> {
                w: nf4(t, "w", t.given("w", self.w)?)?,
                y: t.write("y", &self.y)?,
            };
            t.disjoint()?;
            nf4_dequantize(t.device, args)
        })
    }
}

impl Op for gradus_nf4_matmul_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "x", &self.x, T, {
            let args = Nf4Matmul::<T> {
                x: t.read("x", &self.x)?,
                w: nf4(t, "w", t.given("w", self.w)?)?,
                bias: t.opt_read("bias", &self.bias)?,
                lora: &adapters(t, self.lora, self.lora_count)?,
                adapter: t.opt_read("adapter", &self.adapter)?,
                s: t.opt_write("s", &self.s)?,
                residual: t.opt_read("residual", &self.residual)?,
                y: t.write("y", &self.y)?,
            };
            t.disjoint()?;
            nf4_matmul(t.device, args)
        })
    }
}

impl Op for gradus_nf4_matmul_dx_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "dy", &self.dy, T, {
            let args = Nf4MatmulDx::<T> {
                dy: t.read("dy", &self.dy)?,
                w: nf4(t, "w", t.given("w", self.w)?)?,
                lora: &adapters(t, self.lora, self.lora_count)?,
                adapter: t.opt_read("adapter", &self.adapter)?,
                accumulate: t.flag("accumulate", self.accumulate)?,
                dx: t.write("dx", &self.dx)?,
            };
            t.disjoint()?;
            nf4_matmul_dx(t.device, args)
        })
    }
}

impl Op for gradus_nf4_matmul_grouped_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "x", &self.x, T, {
            let args = Nf4MatmulGrouped::<T> {
                x: t.read("x", &self.x)?,
                offsets: t.read("offsets", &self.offsets)?,
                w: &experts(t, self.w, self.w_count)?,
                y: t.write("y", &self.y)?,
            };
            t.disjoint()?;
            nf4_matmul_grouped(t.device, args)
        })
    }
}

impl Op for gradus_nf4_matmul_grouped_dx_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "dy", &self.dy, T, {
            let args = Nf4MatmulGroupedDx::<T> {
                dy: t.read("dy", &self.dy)?,
                offsets: t.read("offsets", &self.offsets)?,
                w: &experts(t, self.w, self.w_count)?,
                accumulate: t.flag("accumulate", self.accumulate)?,
                dx: t.write("dx", &self.dx)?,
            };
            t.disjoint()?;
            nf4_matmul_grouped_dx(t.device, args)
        })
    }
}

impl Op for gradus_matmul_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "x", &self.x, T, {
            let args = Matmul::<T> {
                x: t.read("x", &self.x)?,
                w: t.read("w", &self.w)?,
                bias: t.opt_read("bias", &self.bias)?,
                lora: &adapters(t, self.lora, self.lora_count)?,
                adapter: t.opt_read("adapter", &self.adapter)?,
                s: t.opt_write("s", &self.s)?,
                residual: t.opt_read("residual", &self.residual)?,
                y: t.write("y", &self.y)?,
            };
            t.disjoint()?;
            matmul(t.device, args)
        })
    }
}

impl Op for gradus_matmul_dx_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "dy", &self.dy, T, {
            let args = MatmulDx::<T> {
                dy: t.read("dy", &self.dy)?,
                w: t.read("w", &self.w)?,
                lora: &adapters(t, self.lora, self.lora_count)?,
                adapter: t.opt_read("adapter", &self.adapter)?,
                accumulate: t.flag("accumulate", self.accumulate)?,
                dx: t.write("dx", &self.dx)?,
            };
            t.disjoint()?;
            matmul_dx(t.device, args)
        })
    }
}

impl Op for gradus_matmul_dw_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "dy", &self.dy, T, {
            let args = MatmulDw::<T> {
                dy: t.read("dy", &self.dy)?,
                x: t.read("x", &self.x)?,
                dw: t.write("dw", &self.dw)?,
                dbias: t.opt_write("dbias", &self.dbias)?,
            };
            t.disjoint()?;
            matmul_dw(t.device, args)
        })
    }
}

impl Op for gradus_lora_grad_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "x", &self.x, T, {
            let args = LoraGrad::<T> {
                x: t.read("x", &self.x)?,
                dy: t.read("dy", &self.dy)?,
                s: t.read("s", &self.s)?,
                lora: adapter(t, "lora", t.given("lora", self.lora)?)?,
                adapter: t.opt_read("adapter", &self.adapter)?,
                index: self.index,
                da: t.write("da", &self.da)?,
                db: t.write("db", &self.db)?,
            };
            t.disjoint()?;
            lora_grad(t.device, args)
        })
    }
}

/// Sizes of the structs of 4-bit weights and adapters, which `gradus.h` itself has.
pub(super) const STRUCTS: [(&str, usize); 3] = [
    ("tensor", size_of::<gradus_tensor>()),
    ("nf4", size_of::<gradus_nf4>()),
    ("lora", size_of::<gradus_lora>()),
];
