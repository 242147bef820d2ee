//! The decoder: embedding, blocks, final norm, head.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::kv_cache::KvCache;
use crate::model::layer::{LINEAR_NAMES, Layer, LayerContext, LayerTape, Tape};
use crate::model::linear::{Linear, LoraAdapter, Weight};
use crate::model::params::{Gradients, ParamId, Parameters};
use crate::model::rope_table::RopeTable;
use crate::ops::{
    Embedding, EmbeddingBwd, RmsNorm, RmsNormBwd, embedding, embedding_bwd, rmsnorm, rmsnorm_bwd,
};
use crate::quant::{Nf4Options, Nf4Tensor};
use crate::rng::{Purpose, Rng};
use crate::view::{View, ViewMut};

/// Sequences laid end to end; nothing is padded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed {
    /// `[T]` token ids.
    pub ids: Vec<i32>,
    /// `[T]` position of each token in its sequence.
    pub positions: Vec<i32>,
    /// `[B + 1]` offsets of the sequences.
    pub cu_seqlens: Vec<i64>,
}

impl Packed {
    /// An empty batch.
    pub fn new() -> Packed {
        Packed { ids: Vec::new(), positions: Vec::new(), cu_seqlens: vec![0] }
    }

    /// Whole sequences, each from position 0.
    pub fn of<'a>(sequences: impl IntoIterator<Item = &'a [i32]>) -> Packed {
        let mut packed = Packed::new();
        sequences.into_iter().for_each(|ids| packed.push(ids, 0));
        packed
    }

    /// Appends a sequence whose first token stands at position `first`.
    pub fn push(&mut self, ids: &[i32], first: usize) {
        self.ids.extend_from_slice(ids);
        self.positions.extend((first..first + ids.len()).map(|p| p as i32));
        self.cu_seqlens.push(self.ids.len() as i64);
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Starts and lengths of the sequences.
    pub fn spans(&self) -> (Vec<i64>, Vec<i64>) {
        let lens = self.cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect();
        (self.cu_seqlens[..self.sequences()].to_vec(), lens)
    }
}

/// Where attention finds keys and values: beside the queries, or in a cache.
pub(crate) struct Kv<'a> {
    cache: Option<(&'a mut KvCache, &'a [usize])>,
    start: Vec<i64>,
    len: Vec<i64>,
}

impl<'a> Kv<'a> {
    fn new(packed: &Packed, cache: Option<(&'a mut KvCache, &'a [usize])>) -> Result<Kv<'a>> {
        let (mut start, mut len) = packed.spans();
        if let Some((cache, slots)) = &cache {
            if slots.len() != packed.sequences() {
                let expected = format!("{} (one per sequence)", packed.sequences());
                return Err(Error::invalid("forward", "slots", slots.len(), expected));
            }
            for (i, &slot) in slots.iter().enumerate() {
                len[i] += cache.len(slot) as i64;
                start[i] = cache.start(slot) as i64;
                if len[i] as usize > cache.max_len {
                    let expected = format!("at most {} tokens a slot", cache.max_len);
                    return Err(Error::invalid("forward", "cache", len[i], expected));
                }
            }
        }
        Ok(Kv { cache, start, len })
    }

    /// Puts a layer's new keys and values into the cache, if there is one.
    pub fn store(&mut self, layer: usize, packed: &Packed, k: &[f32], v: &[f32]) {
        let Some((cache, slots)) = &mut self.cache else { return };
        let width = k.len() / packed.tokens().max(1);
        for (i, &slot) in slots.iter().enumerate() {
            let (from, to) = (packed.cu_seqlens[i] as usize, packed.cu_seqlens[i + 1] as usize);
            let rows = from * width..to * width;
            cache.write(layer, slot, &k[rows.clone()], &v[rows]);
        }
    }

    /// All keys and values of a layer: the cache's, or `k` and `v` themselves.
    pub fn of_layer<'b>(
        &'b self,
        layer: usize,
        k: &'b [f32],
        v: &'b [f32],
    ) -> (&'b [f32], &'b [f32]) {
        match &self.cache {
            Some((cache, _)) => (cache.keys(layer), cache.values(layer)),
            None => (k, v),
        }
    }

    pub fn start(&self) -> &[i64] {
        &self.start
    }

    pub fn len(&self) -> &[i64] {
        &self.len
    }

    fn finish(self, packed: &Packed) {
        if let Some((cache, slots)) = self.cache {
            for (i, &slot) in slots.iter().enumerate() {
                let new = packed.cu_seqlens[i + 1] - packed.cu_seqlens[i];
                cache.advance(slot, new as usize);
            }
        }
    }
}

/// Low-rank adapters to attach.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraOptions {
    /// Rank.
    pub rank: usize,
    /// The update is scaled by alpha / rank.
    pub alpha: f64,
    /// `all-linear`, or a comma-separated list such as `q_proj,v_proj`.
    pub targets: String,
}

/// A decoder with its parameters.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Extents.
    pub config: ModelConfig,
    /// All float tensors.
    pub params: Parameters,
    /// Where it runs.
    pub device: Device,
    pub(crate) embed: ParamId,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: ParamId,
    pub(crate) head: Linear,
    pub(crate) rope: RopeTable,
}

impl Decoder {
    /// Final hidden states `[T, hidden]` of packed tokens.
    ///
    /// * `adapt`: with the adapters, or as the base model (the reference policy).
    /// * `cache`: the tokens continue the sequences in these slots, one slot per packed sequence;
    ///   without it each packed sequence is whole.
    /// * `tape`: records what [`Decoder::backward`] needs.
    ///
    /// A token's row has the same bits however its sequence was cut into calls and whatever else
    /// was in the batch.
    pub fn forward(
        &self,
        packed: &Packed,
        adapt: bool,
        cache: Option<(&mut KvCache, &[usize])>,
        mut tape: Option<&mut Tape>,
    ) -> Result<Vec<f32>> {
        let c = self.context(packed, adapt);
        let mut kv = Kv::new(packed, cache)?;
        let mut x = self.embed(packed)?;
        let mut scratch = LayerTape::default();
        for (index, layer) in self.layers.iter().enumerate() {
            scratch.set_input(&mut x);
            layer.forward(&c, index, &mut kv, &mut scratch, &mut x)?;
            if let Some(tape) = &mut tape {
                tape.layers.push(std::mem::take(&mut scratch));
            }
        }
        kv.finish(packed);
        let mut hidden = vec![0.0; x.len()];
        let args = RmsNorm {
            x: View::rows_of(&x, self.config.hidden)?,
            weight: self.params.data(self.norm).into(),
            eps: self.config.norm_eps,
            y: ViewMut::rows_of(&mut hidden, self.config.hidden)?,
            rstd: None,
        };
        rmsnorm(&self.device, args)?;
        if let Some(tape) = tape {
            tape.x = x;
        }
        Ok(hidden)
    }

    /// Adds the gradients of all trainable parameters below the head, given the gradient
    /// `dhidden` of the hidden states that [`Decoder::forward`] returned with `tape`.
    pub fn backward(
        &self,
        packed: &Packed,
        tape: Tape,
        dhidden: &[f32],
        gradients: &mut Gradients,
    ) -> Result<()> {
        let c = self.context(packed, true);
        let d = self.config.hidden;
        let mut dx = vec![0.0; dhidden.len()];
        let args = RmsNormBwd {
            x: View::rows_of(&tape.x, d)?,
            weight: self.params.data(self.norm).into(),
            eps: self.config.norm_eps,
            dy: View::rows_of(dhidden, d)?,
            residual: None,
            dx: ViewMut::rows_of(&mut dx, d)?,
            dweight: gradients.get_mut(self.norm).map(ViewMut::from),
        };
        rmsnorm_bwd(&self.device, args)?;
        let embed_trains = self.params.get(self.embed).trainable;
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let want_dx = index > 0 || embed_trains;
            dx = layer.backward(&c, &tape.layers[index], dx, gradients, want_dx)?;
        }
        if let Some(dtable) = gradients.get_mut(self.embed) {
            let args = EmbeddingBwd {
                ids: (&packed.ids).into(),
                dy: View::rows_of(&dx, d)?,
                dtable: ViewMut::rows_of(dtable, d)?,
            };
            embedding_bwd(&self.device, args)?;
        }
        Ok(())
    }

    fn embed(&self, packed: &Packed) -> Result<Vec<f32>> {
        let d = self.config.hidden;
        let mut x = vec![0.0; packed.tokens() * d];
        let args = Embedding {
            ids: (&packed.ids).into(),
            table: View::rows_of(self.params.data(self.embed), d)?,
            y: ViewMut::rows_of(&mut x, d)?,
        };
        embedding(&self.device, args)?;
        Ok(x)
    }

    fn context<'a>(&'a self, packed: &'a Packed, adapt: bool) -> LayerContext<'a> {
        LayerContext {
            device: &self.device,
            config: &self.config,
            params: &self.params,
            rope: &self.rope,
            packed,
            adapt,
        }
    }

    /// Replaces every block's dense weights by 4-bit ones and freezes all parameters. Embedding,
    /// norms and head stay as they are, as in bitsandbytes. Returns the bytes of the 4-bit weights.
    pub fn quantize(&mut self, options: &Nf4Options) -> Result<u64> {
        let mut bytes = 0;
        for layer in &mut self.layers {
            for linear in layer.linears_mut() {
                let Weight::Dense(id) = linear.weight else { continue };
                let dense = View::rows_of(self.params.data(id), linear.k)?;
                let packed = Nf4Tensor::quantize(&self.device, dense, options)?;
                bytes += packed.bytes() as u64;
                linear.weight = Weight::Nf4(packed);
                self.params.release(id);
            }
        }
        self.params.freeze();
        Ok(bytes)
    }

    /// Freezes the model and attaches adapters: A ~ uniform(±1/√k) (Kaiming, a = √5, as PEFT), B = 0,
    /// so that the adapted model starts equal to the base, bit for bit.
    pub fn attach_lora(&mut self, options: &LoraOptions, seed: u64) -> Result<()> {
        let chosen = lora_targets(options)?;
        self.params.freeze();
        for (l, layer) in self.layers.iter_mut().enumerate() {
            for (i, linear) in layer.linears_mut().into_iter().enumerate() {
                if !chosen[i] {
                    continue;
                }
                if options.rank == 0 || options.rank > linear.n.min(linear.k) {
                    let expected = format!("1..={} for {}", linear.n.min(linear.k), linear.name);
                    return Err(Error::config(
                        "lora.rank",
                        format!("{} is not in {expected}", options.rank),
                    ));
                }
                let mut rng = Rng::new(seed, Purpose::Init, [1, l as u32, i as u32]);
                let bound = 1.0 / (linear.k as f64).sqrt();
                let a = (0..options.rank * linear.k)
                    .map(|_| ((2.0 * rng.uniform() - 1.0) * bound) as f32)
                    .collect();
                let (r, name) = (options.rank, &linear.name);
                let params = &mut self.params;
                linear.lora = Some(LoraAdapter {
                    a: params.push(format!("{name}.lora_A.weight"), &[r, linear.k], a),
                    b: params.push(
                        format!("{name}.lora_B.weight"),
                        &[linear.n, r],
                        vec![0.0; linear.n * r],
                    ),
                    r,
                    scale: options.alpha / r as f64,
                });
            }
        }
        Ok(())
    }

    /// All blocks' linear maps in order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(|layer| layer.linears())
    }

    /// All blocks' linear maps in order, to change.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.layers.iter_mut().flat_map(|layer| layer.linears_mut())
    }

    /// Bytes of all weights as stored.
    pub fn weight_bytes(&self) -> u64 {
        let dense: usize = self.params.iter().map(|p| p.data.len() * 4).sum();
        let packed: usize = self
            .linears()
            .map(|linear| match &linear.weight {
                Weight::Nf4(w) => w.bytes(),
                Weight::Dense(_) => 0,
            })
            .sum();
        (dense + packed) as u64
    }
}

impl LoraOptions {
    /// Refuses target names no block has.
    pub fn check(&self) -> Result<()> {
        lora_targets(self).map(|_| ())
    }
}

fn lora_targets(options: &LoraOptions) -> Result<[bool; 7]> {
    if options.targets == "all-linear" {
        return Ok([true; 7]);
    }
    let mut chosen = [false; 7];
    for name in options.targets.split(',').map(str::trim) {
        let Some(i) = LINEAR_NAMES.iter().position(|&known| known == name) else {
            let reason =
                format!("`{name}` is not all-linear or one of {}", LINEAR_NAMES.join(", "));
            return Err(Error::config("lora.targets", reason));
        };
        chosen[i] = true;
    }
    Ok(chosen)
}
