//! The decoder: embedding, blocks, final norm, head.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::batch::{Batch, Keys};
use crate::model::config::ModelConfig;
use crate::model::kv_cache::KvCache;
use crate::model::layer::{BlockContext, Keep, LINEAR_NAMES, Layer, Tape};
use crate::model::linear::{LayerContext, Linear, LoraAdapter, Weight};
use crate::model::params::{Gradients, ParamId, Parameters};
use crate::model::rope_table::RopeTable;
use gradus::device::{Allocator, Buffer, Device};
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{Embedding, EmbeddingBwd, embedding, embedding_bwd};
use gradus::quant::{Nf4Matrix, Nf4Options, Nf4Tensor};
use gradus::rng::{Purpose, Rng};

/// Low-rank adapters to attach.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraOptions {
    /// Rank.
    pub rank: usize,
    /// The update is scaled by alpha / rank.
    pub alpha: f64,
    /// `all-linear`, or a comma-separated list such as `q_proj,v_proj`.
    pub targets: String,
    /// Scale by alpha / √rank (Kalajdzievski 2023, arXiv:2312.03732).
    pub rslora: bool,
}

/// An adapter that a linear map is to get.
pub(crate) struct NewLora {
    pub r: usize,
    pub scale: f64,
    /// `[r, k]`.
    pub a: Vec<f32>,
    /// `[n, r]`.
    pub b: Vec<f32>,
}

/// A decoder with its parameters, which compute in `T`.
#[derive(Debug)]
pub struct Decoder<T = f32> {
    /// Extents.
    pub config: ModelConfig,
    /// All float tensors.
    pub params: Parameters<T>,
    /// Where it runs.
    pub device: Device,
    /// Where its results go, unless a batch brings its own place.
    pub allocator: Allocator,
    pub(crate) embed: ParamId,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: ParamId,
    pub(crate) head: Linear,
    pub(crate) rope: RopeTable,
}

impl<T: Float> Decoder<T> {
    /// Final hidden states `[T, hidden]` of packed tokens.
    ///
    /// * `adapt`: with the adapters, or as the base model (the reference policy).
    /// * `cache`: the one that made the batch, if the tokens continue sequences; without it each
    ///   packed sequence is whole.
    /// * `tape`: records what [`Decoder::backward`] needs; not with a cache.
    ///
    /// A token's row has the same bits however its sequence was cut into calls and whatever else
    /// was in the batch.
    ///
    /// # Errors
    /// `InvalidArgument` for a batch and a cache that do not belong together, ids outside the
    /// vocabulary or positions outside the rotary table; `OutOfMemory`, or what the driver says.
    pub fn forward(
        &self,
        batch: &Batch,
        adapt: bool,
        mut cache: Option<&mut KvCache<T>>,
        tape: Option<&mut Tape<T>>,
    ) -> Result<Buffer<T>> {
        check_cache(batch, cache.is_some(), tape.is_some())?;
        let keep = tape.as_ref().map_or(Keep::Nothing, |tape| tape.keeps());
        let c = BlockContext { keep, ..self.context(batch, adapt) };
        let mut x = self.embed(batch, adapt)?;
        let mut tapes = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let (y, tape) = layer.forward(&c, index, &mut cache, x)?;
            tapes.extend(tape);
            x = y;
        }
        let hidden = c.norm(&x, self.norm)?;
        if let Some(tape) = tape {
            *tape = Tape { layers: tapes, x: Some(x), ..*tape };
        }
        Ok(hidden)
    }

    /// Adds the gradients of all trainable parameters below the head, given the gradient
    /// `dhidden` of the hidden states that [`Decoder::forward`] returned with `tape`.
    ///
    /// # Errors
    /// `InvalidArgument` for a tape of another batch or model; `OutOfMemory`, or what the driver
    /// says.
    pub fn backward(
        &self,
        batch: &Batch,
        tape: Tape<T>,
        dhidden: Buffer<T>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let c = BlockContext { keep: Keep::All, ..self.context(batch, true) };
        let Some(x) = tape.x.filter(|_| tape.layers.len() == self.layers.len()) else {
            let got = format!("{} layers", tape.layers.len());
            return Err(Error::invalid("backward", "tape", got, "the tape of a forward pass"));
        };
        let mut dx = c.norm_backward(&x, self.norm, &dhidden, None, gradients)?;
        drop((x, dhidden));
        let embed_trains = self.params.get(self.embed).trainable;
        for (index, tape) in tape.layers.into_iter().enumerate().rev() {
            let want_dx = index > 0 || embed_trains;
            match self.layers[index].backward(&c, (index, tape), dx, gradients, want_dx)? {
                Some(below) => dx = below,
                None => return Ok(()),
            }
        }
        if let Some(dtable) = gradients.get_mut(self.embed) {
            let d = self.config.hidden;
            let (dy, dtable) = (dx.rows(d)?, dtable.rows_mut(d)?);
            embedding_bwd(&self.device, EmbeddingBwd { ids: batch.ids.all(), dy, dtable })?;
        }
        Ok(())
    }

    fn embed(&self, batch: &Batch, adapt: bool) -> Result<Buffer<T>> {
        let d = self.config.hidden;
        let mut x = batch.allocator.alloc(batch.tokens() * d)?;
        let table = self.params.matrix(self.params.chosen(self.embed, adapt))?;
        let args = Embedding { ids: batch.ids.all(), table, y: x.rows_mut(d)? };
        embedding(&self.device, args)?;
        Ok(x)
    }

    fn context<'a>(&'a self, batch: &'a Batch, adapt: bool) -> BlockContext<'a, T> {
        BlockContext {
            cx: LayerContext {
                masks: batch.masks.as_ref(),
                ..self.layer_context(&batch.allocator)
            },
            config: &self.config,
            rope: &self.rope,
            batch,
            adapt,
            keep: Keep::Nothing,
        }
    }

    pub(crate) fn layer_context<'a>(&'a self, allocator: &'a Allocator) -> LayerContext<'a, T> {
        LayerContext { device: &self.device, allocator, params: &self.params, masks: None }
    }

    /// Replaces every block's dense weights by 4-bit ones and freezes all parameters. Embedding,
    /// norms and head stay as they are, as in bitsandbytes, and so do weights that a 4-bit folder
    /// left dense. Returns the bytes of the new 4-bit weights.
    pub fn quantize(&mut self, options: &Nf4Options) -> Result<u64> {
        let mut bytes = 0;
        for layer in &mut self.layers {
            for linear in layer.linears_mut() {
                let Weight::Dense(id) = linear.weight else { continue };
                if linear.keep_dense {
                    continue;
                }
                let dense = self.params.matrix(id)?;
                let packed = Nf4Tensor::quantize(&self.device, dense, options)?;
                bytes += packed.bytes() as u64;
                linear.weight = Weight::Nf4(Nf4Matrix::new(&self.device, packed)?);
                self.params.release(id)?;
            }
        }
        self.params.freeze();
        Ok(bytes)
    }

    /// Freezes the model and attaches adapters: A ~ uniform(±1/√k) (Kaiming, a = √5, as PEFT), B = 0,
    /// so that the adapted model starts equal to the base, bit for bit.
    ///
    /// # Errors
    /// `Config` for target names or a rank that cannot be; `InvalidArgument` if there are adapters.
    pub fn attach_lora(&mut self, options: &LoraOptions, seed: u64) -> Result<()> {
        let chosen = lora_targets(options)?;
        let (r, per_layer) = (options.rank, LINEAR_NAMES.len());
        for (i, linear) in self.linears().enumerate() {
            let most = linear.n.min(linear.k);
            if chosen[i % per_layer] && !(1..=most).contains(&r) {
                let reason = format!("{r} is not in 1..={most} for {}", linear.name);
                return Err(Error::config("lora.rank", reason));
            }
        }
        let mut index = 0;
        self.attach(|linear| {
            let (l, i) = (index / per_layer, index % per_layer);
            index += 1;
            if !chosen[i] {
                return None;
            }
            let mut rng = Rng::new(seed, Purpose::Init, [1, l as u32, i as u32]);
            let bound = 1.0 / (linear.k as f64).sqrt();
            let draw = |_| ((2.0 * rng.uniform() - 1.0) * bound) as f32;
            let a = (0..r * linear.k).map(draw).collect();
            let scale = options.alpha / if options.rslora { (r as f64).sqrt() } else { r as f64 };
            Some(NewLora { r, scale, a, b: vec![0.0; linear.n * r] })
        })
    }

    /// Freezes the model and gives every linear map the adapter that `choose` has for it.
    pub(crate) fn attach(
        &mut self,
        mut choose: impl FnMut(&Linear) -> Option<NewLora>,
    ) -> Result<()> {
        if self.has_adapters() {
            let expected = "a model without adapters";
            return Err(Error::invalid("attach_lora", "self", "a model with adapters", expected));
        }
        self.params.freeze();
        for linear in self.layers.iter_mut().flat_map(Layer::linears_mut) {
            let Some(NewLora { r, scale, a, b }) = choose(linear) else { continue };
            let (name, params) = (&linear.name, &mut self.params);
            let a = params.push(format!("{name}.lora_A.weight"), &[r, linear.k], a)?;
            let b = params.push(format!("{name}.lora_B.weight"), &[linear.n, r], b)?;
            linear.lora = Some(LoraAdapter { a, b, r, scale });
        }
        Ok(())
    }

    /// Puts `values` in the place of the dense parameter `name`, for the optimizer to move; the base
    /// model, which forward passes without adapters are of, keeps its own. A head that is tied to
    /// the embedding stays what it was when only the embedding is replaced, as in PEFT.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is no dense parameter; `OutOfMemory`, or what the driver
    /// says.
    pub(crate) fn replace(&mut self, name: &str, values: Vec<f32>) -> Result<()> {
        let is_tied =
            |head: &Linear, embed| matches!(head.weight, Weight::Dense(id) if id == embed);
        if name == HEAD && is_tied(&self.head, self.embed) {
            let head = self.params.push_beside(name, self.embed, values)?;
            self.head.weight = Weight::Dense(head);
            return Ok(());
        }
        let Some(id) = self.params.find(name).filter(|&id| !self.params.get(id).is_empty()) else {
            return Err(Error::invalid("attach", "module", name, "a dense module of this model"));
        };
        self.params.replace(id, values)?;
        if id == self.embed && is_tied(&self.head, id) {
            self.head.weight = Weight::Dense(self.params.chosen(id, false));
        }
        Ok(())
    }

    /// Whether a linear map has an adapter.
    pub fn has_adapters(&self) -> bool {
        self.linears().any(|linear| linear.lora.is_some())
    }

    /// All blocks' linear maps in order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(|layer| layer.linears())
    }

    /// All blocks' linear maps in order, to change.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.layers.iter_mut().flat_map(|layer| layer.linears_mut())
    }

    /// A number that changes when a weight lies elsewhere than before: recorded steps hold
    /// addresses.
    pub(crate) fn weight_addresses(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        self.params.iter().for_each(|p| (p.address(), p.len()).hash(&mut hasher));
        self.linears().for_each(|linear| {
            if let Weight::Nf4(w) = &linear.weight {
                w.addresses().hash(&mut hasher);
            }
        });
        if let Weight::Nf4(w) = &self.head.weight {
            w.addresses().hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Bytes of all weights as stored.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_parts().total()
    }

    /// Bytes of all weights as stored, by what they are: 4-bit, dense, trained.
    pub fn weight_parts(&self) -> WeightBytes {
        let mut bytes = WeightBytes::default();
        for p in self.params.iter() {
            let part = if p.trainable { &mut bytes.trained } else { &mut bytes.dense };
            *part += p.bytes() as u64;
        }
        for linear in self.linears().chain([&self.head]) {
            if let Weight::Nf4(w) = &linear.weight {
                bytes.packed += w.bytes() as u64;
            }
        }
        bytes
    }
}

/// Bytes of a decoder's weights by what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightBytes {
    /// Frozen values in the dtype of the run: with a 4-bit model embedding, norms and head.
    pub dense: u64,
    /// 4-bit weights with their maxima and tables.
    pub packed: u64,
    /// What the optimizer moves: adapters, or all of a model that trains whole; beside 16-bit values
    /// their f32 ones.
    pub trained: u64,
}

impl WeightBytes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.dense + self.packed + self.trained
    }
}

impl fmt::Display for WeightBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: u64| bytes as f64 / 1024.0;
        write!(f, "{:.0} KiB 4-bit, ", kib(self.packed))?;
        write!(f, "{:.0} KiB dense, {:.0} KiB trained", kib(self.dense), kib(self.trained))
    }
}

/// Name of the head's weight.
pub(crate) const HEAD: &str = "lm_head.weight";

impl LoraOptions {
    /// Refuses target names no block has.
    pub fn check(&self) -> Result<()> {
        lora_targets(self).map(|_| ())
    }
}

fn check_cache(batch: &Batch, cached: bool, taped: bool) -> Result<()> {
    let paged = matches!(batch.keys, Keys::Cached { .. });
    if paged != cached {
        let expected = "the cache that made the batch, or none for whole sequences";
        return Err(Error::invalid("forward", "cache", cached, expected));
    }
    if cached && taped {
        return Err(Error::invalid("forward", "tape", "a tape", "none beside a cache"));
    }
    Ok(())
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
