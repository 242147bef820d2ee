//! One transformer block, forward and backward.
//!
//! ```text
//! h = norm1(x)            q, k, v = Wq·h, Wk·h, Wv·h      (q, k) <- rope(qk_norm(q, k))
//! m = x + Wo·attention(q, k, v)
//! g = norm2(m)            y = m + Wd·(silu(Wg·g) ⊙ Wu·g)
//! ```
//! The backward pass reads the same lines upwards; what it needs is on the [`LayerTape`]. Sums with
//! the residual stream happen inside the product (or the norm's gradient) that ends a line.

use crate::model::batch::{Batch, Keys, shared};
use crate::model::config::ModelConfig;
use crate::model::kv_cache::KvCache;
use crate::model::linear::{Fan, LayerContext, Linear, LinearCall, Output, SavedInput};
use crate::model::params::{Gradients, ParamId};
use crate::model::rope_table::RopeTable;
use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{
    Attention, AttentionBwd, RmsNorm, RmsNormBwd, Rope, RopeStore, SwigluBwd, attention,
    attention_bwd, rmsnorm, rmsnorm_bwd, rope, rope_store, swiglu_bwd,
};

/// What a backward pass finds of a block: its input, and what it computed from it, unless that is to be
/// computed again.
#[derive(Debug)]
pub struct LayerTape<T = f32> {
    x: Buffer<T>,
    computed: Option<BlockTape<T>>,
}

/// What a block computed on the way forward.
#[derive(Debug)]
struct BlockTape<T> {
    attention: AttentionTape<T>,
    mid: Buffer<T>,
    mlp: MlpTape<T>,
}

/// The attention half. `s` are scale·x·Aᵀ of q, k, v, o.
#[derive(Debug)]
struct AttentionTape<T> {
    h: Buffer<T>,
    q: Projected<T>,
    k: Projected<T>,
    v: Buffer<T>,
    attn: Buffer<T>,
    s: [Option<Buffer<f32>>; 4],
}

/// Queries or keys as attention takes them, and before their norm, if they have one.
#[derive(Debug)]
struct Projected<T> {
    raw: Option<Buffer<T>>,
    rotated: Buffer<T>,
}

/// The other half. `s` are those of gate, up, down.
#[derive(Debug)]
struct MlpTape<T> {
    g: Buffer<T>,
    gate: Buffer<T>,
    up: Buffer<T>,
    act: Buffer<T>,
    s: [Option<Buffer<f32>>; 3],
}

/// All a backward pass needs.
#[derive(Debug)]
pub struct Tape<T = f32> {
    pub(crate) layers: Vec<LayerTape<T>>,
    /// Input of the final norm.
    pub(crate) x: Option<Buffer<T>>,
    pub(crate) recompute: bool,
}

impl<T> Tape<T> {
    /// An empty tape for a forward pass. With `recompute` it keeps the input of each block alone, and
    /// the backward pass computes a block's activations again when it gets there (Chen et al. 2016,
    /// arXiv:1604.06174): the same gradients, bit for bit, for one more pass forward.
    pub fn new(recompute: bool) -> Tape<T> {
        Tape { layers: Vec::new(), x: None, recompute }
    }

    /// What a forward pass keeps for it.
    pub(crate) fn keeps(&self) -> Keep {
        if self.recompute { Keep::Inputs } else { Keep::All }
    }
}

/// What a forward pass keeps of each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing: no gradients are wanted.
    Nothing,
    /// Its input.
    Inputs,
    /// All that its gradients need.
    All,
}

/// A block's parameters.
#[derive(Debug)]
pub(crate) struct Layer {
    pub norm1: ParamId,
    pub norm2: ParamId,
    pub q_norm: Option<ParamId>,
    pub k_norm: Option<ParamId>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// What a block needs to know of its model and of the pass.
pub(crate) struct BlockContext<'a, T> {
    pub cx: LayerContext<'a, T>,
    pub config: &'a ModelConfig,
    pub rope: &'a RopeTable,
    pub batch: &'a Batch,
    /// With the adapters, or as the base model.
    pub adapt: bool,
    /// What goes on the tape.
    pub keep: Keep,
}

impl<T: Float> BlockContext<'_, T> {
    pub fn norm(&self, x: &Buffer<T>, weight: ParamId) -> Result<Buffer<T>> {
        let params = self.cx.params;
        let weight = params.vector(params.chosen(weight, self.adapt));
        let d = weight.extent(0);
        let mut y = self.cx.allocator.alloc(x.len())?;
        let (x, eps) = (x.rows(d)?, self.config.norm_eps);
        rmsnorm(self.cx.device, RmsNorm { x, weight, eps, y: y.rows_mut(d)?, rstd: None })?;
        Ok(y)
    }

    /// `residual` + the gradient of [`BlockContext::norm`]; the gain's goes into `gradients`.
    pub fn norm_backward(
        &self,
        x: &Buffer<T>,
        weight: ParamId,
        dy: &Buffer<T>,
        residual: Option<&Buffer<T>>,
        gradients: &mut Gradients,
    ) -> Result<Buffer<T>> {
        let gain = self.cx.params.vector(weight);
        let d = gain.extent(0);
        let mut dx = self.cx.allocator.alloc(x.len())?;
        let args = RmsNormBwd {
            x: x.rows(d)?,
            weight: gain,
            eps: self.config.norm_eps,
            dy: dy.rows(d)?,
            residual: residual.map(|r| r.rows(d)).transpose()?,
            dx: dx.rows_mut(d)?,
            dweight: gradients.get_mut(weight).map(Buffer::all_mut),
        };
        rmsnorm_bwd(self.cx.device, args)?;
        Ok(dx)
    }

    /// Several maps of one input; with a place for it, SwiGLU of two.
    fn fan<const N: usize>(
        &self,
        maps: [&Linear; N],
        x: &Buffer<T>,
        gated: Option<&mut Buffer<T>>,
    ) -> Result<[Output<T>; N]> {
        let keep = self.keep == Keep::All;
        Fan { maps, at: self.cx, x, adapt: self.adapt, keep }.forward(gated)
    }

    /// residual + linear(x).
    fn linear_add(
        &self,
        residual: &Buffer<T>,
        linear: &Linear,
        x: &Buffer<T>,
    ) -> Result<(Buffer<T>, Option<Buffer<f32>>)> {
        let keep = self.keep == Keep::All;
        let call = LinearCall { adapt: self.adapt, keep, residual: Some(residual) };
        linear.forward(self.cx, x, call)
    }

    /// Gradient of a linear map's input; its parameters' go into `gradients`.
    fn linear_backward(
        &self,
        linear: &Linear,
        saved: SavedInput<'_, T>,
        dy: &Buffer<T>,
        gradients: &mut Gradients,
    ) -> Result<Buffer<T>> {
        let mut dx = self.cx.allocator.alloc(saved.x.len())?;
        linear.parameter_gradients(self.cx, saved, dy, gradients)?;
        linear.input_gradient(self.cx, dy, false, &mut dx)?;
        Ok(dx)
    }

    /// The gradient of queries or keys before their rotation, in the place of that behind it.
    fn rotate_back(&self, x: &mut Buffer<T>, heads: usize) -> Result<()> {
        let half = self.rope.half;
        let args = Rope {
            x: x.view_mut(&self.heads(x.len(), heads))?,
            positions: self.batch.positions.all(),
            cos: self.rope.cos.rows(half)?,
            sin: self.rope.sin.rows(half)?,
            inverse: true,
        };
        rope(self.cx.device, args)
    }

    /// Rotates queries and keys, and puts keys and values into layer `index` of the cache, if there is one.
    fn rotate_and_store(
        &self,
        cache: &mut Option<&mut KvCache<T>>,
        index: usize,
        [q, k]: [&mut Buffer<T>; 2],
        v: &Buffer<T>,
    ) -> Result<()> {
        let half = self.rope.half;
        let (wide, narrow) =
            (self.heads(q.len(), self.config.heads), self.heads(k.len(), self.config.kv_heads));
        let args = RopeStore {
            q: q.view_mut(&wide)?,
            k: k.view_mut(&narrow)?,
            positions: self.batch.positions.all(),
            cos: self.rope.cos.rows(half)?,
            sin: self.rope.sin.rows(half)?,
            cache: self.batch.cache_rows(cache, index, v)?,
        };
        rope_store(self.cx.device, args)
    }

    /// Queries or keys, normalized if they are, and what they were before.
    fn normalized(&self, norm: Option<ParamId>, y: Buffer<T>) -> Result<Projected<T>> {
        let Some(norm) = norm else { return Ok(Projected { raw: None, rotated: y }) };
        Ok(Projected { rotated: self.norm(&y, norm)?, raw: Some(y) })
    }

    /// Extents of `len` values as heads.
    fn heads(&self, len: usize, heads: usize) -> [i64; 3] {
        let d = self.config.head_dim;
        [(len / (heads * d)) as i64, heads as i64, d as i64]
    }

    fn attention_scale(&self) -> f64 {
        1.0 / (self.config.head_dim as f64).sqrt()
    }
}

/// The names under which adapters find a block's linear maps, in tape order.
pub(crate) const LINEAR_NAMES: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl Layer {
    /// The linear maps in tape order.
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        [
            &mut self.q,
            &mut self.k,
            &mut self.v,
            &mut self.o,
            &mut self.gate,
            &mut self.up,
            &mut self.down,
        ]
    }

    /// The linear maps in tape order, read only.
    pub fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// Runs the block number `index` on `x`; returns its output and, if something is kept, its tape.
    pub fn forward<T: Float>(
        &self,
        c: &BlockContext<'_, T>,
        index: usize,
        cache: &mut Option<&mut KvCache<T>>,
        x: Buffer<T>,
    ) -> Result<(Buffer<T>, Option<LayerTape<T>>)> {
        let (mid, attention) = self.attention_block(c, index, cache, &x)?;
        let kept = (c.keep == Keep::All).then_some(attention);
        let (y, mlp) = self.mlp(c, &mid)?;
        let computed = kept.map(|attention| BlockTape { attention, mid, mlp });
        let tape = (c.keep != Keep::Nothing).then_some(LayerTape { x, computed });
        Ok((y, tape))
    }

    /// The input of the block number `index` and what it computed, again if the tape does not have it.
    fn replayed<T: Float>(
        &self,
        c: &BlockContext<'_, T>,
        index: usize,
        tape: LayerTape<T>,
    ) -> Result<(Buffer<T>, BlockTape<T>)> {
        if let Some(computed) = tape.computed {
            return Ok((tape.x, computed));
        }
        let (mid, attention) = self.attention_block(c, index, &mut None, &tape.x)?;
        let (_, mlp) = self.mlp(c, &mid)?;
        Ok((tape.x, BlockTape { attention, mid, mlp }))
    }

    /// x + Wo·attention(q, k, v).
    fn attention_block<T: Float>(
        &self,
        c: &BlockContext<'_, T>,
        index: usize,
        cache: &mut Option<&mut KvCache<T>>,
        x: &Buffer<T>,
    ) -> Result<(Buffer<T>, AttentionTape<T>)> {
        let h = c.norm(x, self.norm1)?;
        let [(q, sq), (k, sk), (v, sv)] = c.fan([&self.q, &self.k, &self.v], &h, None)?;
        let (mut q, mut k) = (c.normalized(self.q_norm, q)?, c.normalized(self.k_norm, k)?);
        c.rotate_and_store(cache, index, [&mut q.rotated, &mut k.rotated], &v)?;
        let attn = self.attend(c, index, cache, [&q.rotated, &k.rotated, &v])?;
        let (mid, so) = c.linear_add(x, &self.o, &attn)?;
        Ok((mid, AttentionTape { h, q, k, v, attn, s: [sq, sk, sv, so] }))
    }

    fn attend<T: Float>(
        &self,
        c: &BlockContext<'_, T>,
        index: usize,
        cache: &Option<&mut KvCache<T>>,
        [q, k, v]: [&Buffer<T>; 3],
    ) -> Result<Buffer<T>> {
        let (k, v) = match (cache, &c.batch.keys) {
            (Some(cache), Keys::Cached { .. }) => (&cache.keys[index], &cache.values[index]),
            (None, Keys::Cached { .. } | Keys::Own { .. }) | (Some(_), Keys::Own { .. }) => (k, v),
        };
        let (heads, kv_heads) = (c.config.heads, c.config.kv_heads);
        let mut o = c.cx.allocator.alloc(q.len())?;
        let args = Attention {
            q: q.view(&c.heads(q.len(), heads))?,
            k: k.view(&c.heads(k.len(), kv_heads))?,
            v: v.view(&c.heads(v.len(), kv_heads))?,
            cu_seqlens: c.batch.cu_seqlens.all(),
            kv_rows: c.batch.kv_rows()?,
            kv_len: c.batch.kv_len(),
            scale: c.attention_scale(),
            o: o.view_mut(&c.heads(q.len(), heads))?,
            lse: None,
        };
        attention(c.cx.device, args)?;
        Ok(o)
    }

    /// m + Wd·(silu(Wg·g) ⊙ Wu·g).
    fn mlp<T: Float>(
        &self,
        c: &BlockContext<'_, T>,
        mid: &Buffer<T>,
    ) -> Result<(Buffer<T>, MlpTape<T>)> {
        let g = c.norm(mid, self.norm2)?;
        let mut act = c.cx.allocator.alloc(c.batch.tokens() * c.config.ffn)?;
        let [(gate, sg), (up, su)] = c.fan([&self.gate, &self.up], &g, Some(&mut act))?;
        let (y, sd) = c.linear_add(mid, &self.down, &act)?;
        Ok((y, MlpTape { g, gate, up, act, s: [sg, su, sd] }))
    }

    /// Gradient with respect to the input of the block number `index`, given the one of its output. Adds the
    /// parameter gradients. With `want_dx` false (nothing below is trainable) the input's is not computed.
    pub fn backward<T: Float>(
        &self,
        c: &BlockContext<'_, T>,
        (index, tape): (usize, LayerTape<T>),
        dy: Buffer<T>,
        gradients: &mut Gradients,
        want_dx: bool,
    ) -> Result<Option<Buffer<T>>> {
        let (x, t) = self.replayed(c, index, tape)?;
        let dmid = self.mlp_backward(c, &t.mid, t.mlp, dy, gradients)?;
        let m = &t.attention;
        let dattn = c.linear_backward(&self.o, saved(&m.attn, &m.s[3]), &dmid, gradients)?;
        let dqkv = self.attention_backward(c, m, &dattn, gradients)?;
        drop(dattn);
        for (i, linear) in [&self.q, &self.k, &self.v].into_iter().enumerate() {
            linear.parameter_gradients(c.cx, saved(&m.h, &m.s[i]), &dqkv[i], gradients)?;
        }
        if !want_dx {
            return Ok(None);
        }
        let mut dh = c.cx.allocator.alloc(m.h.len())?;
        for (i, linear) in [&self.q, &self.k, &self.v].into_iter().enumerate() {
            linear.input_gradient(c.cx, &dqkv[i], i > 0, &mut dh)?;
        }
        drop(dqkv);
        c.norm_backward(&x, self.norm1, &dh, Some(&dmid), gradients).map(Some)
    }

    fn mlp_backward<T: Float>(
        &self,
        c: &BlockContext<'_, T>,
        mid: &Buffer<T>,
        t: MlpTape<T>,
        dy: Buffer<T>,
        gradients: &mut Gradients,
    ) -> Result<Buffer<T>> {
        let dact = c.linear_backward(&self.down, saved(&t.act, &t.s[2]), &dy, gradients)?;
        let allocator = c.cx.allocator;
        let (mut dgate, mut dup) = (allocator.alloc(dact.len())?, allocator.alloc(dact.len())?);
        let f = c.config.ffn;
        let args = SwigluBwd {
            gate: t.gate.rows(f)?,
            up: t.up.rows(f)?,
            dy: dact.rows(f)?,
            dgate: dgate.rows_mut(f)?,
            dup: dup.rows_mut(f)?,
        };
        swiglu_bwd(c.cx.device, args)?;
        drop(dact);
        let mut dg = c.linear_backward(&self.gate, saved(&t.g, &t.s[0]), &dgate, gradients)?;
        self.up.parameter_gradients(c.cx, saved(&t.g, &t.s[1]), &dup, gradients)?;
        self.up.input_gradient(c.cx, &dup, true, &mut dg)?;
        c.norm_backward(mid, self.norm2, &dg, Some(&dy), gradients)
    }

    /// Gradients of the projections' results q, k, v.
    fn attention_backward<T: Float>(
        &self,
        c: &BlockContext<'_, T>,
        t: &AttentionTape<T>,
        dattn: &Buffer<T>,
        gradients: &mut Gradients,
    ) -> Result<[Buffer<T>; 3]> {
        let Keys::Own { start, len, prefix } = &c.batch.keys else {
            let expected = "the batch that the tape was made with, without a cache";
            return Err(Error::invalid("backward", "batch", "keys in a cache", expected));
        };
        let (heads, kv_heads) = (c.config.heads, c.config.kv_heads);
        let allocator = c.cx.allocator;
        let (q, k, v) = (&t.q.rotated, &t.k.rotated, &t.v);
        let (wide, narrow) = (c.heads(q.len(), heads), c.heads(k.len(), kv_heads));
        let mut dq = allocator.alloc(q.len())?;
        let (mut dk, mut dv) = (allocator.alloc(k.len())?, allocator.alloc(v.len())?);
        let args = AttentionBwd {
            q: q.view(&wide)?,
            k: k.view(&narrow)?,
            v: v.view(&narrow)?,
            cu_seqlens: c.batch.cu_seqlens.all(),
            kv_start: start.all(),
            kv_len: len.all(),
            prefix: shared(prefix),
            scale: c.attention_scale(),
            dout: dattn.view(&wide)?,
            dq: dq.view_mut(&wide)?,
            dk: dk.view_mut(&narrow)?,
            dv: dv.view_mut(&narrow)?,
        };
        attention_bwd(c.cx.device, args)?;
        c.rotate_back(&mut dq, heads)?;
        c.rotate_back(&mut dk, kv_heads)?;
        if let (Some(norm), Some(raw)) = (self.q_norm, &t.q.raw) {
            dq = c.norm_backward(raw, norm, &dq, None, gradients)?;
        }
        if let (Some(norm), Some(raw)) = (self.k_norm, &t.k.raw) {
            dk = c.norm_backward(raw, norm, &dk, None, gradients)?;
        }
        Ok([dq, dk, dv])
    }
}

fn saved<'a, T>(x: &'a Buffer<T>, s: &'a Option<Buffer<f32>>) -> SavedInput<'a, T> {
    SavedInput { x, s: s.as_ref() }
}
