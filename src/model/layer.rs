//! One transformer block, forward and backward.
//!
//! ```text
//! h = norm1(x)            q, k, v = Wq·h, Wk·h, Wv·h      (q, k) <- rope(qk_norm(q, k))
//! m = x + Wo·attention(q, k, v)
//! g = norm2(m)            y = m + Wd·(silu(Wg·g) ⊙ Wu·g)
//! ```
//! The backward pass reads the same lines upwards; what it needs is on the [`LayerTape`].

use crate::device::Device;
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Kv, Packed};
use crate::model::linear::Linear;
use crate::model::params::{Gradients, ParamId, Parameters};
use crate::model::rope_table::RopeTable;
use crate::ops::{
    Attention, AttentionBwd, RmsNorm, RmsNormBwd, Rope, Swiglu, SwigluBwd, attention,
    attention_bwd, rmsnorm, rmsnorm_bwd, rope, swiglu, swiglu_bwd,
};
use crate::view::{View, ViewMut};

/// What a block computed on the way forward.
#[derive(Clone, Debug, Default)]
pub struct LayerTape {
    x: Vec<f32>,
    h: Vec<f32>,
    q_raw: Vec<f32>,
    k_raw: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attn: Vec<f32>,
    mid: Vec<f32>,
    g: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    act: Vec<f32>,
    branch: Vec<f32>,
    /// scale·x·Aᵀ of q, k, v, o, gate, up, down.
    s: [Vec<f32>; 7],
}

/// All a backward pass needs.
#[derive(Clone, Debug, Default)]
pub struct Tape {
    pub(crate) layers: Vec<LayerTape>,
    /// Input of the final norm.
    pub(crate) x: Vec<f32>,
}

/// A block's parameters.
#[derive(Clone, Debug)]
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

/// What a block needs to know of its model.
pub(crate) struct LayerContext<'a> {
    pub device: &'a Device,
    pub config: &'a ModelConfig,
    pub params: &'a Parameters,
    pub rope: &'a RopeTable,
    pub packed: &'a Packed,
    pub adapt: bool,
}

impl LayerContext<'_> {
    fn norm(&self, x: &[f32], weight: ParamId, y: &mut Vec<f32>) -> Result<()> {
        let d = self.params.data(weight).len();
        y.resize(x.len(), 0.0);
        let args = RmsNorm {
            x: View::rows_of(x, d)?,
            weight: self.params.data(weight).into(),
            eps: self.config.norm_eps,
            y: ViewMut::rows_of(y, d)?,
            rstd: None,
        };
        rmsnorm(self.device, args)
    }

    /// Gradient of [`LayerContext::norm`]: the input gradient, and the gain's into `gradients`.
    fn norm_backward(
        &self,
        x: &[f32],
        weight: ParamId,
        dy: &[f32],
        gradients: &mut Gradients,
    ) -> Result<Vec<f32>> {
        let d = self.params.data(weight).len();
        let mut dx = vec![0.0; x.len()];
        let args = RmsNormBwd {
            x: View::rows_of(x, d)?,
            weight: self.params.data(weight).into(),
            eps: self.config.norm_eps,
            dy: View::rows_of(dy, d)?,
            residual: None,
            dx: ViewMut::rows_of(&mut dx, d)?,
            dweight: gradients.get_mut(weight).map(ViewMut::from),
        };
        rmsnorm_bwd(self.device, args)?;
        Ok(dx)
    }

    /// Backward of a linear map whose forward saw `x` and left `s`.
    fn back(
        &self,
        linear: &Linear,
        (x, s): (&[f32], &[f32]),
        dy: &[f32],
        gradients: &mut Gradients,
        dx: Option<(&mut Vec<f32>, bool)>,
    ) -> Result<()> {
        linear.backward(self.device, self.params, x, s, dy, gradients, dx)
    }

    fn rotate(&self, x: &mut [f32], heads: usize, inverse: bool) -> Result<()> {
        let (tokens, half) = (self.packed.tokens(), self.rope.half);
        let shape = [tokens as i64, heads as i64, 2 * half as i64];
        let args = Rope {
            x: ViewMut::new(x, &shape)?,
            positions: (&self.packed.positions).into(),
            cos: View::rows_of(&self.rope.cos, half)?,
            sin: View::rows_of(&self.rope.sin, half)?,
            inverse,
        };
        rope(self.device, args)
    }

    fn heads<'a>(&self, x: &'a [f32], heads: usize) -> Result<View<'a, f32>> {
        let d = self.config.head_dim;
        View::new(x, &[(x.len() / (heads * d)) as i64, heads as i64, d as i64])
    }

    fn heads_mut<'a>(&self, x: &'a mut [f32], heads: usize) -> Result<ViewMut<'a, f32>> {
        let d = self.config.head_dim;
        let shape = [(x.len() / (heads * d)) as i64, heads as i64, d as i64];
        ViewMut::new(x, &shape)
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

    /// Runs the block on `t.x`; the output replaces `out`.
    pub fn forward(
        &self,
        c: &LayerContext<'_>,
        index: usize,
        kv: &mut Kv<'_>,
        t: &mut LayerTape,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let LayerTape { x, h, q_raw, k_raw, q, k, v, attn, mid, g, gate, up, act, branch, s } = t;
        let [sq, sk, sv, so, sg, su, sd] = s;
        let map = |linear: &Linear, x: &[f32], y: &mut Vec<f32>, s: &mut Vec<f32>| {
            linear.forward(c.device, c.params, x, c.adapt, y, Some(s))
        };
        c.norm(x, self.norm1, h)?;
        map(&self.v, h, v, sv)?;
        for (linear, norm, raw, y, s) in
            [(&self.q, self.q_norm, q_raw, &mut *q, sq), (&self.k, self.k_norm, k_raw, &mut *k, sk)]
        {
            match norm {
                Some(norm) => {
                    map(linear, h, raw, s)?;
                    c.norm(raw, norm, y)?;
                }
                None => map(linear, h, y, s)?,
            }
        }
        c.rotate(q, c.config.heads, false)?;
        c.rotate(k, c.config.kv_heads, false)?;
        self.attend(c, index, kv, q, k, v, attn)?;
        map(&self.o, attn, branch, so)?;
        add(x, branch, mid);
        c.norm(mid, self.norm2, g)?;
        map(&self.gate, g, gate, sg)?;
        map(&self.up, g, up, su)?;
        act.resize(gate.len(), 0.0);
        let f = c.config.ffn;
        let args = Swiglu {
            gate: View::rows_of(gate, f)?,
            up: View::rows_of(up, f)?,
            y: ViewMut::rows_of(act, f)?,
        };
        swiglu(c.device, args)?;
        map(&self.down, act, branch, sd)?;
        add(mid, branch, out);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn attend(
        &self,
        c: &LayerContext<'_>,
        index: usize,
        kv: &mut Kv<'_>,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        o: &mut Vec<f32>,
    ) -> Result<()> {
        o.resize(q.len(), 0.0);
        kv.store(index, c.packed, k, v);
        let (k, v) = kv.of_layer(index, k, v);
        let args = Attention {
            q: c.heads(q, c.config.heads)?,
            k: c.heads(k, c.config.kv_heads)?,
            v: c.heads(v, c.config.kv_heads)?,
            cu_seqlens: (&c.packed.cu_seqlens).into(),
            kv_start: kv.start().into(),
            kv_len: kv.len().into(),
            scale: c.attention_scale(),
            o: c.heads_mut(o, c.config.heads)?,
            lse: None,
        };
        attention(c.device, args)
    }

    /// Gradient with respect to the block's input, given the one of its output. Adds the parameter
    /// gradients. With `want_dx` false (nothing below is trainable) the input's is not computed.
    pub fn backward(
        &self,
        c: &LayerContext<'_>,
        t: &LayerTape,
        dy: Vec<f32>,
        gradients: &mut Gradients,
        want_dx: bool,
    ) -> Result<Vec<f32>> {
        let dmid = self.mlp_backward(c, t, dy, gradients)?;
        let (mut dattn, mut dh) = (Vec::new(), Vec::new());
        c.back(&self.o, (&t.attn, &t.s[3]), &dmid, gradients, Some((&mut dattn, false)))?;
        let dqkv = self.attention_backward(c, t, &dattn, gradients)?;
        for (i, linear) in [&self.q, &self.k, &self.v].into_iter().enumerate() {
            let dx = want_dx.then_some((&mut dh, i > 0));
            c.back(linear, (&t.h, &t.s[i]), &dqkv[i], gradients, dx)?;
        }
        if !want_dx {
            return Ok(Vec::new());
        }
        let mut dx = c.norm_backward(&t.x, self.norm1, &dh, gradients)?;
        dx.iter_mut().zip(&dmid).for_each(|(a, b)| *a += b);
        Ok(dx)
    }

    fn mlp_backward(
        &self,
        c: &LayerContext<'_>,
        t: &LayerTape,
        dy: Vec<f32>,
        gradients: &mut Gradients,
    ) -> Result<Vec<f32>> {
        let (mut dact, mut dg) = (Vec::new(), Vec::new());
        c.back(&self.down, (&t.act, &t.s[6]), &dy, gradients, Some((&mut dact, false)))?;
        let (mut dgate, mut dup) = (vec![0.0; dact.len()], vec![0.0; dact.len()]);
        let f = c.config.ffn;
        let args = SwigluBwd {
            gate: View::rows_of(&t.gate, f)?,
            up: View::rows_of(&t.up, f)?,
            dy: View::rows_of(&dact, f)?,
            dgate: ViewMut::rows_of(&mut dgate, f)?,
            dup: ViewMut::rows_of(&mut dup, f)?,
        };
        swiglu_bwd(c.device, args)?;
        for (linear, s, dy, accumulate) in
            [(&self.gate, &t.s[4], &dgate, false), (&self.up, &t.s[5], &dup, true)]
        {
            c.back(linear, (&t.g, s), dy, gradients, Some((&mut dg, accumulate)))?;
        }
        let mut dmid = c.norm_backward(&t.mid, self.norm2, &dg, gradients)?;
        dmid.iter_mut().zip(&dy).for_each(|(a, b)| *a += b);
        Ok(dmid)
    }

    fn attention_backward(
        &self,
        c: &LayerContext<'_>,
        t: &LayerTape,
        dattn: &[f32],
        gradients: &mut Gradients,
    ) -> Result<[Vec<f32>; 3]> {
        let (heads, kv_heads) = (c.config.heads, c.config.kv_heads);
        let [mut dq, mut dk, mut dv] = [&t.q, &t.k, &t.v].map(|x| vec![0.0; x.len()]);
        let (start, len) = c.packed.spans();
        let args = AttentionBwd {
            q: c.heads(&t.q, heads)?,
            k: c.heads(&t.k, kv_heads)?,
            v: c.heads(&t.v, kv_heads)?,
            cu_seqlens: (&c.packed.cu_seqlens).into(),
            kv_start: (&start).into(),
            kv_len: (&len).into(),
            scale: c.attention_scale(),
            dout: c.heads(dattn, heads)?,
            dq: c.heads_mut(&mut dq, heads)?,
            dk: c.heads_mut(&mut dk, kv_heads)?,
            dv: c.heads_mut(&mut dv, kv_heads)?,
        };
        attention_bwd(c.device, args)?;
        c.rotate(&mut dq, heads, true)?;
        c.rotate(&mut dk, kv_heads, true)?;
        if let Some(norm) = self.q_norm {
            dq = c.norm_backward(&t.q_raw, norm, &dq, gradients)?;
        }
        if let Some(norm) = self.k_norm {
            dk = c.norm_backward(&t.k_raw, norm, &dk, gradients)?;
        }
        Ok([dq, dk, dv])
    }
}

impl LayerTape {
    /// Sets the block's input.
    pub(crate) fn set_input(&mut self, x: &mut Vec<f32>) {
        std::mem::swap(&mut self.x, x);
    }
}

fn add(a: &[f32], b: &[f32], out: &mut Vec<f32>) {
    out.clear();
    out.extend(a.iter().zip(b).map(|(x, y)| x + y));
}
