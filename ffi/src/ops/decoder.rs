//! The other ops of a decoder: `include/gradus/decoder.h`.

use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Result, ViewMut};

use crate::args::Op;
use crate::field::{for_dtype, impl_op};
use crate::sys::*;
use crate::tensor::{Tensors, is_absent};

impl_op!(gradus_dropout_args {
    float x,
    defaults { scale: 1.0 },
    |args, t| dropout(Dropout {
        x, streams, positions, p, scale,
        key: args.key as u64,
        accumulate, y,
    })
});

/// 0 stands for 1 / sqrt(D).
fn scale_of(scale: f64, q: &gradus_tensor) -> f64 {
    if scale == 0.0 { 1.0 / (q.shape[2].max(1) as f64).sqrt() } else { scale }
}

/// The keys that sequences share, if any do.
fn prefix<'a>(
    t: &Tensors<'a>,
    start: &gradus_tensor,
    len: &gradus_tensor,
) -> Result<Option<Prefix<'a>>> {
    match (is_absent(start), is_absent(len)) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(Prefix {
            start: t.read("prefix_start", start)?,
            len: t.read("prefix_len", len)?,
        })),
        (true, false) => {
            Err(t.invalid("prefix_start", "nothing", "the rows that prefix_len counts"))
        }
        (false, true) => {
            Err(t.invalid("prefix_len", "nothing", "how many rows from prefix_start on"))
        }
    }
}

impl gradus_attention_args {
    fn kv_rows<'a>(&self, t: &Tensors<'a>) -> Result<KvRows<'a>> {
        let prefix = prefix(t, &self.prefix_start, &self.prefix_len)?;
        match (is_absent(&self.kv_start), is_absent(&self.pages)) {
            (false, true) => {
                let start = t.read("kv_start", &self.kv_start)?;
                Ok(match prefix {
                    None => KvRows::From(start),
                    Some(prefix) => KvRows::Prefixed { prefix, start },
                })
            }
            (true, false) if prefix.is_some() => Err(t.invalid(
                "prefix_start",
                "a prefix of keys in pages",
                "kv_start, or pages alone",
            )),
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

impl_op!(gradus_attention_args {
    float q,
    |args, t| attention(Attention {
        q, k, v, cu_seqlens,
        kv_rows: args.kv_rows(t)?,
        kv_len,
        scale: scale_of(args.scale, &args.q),
        o, lse,
    })
});

impl_op!(gradus_attention_bwd_args {
    float q,
    |args, t| attention_bwd(AttentionBwd {
        q, k, v, cu_seqlens, kv_start, kv_len,
        prefix: prefix(t, &args.prefix_start, &args.prefix_len)?,
        scale: scale_of(args.scale, &args.q),
        dout, dq, dk, dv,
    })
});

impl Op for gradus_convert_args {
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_dtype!(float t, "x", &self.x, S, {
            for_dtype!(float t, "y", &self.y, T, self.to::<S, T>(t))
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
