//! What a decoder needs beside products: `include/gradus/matrix.h`.

use gradus::Result;
use gradus::ViewMut;
use gradus::dtype::Float;
use gradus::ops::*;

use crate::args::Op;
use crate::sys::*;
use crate::tensor::{Tensors, for_float, is_absent};

impl Op for gradus_rmsnorm_args {
    fn defaults(&mut self) {
        self.eps = 1e-6;
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "x", &self.x, T, {
            let args = RmsNorm::<T> {
                x: t.read("x", &self.x)?,
                weight: t.read("weight", &self.weight)?,
                eps: self.eps,
                y: t.write("y", &self.y)?,
                rstd: t.opt_write("rstd", &self.rstd)?,
            };
            t.disjoint()?;
            rmsnorm(t.device, args)
        })
    }
}

impl Op for gradus_rmsnorm_bwd_args {
    fn defaults(&mut self) {
        self.eps = 1e-6;
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "x", &self.x, T, {
            let args = RmsNormBwd::<T> {
                x: t.read("x", &self.x)?,
                weight: t.read("weight", &self.weight)?,
                eps: self.eps,
                dy: t.read("dy", &self.dy)?,
                residual: t.opt_read("residual", &self.residual)?,
                dx: t.write("dx", &self.dx)?,
                dweight: t.opt_write("dweight", &self.dweight)?,
            };
            t.disjoint()?;
            rmsnorm_bwd(t.device, args)
        })
    }
}

impl Op for gradus_rope_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "x", &self.x, T, {
            let args = Rope::<T> {
                x: t.write("x", &self.x)?,
                positions: t.read("positions", &self.positions)?,
                cos: t.read("cos", &self.cos)?,
                sin: t.read("sin", &self.sin)?,
                inverse: t.flag("inverse", self.inverse)?,
            };
            t.disjoint()?;
            rope(t.device, args)
        })
    }
}

/// 0 stands for 1 / sqrt(D).
fn scale_of(scale: f64, q: &gradus_tensor) -> f64 {
    if scale == 0.0 { 1.0 / (q.shape[2].max(1) as f64).sqrt() } else { scale }
}

impl Op for gradus_attention_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "q", &self.q, T, {
            let args = Attention::<T> {
                q: t.read("q", &self.q)?,
                k: t.read("k", &self.k)?,
                v: t.read("v", &self.v)?,
                cu_seqlens: t.read("cu_seqlens", &self.cu_seqlens)?,
                kv_rows: self.kv_rows(t)?,
                kv_len: t.read("kv_len", &self.kv_len)?,
                scale: scale_of(self.scale, &self.q),
                o: t.write("o", &self.o)?,
                lse: t.opt_write("lse", &self.lse)?,
            };
            t.disjoint()?;
            attention(t.device, args)
        })
    }
}

impl gradus_attention_args {
    fn kv_rows<'a>(&self, t: &Tensors<'a>) -> Result<KvRows<'a>> {
        match (is_absent(&self.kv_start), is_absent(&self.pages)) {
            (false, true) => Ok(KvRows::From(t.read("kv_start", &self.kv_start)?)),
            (true, false) => {
                let size = t.size("page_size", self.page_size)?;
                Ok(KvRows::Pages { table: t.read("pages", &self.pages)?, size })
            }
            (neither, _) => {
                let got =
                    if neither { "neither kv_start nor pages" } else { "both kv_start and pages" };
                Err(t.invalid("kv_start", got, "one of them"))
            }
        }
    }
}

impl Op for gradus_attention_bwd_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "q", &self.q, T, {
            let args = AttentionBwd::<T> {
                q: t.read("q", &self.q)?,
                k: t.read("k", &self.k)?,
                v: t.read("v", &self.v)?,
                cu_seqlens: t.read("cu_seqlens", &self.cu_seqlens)?,
                kv_start: t.read("kv_start", &self.kv_start)?,
                kv_len: t.read("kv_len", &self.kv_len)?,
                scale: scale_of(self.scale, &self.q),
                dout: t.read("dout", &self.dout)?,
                dq: t.write("dq", &self.dq)?,
                dk: t.write("dk", &self.dk)?,
                dv: t.write("dv", &self.dv)?,
            };
            t.disjoint()?;
            attention_bwd(t.device, args)
        })
    }
}

impl Op for gradus_swiglu_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "gate", &self.gate, T, {
            let args = Swiglu::<T> {
                gate: t.read("gate", &self.gate)?,
                up: t.read("up", &self.up)?,
                y: t.write("y", &self.y)?,
            };
            t.disjoint()?;
            swiglu(t.device, args)
        })
    }
}

impl Op for gradus_swiglu_bwd_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "gate", &self.gate, T, {
            let args = SwigluBwd::<T> {
                gate: t.read("gate", &self.gate)?,
                up: t.read("up", &self.up)?,
                dy: t.read("dy", &self.dy)?,
                dgate: t.write("dgate", &self.dgate)?,
                dup: t.write("dup", &self.dup)?,
            };
            t.disjoint()?;
            swiglu_bwd(t.device, args)
        })
    }
}

impl Op for gradus_embedding_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "table", &self.table, T, {
            let args = Embedding::<T> {
                ids: t.read("ids", &self.ids)?,
                table: t.read("table", &self.table)?,
                y: t.write("y", &self.y)?,
            };
            t.disjoint()?;
            embedding(t.device, args)
        })
    }
}

impl Op for gradus_embedding_bwd_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "dy", &self.dy, T, {
            let args = EmbeddingBwd::<T> {
                ids: t.read("ids", &self.ids)?,
                dy: t.read("dy", &self.dy)?,
                dtable: t.write("dtable", &self.dtable)?,
            };
            t.disjoint()?;
            embedding_bwd(t.device, args)
        })
    }
}

impl Op for gradus_copy_rows_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "x", &self.x, T, {
            let args = CopyRows::<T> {
                x: t.read("x", &self.x)?,
                from: t.opt_read("from_rows", &self.from_rows)?,
                to: t.opt_read("to_rows", &self.to_rows)?,
                y: t.write("y", &self.y)?,
            };
            t.disjoint()?;
            copy_rows(t.device, args)
        })
    }
}

impl Op for gradus_convert_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "x", &self.x, S, {
            match t.dtype("y", &self.y)? {
                DType::F32 => self.to::<S, f32>(t),
                DType::Bf16 => self.to::<S, bf16>(t),
                DType::F16 => self.to::<S, f16>(t),
                DType::F64 => self.to::<S, f64>(t),
                other => Err(t.invalid("y.dtype", other.name(), "f32, bf16, f16 or f64")),
            }
        })
    }
}

impl gradus_convert_args {
    fn to<S: Float, T: Float>(&self, t: &Tensors<'_>) -> Result<()> {
        let y: ViewMut<'_, T> = t.write("y", &self.y)?;
        let args = Convert::<S, T> { x: t.read("x", &self.x)?, y };
        t.disjoint()?;
        convert(t.device, args)
    }
}
