//! Products and the decoder's ops.

use gradus::device::DeviceBuffer;
use gradus::ops::*;
use gradus::quant::{Absmax, Nf4View, QuantType};
use gradus::{DType, Result, View, bf16};

use crate::Bench;

/// Tokens and columns of the row ops.
const T: usize = 64;
const D: usize = 1024;

pub fn report(bench: &Bench) -> Result<()> {
    for m in [1, 16, 64, 256] {
        products(bench, m)?;
    }
    adapters(bench)?;
    norms(bench)?;
    elements(bench)?;
    rows(bench)?;
    attentions(bench)
}

fn shape(rows: usize, columns: usize) -> [i64; 2] {
    [rows as i64, columns as i64]
}

impl Bench {
    /// `n` values of bf16 from -1 to 1.
    fn wave(&self, n: usize) -> Result<DeviceBuffer<bf16>> {
        let value = |i: usize| bf16::from_f32((i * 7919 % 2003) as f32 / 1001.0 - 1.0);
        DeviceBuffer::from_host(&self.gpu, &(0..n).map(value).collect::<Vec<_>>())
    }

    fn zeros(&self, n: usize) -> Result<DeviceBuffer<bf16>> {
        DeviceBuffer::from_host(&self.gpu, &vec![bf16::ZERO; n])
    }

    fn zeros_f32(&self, n: usize) -> Result<DeviceBuffer<f32>> {
        DeviceBuffer::from_host(&self.gpu, &vec![0f32; n])
    }
}

/// Dense and 4-bit with 8-bit maxima, both ways, with a residual and without.
fn products(bench: &Bench, m: usize) -> Result<()> {
    let (n, k) = (1024usize, 4096usize);
    let (x, w, r) = (bench.wave(m * k)?, bench.wave(n * k)?, bench.wave(m * n)?);
    let (mut y, mut dx) = (bench.zeros(m * n)?, bench.zeros(m * k)?);
    let bytes = |elements: usize| (2 * elements) as u64;
    let name = format!("bf16 {m} x {n} x {k}");
    bench.report(&format!("{name} residual"), bytes(m * k + n * k + 2 * m * n), |d| {
        let args = Matmul {
            x: x.view(&shape(m, k))?,
            w: w.view(&shape(n, k))?,
            bias: None,
            lora: &[],
            adapter: None,
            s: None,
            residual: Some(r.view(&shape(m, n))?),
            y: y.view_mut(&shape(m, n))?,
        };
        matmul(d, args)
    })?;
    let packed: Vec<u8> = (0..n * k / 2).map(|i| (i * 151 % 256) as u8).collect();
    let packed = DeviceBuffer::from_host(&bench.gpu, &packed)?;
    let codes: Vec<u8> = (0..n * k / 64).map(|i| (i * 91 % 256) as u8).collect();
    let codes = DeviceBuffer::from_host(&bench.gpu, &codes)?;
    let nested = DeviceBuffer::from_host(&bench.gpu, &vec![0.125f32; n * k / 64 / 256])?;
    let table = DeviceBuffer::from_host(&bench.gpu, &[0.5f32; 256])?;
    let code = DeviceBuffer::from_host(&bench.gpu, QuantType::Nf4.code())?;
    let w4 = Nf4View {
        packed: packed.view(&[(n * k / 2) as i64])?,
        absmax: Absmax::Nested {
            codes: codes.view(&[(n * k / 64) as i64])?,
            nested: nested.view(&[(n * k / 64 / 256) as i64])?,
            table: table.view(&[256])?,
            offset: 0.0625,
            nested_blocksize: 256,
        },
        code: code.view(&[16])?,
        n,
        k,
        blocksize: 64,
        dtype: DType::Bf16,
    };
    let weight = (n * k / 2 + n * k / 64 + n * k / 64 / 256 * 4) as u64;
    bench.report(&name, weight + bytes(m * k + m * n), |d| {
        let (x, y) = (x.view(&shape(m, k))?, y.view_mut(&shape(m, n))?);
        let (bias, adapter, s, residual) = (None, None, None, None);
        nf4_matmul(d, Nf4Matmul { x, w: w4, bias, lora: &[], adapter, s, residual, y })
    })?;
    bench.report(&format!("{name}, dx"), weight + bytes(m * k + m * n), |d| {
        let (dy, dx) = (r.view(&shape(m, n))?, dx.view_mut(&shape(m, k))?);
        let args = Nf4MatmulDx { dy, w: w4, lora: &[], adapter: None, accumulate: false, dx };
        nf4_matmul_dx(d, args)
    })
}

/// The low-rank part of the forward pass and the adapter's gradients.
fn adapters(bench: &Bench) -> Result<()> {
    let (m, n, k, r) = (64usize, 1024usize, 4096usize, 16usize);
    let (x, w, dy) = (bench.wave(m * k)?, bench.wave(n * k)?, bench.wave(m * n)?);
    let (a, b, mut y) = (bench.wave(r * k)?, bench.wave(n * r)?, bench.zeros(m * n)?);
    let mut s = bench.zeros_f32(m * r)?;
    let lora = Lora { a: a.view(&shape(r, k))?, b: b.view(&shape(n, r))?, scale: 0.5 };
    let elements = m * k + n * k + m * n + r * (n + k);
    let name = format!("bf16 {m} x {n} x {k} r{r}");
    bench.report(&name, (2 * elements + 4 * m * r) as u64, |d| {
        let args = Matmul {
            x: x.view(&shape(m, k))?,
            w: w.view(&shape(n, k))?,
            bias: None,
            lora: &[lora],
            adapter: None,
            s: Some(s.view_mut(&shape(m, r))?),
            residual: None,
            y: y.view_mut(&shape(m, n))?,
        };
        matmul(d, args)
    })?;
    let (mut da, mut db) = (bench.zeros_f32(r * k)?, bench.zeros_f32(n * r)?);
    let elements = m * (k + 2 * n) + r * n;
    bench.report(&name, (2 * elements + 4 * m * r + 8 * r * (k + n)) as u64, |d| {
        let args = LoraGrad {
            x: x.view(&shape(m, k))?,
            dy: dy.view(&shape(m, n))?,
            s: s.view(&shape(m, r))?,
            lora,
            adapter: None,
            index: 0,
            da: da.view_mut(&shape(r, k))?,
            db: db.view_mut(&shape(n, r))?,
        };
        lora_grad(d, args)
    })
}

fn norms(bench: &Bench) -> Result<()> {
    let (x, dy, r, weight) =
        (bench.wave(T * D)?, bench.wave(T * D)?, bench.wave(T * D)?, bench.wave(D)?);
    let mut out = bench.zeros(T * D)?;
    let (all, weight) = (shape(T, D), weight.view(&[D as i64])?);
    bench.report(&format!("bf16 {T} x {D}"), (2 * (2 * T * D + D)) as u64, |d| {
        let (x, y) = (x.view(&all)?, out.view_mut(&all)?);
        rmsnorm(d, RmsNorm { x, weight, eps: 1e-6, y, rstd: None })
    })?;
    bench.report(&format!("bf16 {T} x {D} residual"), (2 * (4 * T * D + D)) as u64, |d| {
        let args = RmsNormBwd {
            x: x.view(&all)?,
            weight,
            eps: 1e-6,
            dy: dy.view(&all)?,
            residual: Some(r.view(&all)?),
            dx: out.view_mut(&all)?,
            dweight: None,
        };
        rmsnorm_bwd(d, args)
    })
}

/// Rotary embedding, SwiGLU and its gradient, score vectors, conversion.
fn elements(bench: &Bench) -> Result<()> {
    let (heads, head) = (8usize, 128usize);
    let mut x = bench.wave(T * heads * head)?;
    let positions: Vec<i32> = (0..T as i32).collect();
    let positions = DeviceBuffer::from_host(&bench.gpu, &positions)?;
    let table = DeviceBuffer::from_host(&bench.gpu, &vec![0.5f32; T * head / 2])?;
    let bytes = 4 * T * heads * head + 4 * T * head;
    bench.report(&format!("bf16 {T} x {heads} x {head}"), bytes as u64, |d| {
        let (cos, sin) = (table.view(&shape(T, head / 2))?, table.view(&shape(T, head / 2))?);
        let x = x.view_mut(&[T as i64, heads as i64, head as i64])?;
        rope(d, Rope { x, positions: positions.view(&[T as i64])?, cos, sin, inverse: false })
    })?;
    let (a, b, c) = (bench.wave(T * D)?, bench.wave(T * D)?, bench.wave(T * D)?);
    let (mut y, mut z) = (bench.zeros(T * D)?, bench.zeros(T * D)?);
    let (all, name) = (shape(T, D), format!("bf16 {T} x {D}"));
    bench.report(&name, (6 * T * D) as u64, |d| {
        let (gate, up) = (a.view(&all)?, b.view(&all)?);
        swiglu(d, Swiglu { gate, up, y: y.view_mut(&all)? })
    })?;
    bench.report(&name, (10 * T * D) as u64, |d| {
        let (gate, up, dy) = (a.view(&all)?, b.view(&all)?, c.view(&all)?);
        let (dgate, dup) = (y.view_mut(&all)?, z.view_mut(&all)?);
        swiglu_bwd(d, SwigluBwd { gate, up, dy, dgate, dup })
    })?;
    let dlogp = DeviceBuffer::from_host(&bench.gpu, &vec![0.25f32; T])?;
    bench.report(&name, (4 * T * D + 4 * T) as u64, |d| {
        let (score, dlogp) = (a.view(&all)?, dlogp.view(&[T as i64])?);
        score_scale(d, ScoreScale { score, dlogp, dhidden: y.view_mut(&all)? })
    })?;
    let n = 1 << 18;
    let wide = DeviceBuffer::from_host(&bench.gpu, &vec![0.1f32; n])?;
    let mut narrow = bench.zeros(n)?;
    bench.report(&format!("{n}"), (6 * n) as u64, |d| {
        convert(d, Convert { x: wide.view(&[n as i64])?, y: narrow.view_mut(&[n as i64])? })
    })
}

/// Embedding and its gradient, rows gathered.
fn rows(bench: &Bench) -> Result<()> {
    let vocab = 256usize;
    let ids: Vec<i32> = (0..T).map(|i| (i * 37 % vocab) as i32).collect();
    let ids = DeviceBuffer::from_host(&bench.gpu, &ids)?;
    let (table, mut y) = (bench.wave(vocab * D)?, bench.zeros(T * D)?);
    let (of_ids, all): (View<'_, i32>, _) = (ids.view(&[T as i64])?, shape(T, D));
    let name = format!("bf16 {T} of {vocab} x {D}");
    bench.report(&name, (4 * T * D) as u64, |d| {
        let (table, y) = (table.view(&shape(vocab, D))?, y.view_mut(&all)?);
        embedding(d, Embedding { ids: of_ids, table, y })
    })?;
    bench.report(&name, (4 * T * D) as u64, |d| {
        let (x, y) = (table.view(&shape(vocab, D))?, y.view_mut(&all)?);
        copy_rows(d, CopyRows { x, from_rows: Some(of_ids), to_rows: None, y })
    })?;
    let mut dtable = bench.zeros_f32(vocab * D)?;
    bench.report(&name, (2 * T * D + 8 * T * D) as u64, |d| {
        let (dy, dtable) = (y.view(&all)?, dtable.view_mut(&shape(vocab, D))?);
        embedding_bwd(d, EmbeddingBwd { ids: of_ids, dy, dtable })
    })
}

/// One causal sequence, and its gradient.
fn attentions(bench: &Bench) -> Result<()> {
    let (l, heads, kv_heads, head) = (64usize, 4usize, 2usize, 64usize);
    let (q, dout) = (bench.wave(l * heads * head)?, bench.wave(l * heads * head)?);
    let (k, v) = (bench.wave(l * kv_heads * head)?, bench.wave(l * kv_heads * head)?);
    let (mut o, mut dk, mut dv) = (
        bench.zeros(l * heads * head)?,
        bench.zeros(l * kv_heads * head)?,
        bench.zeros(l * kv_heads * head)?,
    );
    let cu = DeviceBuffer::from_host(&bench.gpu, &[0i64, l as i64])?;
    let len = DeviceBuffer::from_host(&bench.gpu, &[l as i64])?;
    let wide = |heads: usize| [l as i64, heads as i64, head as i64];
    let (cu_seqlens, kv_start, kv_len) = (cu.view(&[2])?, cu.view(&[1])?, len.view(&[1])?);
    let name = format!("bf16 {l} x {heads} over {kv_heads} x {head}");
    bench.report(&name, (4 * l * head * (heads + kv_heads)) as u64, |d| {
        let args = Attention {
            q: q.view(&wide(heads))?,
            k: k.view(&wide(kv_heads))?,
            v: v.view(&wide(kv_heads))?,
            cu_seqlens,
            kv_rows: KvRows::From(kv_start),
            kv_len,
            scale: 0.125,
            o: o.view_mut(&wide(heads))?,
            lse: None,
        };
        attention(d, args)
    })?;
    bench.report(&name, (2 * l * head * (3 * heads + 4 * kv_heads)) as u64, |d| {
        let args = AttentionBwd {
            q: q.view(&wide(heads))?,
            k: k.view(&wide(kv_heads))?,
            v: v.view(&wide(kv_heads))?,
            cu_seqlens,
            kv_start,
            kv_len,
            prefix: None,
            scale: 0.125,
            dout: dout.view(&wide(heads))?,
            dq: o.view_mut(&wide(heads))?,
            dk: dk.view_mut(&wide(kv_heads))?,
            dv: dv.view_mut(&wide(kv_heads))?,
        };
        attention_bwd(d, args)
    })
}
