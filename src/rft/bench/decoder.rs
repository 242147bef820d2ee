//! The decoder's other ops.

use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{DType, bf16};

use super::case::{Case, Work, products, shape, table, wave};

/// Tokens, hidden size, columns of the MLP, vocabulary, head dimension, query and key heads.
const T: usize = 512;
const HIDDEN: usize = 1536;
const FFN: usize = 8960;
const VOCAB: usize = 32_000;
const HEAD: usize = 128;
const HEADS: usize = 12;
const KV_HEADS: usize = 2;

pub fn cases() -> Vec<Case> {
    #[allow(unused_mut, reason = "bf16 is left out of builds with debug assertions")]
    let mut cases = of::<f32>();
    #[cfg(not(debug_assertions))]
    cases.extend(of::<gradus::bf16>());
    cases
}

pub fn of<F: Float>() -> Vec<Case> {
    vec![
        norm::<F>(),
        norm_gradient::<F>(false),
        norm_gradient::<F>(true),
        rotate::<F>(),
        gate::<F>(),
        gate_gradient::<F>(),
        // A set has the whole table, a call touches few of its rows.
        embed::<F>().with_one_set(),
        embed_gradient::<F>().with_one_set(),
        copies::<F>("gather").with_one_set(),
        copies::<F>("scatter").with_one_set(),
        attend::<F>("causal", [1, 512, 512]),
        attend::<F>("decode", [8, 1, 512]),
        attend_gradient::<F>(256),
        conversion::<F>(),
    ]
}

fn tokens(columns: usize) -> String {
    format!("{T} x {columns}")
}

/// `2·T·D` elements, `4·T·D` flops.
fn norm<F: Float>() -> Case {
    let n = T * HIDDEN;
    let costs = [size_of::<F>() * (2 * n + HIDDEN), 4 * n];
    Case::new::<F>(["decoder", "rmsnorm"], tokens(HIDDEN), costs, Work::F64, move |device| {
        let (x, weight) = (wave::<F>(device, n, 1)?, wave::<F>(device, HIDDEN, 2)?);
        let mut y = Buffer::<F>::new(device, n)?;
        Ok(Box::new(move |device| {
            let args = RmsNorm {
                x: x.view(&shape(T, HIDDEN))?,
                weight: weight.view(&[HIDDEN as i64])?,
                eps: 1e-6,
                y: y.view_mut(&shape(T, HIDDEN))?,
                rstd: None,
            };
            rmsnorm(device, args)
        }))
    })
}

/// `3·T·D` elements, `T·D` more with a residual; `8·T·D` flops.
fn norm_gradient<F: Float>(residual: bool) -> Case {
    let n = T * HIDDEN;
    let costs = [size_of::<F>() * ((3 + residual as usize) * n + HIDDEN), 8 * n];
    let name = tokens(HIDDEN) + if residual { " residual" } else { "" };
    Case::new::<F>(["decoder", "rmsnorm_bwd"], name, costs, Work::F64, move |device| {
        let (x, weight) = (wave::<F>(device, n, 1)?, wave::<F>(device, HIDDEN, 2)?);
        let (dy, past) = (wave::<F>(device, n, 3)?, wave::<F>(device, n, 4)?);
        let mut dx = Buffer::<F>::new(device, n)?;
        Ok(Box::new(move |device| {
            let args = RmsNormBwd {
                x: x.view(&shape(T, HIDDEN))?,
                weight: weight.view(&[HIDDEN as i64])?,
                eps: 1e-6,
                dy: dy.view(&shape(T, HIDDEN))?,
                residual: residual.then(|| past.view(&shape(T, HIDDEN))).transpose()?,
                dx: dx.view_mut(&shape(T, HIDDEN))?,
                dweight: None,
            };
            rmsnorm_bwd(device, args)
        }))
    })
}

/// `2·T·H·D` elements and the tables, 3 flops a value.
fn rotate<F: Float>() -> Case {
    let (n, half) = (T * HEADS * HEAD, HEAD / 2);
    let costs = [size_of::<F>() * 2 * n + 4 * T * HEAD, 3 * n];
    Case::new::<F>(
        ["decoder", "rope"],
        format!("{T} x {HEADS} x {HEAD}"),
        costs,
        Work::F64,
        move |device| {
            let mut x = wave::<F>(device, n, 1)?;
            let positions = table(device, T, |i| i as i32)?;
            let angle =
                |i: usize| (i / half) as f64 * 1e4f64.powf(-((i % half) as f64) / half as f64);
            let cos = table(device, T * half, |i| angle(i).cos() as f32)?;
            let sin = table(device, T * half, |i| angle(i).sin() as f32)?;
            Ok(Box::new(move |device| {
                let args = Rope {
                    x: x.view_mut(&[T as i64, HEADS as i64, HEAD as i64])?,
                    positions: positions.view(&[T as i64])?,
                    cos: cos.view(&shape(T, half))?,
                    sin: sin.view(&shape(T, half))?,
                    inverse: false,
                };
                rope(device, args)
            }))
        },
    )
}

/// `3·T·F` elements; an exponential and a division an element are about 20 flops.
fn gate<F: Float>() -> Case {
    let n = T * FFN;
    let costs = [size_of::<F>() * 3 * n, 20 * n];
    Case::new::<F>(["decoder", "swiglu"], tokens(FFN), costs, Work::F64, move |device| {
        let (gate, up) = (wave::<F>(device, n, 1)?, wave::<F>(device, n, 2)?);
        let mut y = Buffer::<F>::new(device, n)?;
        Ok(Box::new(move |device| {
            let (gate, up) = (gate.view(&shape(T, FFN))?, up.view(&shape(T, FFN))?);
            swiglu(device, Swiglu { gate, up, y: y.view_mut(&shape(T, FFN))? })
        }))
    })
}

/// `5·T·F` elements.
fn gate_gradient<F: Float>() -> Case {
    let n = T * FFN;
    let costs = [size_of::<F>() * 5 * n, 26 * n];
    Case::new::<F>(["decoder", "swiglu_bwd"], tokens(FFN), costs, Work::F64, move |device| {
        let (gate, up) = (wave::<F>(device, n, 1)?, wave::<F>(device, n, 2)?);
        let dy = wave::<F>(device, n, 3)?;
        let (mut dgate, mut dup) = (Buffer::<F>::new(device, n)?, Buffer::<F>::new(device, n)?);
        Ok(Box::new(move |device| {
            let args = SwigluBwd {
                gate: gate.view(&shape(T, FFN))?,
                up: up.view(&shape(T, FFN))?,
                dy: dy.view(&shape(T, FFN))?,
                dgate: dgate.view_mut(&shape(T, FFN))?,
                dup: dup.view_mut(&shape(T, FFN))?,
            };
            swiglu_bwd(device, args)
        }))
    })
}

/// `2·T·D` elements.
fn embed<F: Float>() -> Case {
    let costs = [size_of::<F>() * 2 * T * HIDDEN, 0];
    Case::new::<F>(["decoder", "embedding"], tokens(HIDDEN), costs, Work::F32, move |device| {
        let ids = table(device, T, |i| (i * 7919 % VOCAB) as i32)?;
        let weight = wave::<F>(device, VOCAB * HIDDEN, 1)?;
        let mut y = Buffer::<F>::new(device, T * HIDDEN)?;
        Ok(Box::new(move |device| {
            let args = Embedding {
                ids: ids.view(&[T as i64])?,
                table: weight.view(&shape(VOCAB, HIDDEN))?,
                y: y.view_mut(&shape(T, HIDDEN))?,
            };
            embedding(device, args)
        }))
    })
}

/// `T·D` elements read, as many f32 read and written.
fn embed_gradient<F: Float>() -> Case {
    let n = T * HIDDEN;
    let costs = [(size_of::<F>() + 8) * n, n];
    Case::new::<F>(["decoder", "embedding_bwd"], tokens(HIDDEN), costs, Work::F32, move |device| {
        let ids = table(device, T, |i| (i * 7919 % VOCAB) as i32)?;
        let (dy, mut dtable) = (wave::<F>(device, n, 1)?, wave::<f32>(device, VOCAB * HIDDEN, 2)?);
        Ok(Box::new(move |device| {
            let args = EmbeddingBwd {
                ids: ids.view(&[T as i64])?,
                dy: dy.view(&shape(T, HIDDEN))?,
                dtable: dtable.view_mut(&shape(VOCAB, HIDDEN))?,
            };
            embedding_bwd(device, args)
        }))
    })
}

/// `2·R·D` elements and the table: hidden states gathered from, or keys scattered into, a matrix of
/// 16 times the rows.
fn copies<F: Float>(way: &'static str) -> Case {
    let (long, gather) = (16 * T, way == "gather");
    let columns = if gather { HIDDEN } else { KV_HEADS * HEAD };
    let costs = [size_of::<F>() * 2 * T * columns + 4 * T, 0];
    let name = format!("{way} {}", tokens(columns));
    Case::new::<F>(["decoder", "copy_rows"], name, costs, Work::F32, move |device| {
        let ids = table(device, T, |i| (i * 16 + i % 16) as i32)?;
        let (rows, target) = if gather { (long, T) } else { (T, long) };
        let x = wave::<F>(device, rows * columns, 1)?;
        let mut y = wave::<F>(device, target * columns, 2)?;
        Ok(Box::new(move |device| {
            let ids = ids.view(&[T as i64])?;
            let args = CopyRows {
                x: x.view(&shape(rows, columns))?,
                from_rows: gather.then_some(ids),
                to_rows: (!gather).then_some(ids),
                y: y.view_mut(&shape(target, columns))?,
            };
            copy_rows(device, args)
        }))
    })
}

/// Visible pairs of a query and a key: all keys before the last `l` queries, half of the rest.
fn visible(l: usize, keys: usize) -> usize {
    l * (keys - l) + l * (l + 1) / 2
}

/// `[sequences, queries, keys]`: q, k, v and o once, `4·D` flops a visible pair and head.
fn attend<F: Float>(way: &str, [b, l, keys]: [usize; 3]) -> Case {
    let (q_len, kv_len) = (b * l * HEADS * HEAD, b * keys * KV_HEADS * HEAD);
    let flops = 4 * HEAD * HEADS * b * visible(l, keys);
    let name = format!("{way} {b} x {l} of {keys}");
    let costs = [size_of::<F>() * 2 * (q_len + kv_len), flops];
    Case::new::<F>(["decoder", "attention"], name, costs, products::<F>(), move |device| {
        let q = wave::<F>(device, q_len, 1)?;
        let (k, v) = (wave::<F>(device, kv_len, 2)?, wave::<F>(device, kv_len, 3)?);
        let mut o = Buffer::<F>::new(device, q_len)?;
        let cu = table(device, b + 1, |i| (i * l) as i64)?;
        let start = table(device, b, |i| (i * keys) as i64)?;
        let len = table(device, b, |_| keys as i64)?;
        let wide = |rows: usize, heads: usize| [rows as i64, heads as i64, HEAD as i64];
        Ok(Box::new(move |device| {
            let args = Attention {
                q: q.view(&wide(b * l, HEADS))?,
                k: k.view(&wide(b * keys, KV_HEADS))?,
                v: v.view(&wide(b * keys, KV_HEADS))?,
                cu_seqlens: cu.view(&[b as i64 + 1])?,
                kv_rows: KvRows::From(start.view(&[b as i64])?),
                kv_len: len.view(&[b as i64])?,
                scale: (HEAD as f64).powf(-0.5),
                o: o.view_mut(&wide(b * l, HEADS))?,
                lse: None,
            };
            attention(device, args)
        }))
    })
}

/// One sequence: q, k, v, dout read, dq, dk, dv written, `10·D` flops a visible pair and head.
fn attend_gradient<F: Float>(l: usize) -> Case {
    let (q_len, kv_len) = (l * HEADS * HEAD, l * KV_HEADS * HEAD);
    let costs = [size_of::<F>() * (3 * q_len + 4 * kv_len), 10 * HEAD * HEADS * visible(l, l)];
    let name = format!("causal 1 x {l}");
    Case::new::<F>(["decoder", "attention_bwd"], name, costs, products::<F>(), move |device| {
        let (q, dout) = (wave::<F>(device, q_len, 1)?, wave::<F>(device, q_len, 4)?);
        let (k, v) = (wave::<F>(device, kv_len, 2)?, wave::<F>(device, kv_len, 3)?);
        let mut dq = Buffer::<F>::new(device, q_len)?;
        let (mut dk, mut dv) =
            (Buffer::<F>::new(device, kv_len)?, Buffer::<F>::new(device, kv_len)?);
        let cu = table(device, 2, |i| (i * l) as i64)?;
        let len = table(device, 1, |_| l as i64)?;
        let wide = move |heads: usize| [l as i64, heads as i64, HEAD as i64];
        Ok(Box::new(move |device| {
            let args = AttentionBwd {
                q: q.view(&wide(HEADS))?,
                k: k.view(&wide(KV_HEADS))?,
                v: v.view(&wide(KV_HEADS))?,
                cu_seqlens: cu.view(&[2])?,
                kv_start: cu.view(&[1])?,
                kv_len: len.view(&[1])?,
                prefix: None,
                scale: (HEAD as f64).powf(-0.5),
                dout: dout.view(&wide(HEADS))?,
                dq: dq.view_mut(&wide(HEADS))?,
                dk: dk.view_mut(&wide(KV_HEADS))?,
                dv: dv.view_mut(&wide(KV_HEADS))?,
            };
            attention_bwd(device, args)
        }))
    })
}

/// A matrix of parameters from f32 to bf16, or back.
fn conversion<F: Float>() -> Case {
    let n = FFN * HIDDEN;
    let back = F::DTYPE == DType::Bf16;
    let name = format!("{n} to {}", if back { "f32" } else { "bf16" });
    Case::new::<F>(["decoder", "convert"], name, [6 * n, 0], Work::F32, move |device| {
        let x = wave::<F>(device, n, 1)?;
        let (mut wide, mut narrow) = (
            Buffer::<f32>::new(device, if back { n } else { 0 })?,
            Buffer::<bf16>::new(device, if back { 0 } else { n })?,
        );
        let all = [n as i64];
        Ok(Box::new(move |device| match back {
            true => convert(device, Convert { x: x.view(&all)?, y: wide.view_mut(&all)? }),
            false => convert(device, Convert { x: x.view(&all)?, y: narrow.view_mut(&all)? }),
        }))
    })
}
