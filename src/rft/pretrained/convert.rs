//! Folders made of folders: 4-bit ones, and ones with an adapter merged in. Tensors go through one
//! at a time; memory holds one shard and the largest tensor.

use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::io::safetensors::TensorData;
use crate::model::{Decoder, HEAD, ModelConfig, ORIGINAL, Parameter, Weight};
use crate::pretrained::adapter::{Adapter, LoraUpdate, MergePlan};
use crate::pretrained::folder::{FolderWriter, SHARD};
use crate::pretrained::load::{EMBED, Pretrained, finite, floats, non_finite, quantize};
use crate::pretrained::quantized::{self, torch_name};
use crate::pretrained::weights::{WeightFiles, is_of_tower};
use gradus::check::Check;
use gradus::device::Device;
use gradus::dtype::{DType, Float, bf16, f16};
use gradus::error::{Error, Result};
use gradus::quant::nf4::check_blocksize;
use gradus::quant::{Nf4Options, OwnedAbsmax, QuantType};

/// What a conversion did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Bytes of the weights that were read.
    pub from: u64,
    /// Bytes of the weights that were written.
    pub to: u64,
    /// Weights that changed: quantized, or with an adapter merged in.
    pub changed: usize,
    /// Weights that have the values they had.
    pub kept: usize,
    /// Of the changed ones those that the adapter holds whole.
    pub replaced: usize,
    /// 4-bit weights that were expanded.
    pub expanded: usize,
    /// Bytes of what was written in 4 bits.
    pub packed: u64,
    /// The head was tied to the embedding, and is a weight of its own now.
    pub untied: bool,
}

/// Called with the number of tensors that are done, and how many there are.
pub type OnTensor<'a> = &'a mut dyn FnMut(usize, usize);

impl Pretrained {
    /// Writes the model to `out` with the weights of its blocks in 4 bits, in bitsandbytes' layout:
    /// what transformers loads with `load_in_4bit`, with the bytes bitsandbytes itself would write.
    ///
    /// # Errors
    /// `Config` if the model is 4-bit already or `out` exists; `Format`, also for NaN or infinity;
    /// `Io`.
    pub fn quantize_to(
        &mut self,
        out: &Path,
        options: &Nf4Options,
        on_tensor: OnTensor<'_>,
    ) -> Result<Converted> {
        if self.config.quantized {
            let reason = "the model is 4-bit already; quantizing again would lose more";
            return Err(Error::config("model", reason));
        }
        check_blocksize(Check("quantize"), "blocksize", options.blocksize)?;
        let mut writer = FolderWriter::create(out, SHARD)?;
        let names: Vec<String> = self.files.names().map(String::from).collect();
        let mut done = Converted { from: self.files.bytes(), ..Converted::default() };
        for (i, name) in names.iter().enumerate() {
            let data = self.files.read(name)?;
            if is_block_linear(name, &self.config.model) {
                let tensor = quantize(&data, options).map_err(placed(
                    self.files.folder(),
                    name,
                    &data.shape,
                ))?;
                done.to += tensor.bytes() as u64;
                done.packed += tensor.bytes() as u64;
                done.changed += 1;
                writer.put_quantized(self.files.name_in_file(name), tensor.parts())?;
            } else {
                check_finite(self.files.folder(), name, &data)?;
                done.to += data.bytes.len() as u64;
                done.kept += 1;
                writer.put(self.files.name_in_file(name), data)?;
            }
            on_tensor(i + 1, names.len());
        }
        let mut config = self.config.raw.clone();
        let tower = self.files.names().any(is_of_tower);
        let quantization = quantization_config(options, self.config.dtype, tower);
        config.insert("quantization_config".into(), quantization);
        writer.finish(Some(&config), Some(self.files.folder()))?;
        Ok(done)
    }

    /// Writes the model to `out` with `adapter` added to its weights, W + scale·B·A in f32, rounded
    /// once to `dtype`. 4-bit weights are expanded first and stay expanded: quantizing the sum again
    /// would lose most of what was learned. A head that is tied to the embedding is untied where the
    /// adapter holds one of both: it is written beside it.
    ///
    /// # Errors
    /// `Format` for an adapter of another model, for NaN or infinity, and for a value that `dtype`
    /// has no room for; `Config` if `out` exists or `dtype` is no float; `Io`.
    pub fn merge_to(
        &mut self,
        adapter: &Adapter,
        out: &Path,
        dtype: DType,
        on_tensor: OnTensor<'_>,
    ) -> Result<Converted> {
        if !matches!(dtype, DType::F32 | DType::Bf16 | DType::F16) {
            return Err(Error::config(
                "dtype",
                format!("{} is not f32, bf16 or f16", dtype.name()),
            ));
        }
        let modules = self.weight_modules()?;
        let plan = adapter.plan(&modules)?;
        let mut writer = FolderWriter::create(out, SHARD)?;
        let weights: Vec<String> =
            self.files.names().filter(|n| !is_part(n)).map(Into::into).collect();
        let mut done = Converted { from: self.files.bytes(), ..Converted::default() };
        for (i, name) in weights.iter().enumerate() {
            let (shape, values) = self.merged(name, &plan, &mut done)?;
            let data = narrowed(self.files.folder(), name, &shape, &values, dtype)?;
            done.to += data.bytes.len() as u64;
            writer.put(self.files.name_in_file(name), data)?;
            on_tensor(i + 1, weights.len());
        }
        let mut config = self.config.raw.clone();
        config.remove("quantization_config");
        let tied = self.config.model.tie_embeddings;
        let embed = self.config.model.full_name(EMBED);
        if tied && [&embed, HEAD].iter().any(|name| plan.replaced(name).is_some()) {
            insert_everywhere(&mut config, "tie_word_embeddings", false.into());
            done.untied = true;
            if self.files.info(HEAD).is_none() {
                let (shape, mut values) = self.expanded(&embed)?;
                if let Some(head) = plan.replaced(HEAD) {
                    values = floats(head)?;
                    done.replaced += 1;
                    done.changed += 1;
                }
                let data = narrowed(self.files.folder(), HEAD, &shape, &values, dtype)?;
                done.to += data.bytes.len() as u64;
                writer.put(HEAD, data)?;
            }
        }
        insert_dtype(&mut config, dtype);
        writer.finish(Some(&config), Some(self.files.folder()))?;
        Ok(done)
    }

    /// The weight `name` with what the adapter does to it.
    fn merged(
        &mut self,
        name: &str,
        plan: &MergePlan<'_>,
        done: &mut Converted,
    ) -> Result<(Vec<usize>, Vec<f32>)> {
        done.expanded += quantized::shape(&mut self.files, name)?.is_some() as usize;
        let (shape, mut values) = self.expanded(name)?;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        if let Some(replaced) = plan.replaced(name) {
            values = floats(replaced)?;
            done.replaced += 1;
            done.changed += 1;
        } else if let Some(update) = plan.update(module) {
            add_update(&mut values, update);
            done.changed += 1;
        } else {
            done.kept += 1;
        }
        Ok((shape, values))
    }

    /// Bytes that [`Pretrained::quantize_to`] and [`Pretrained::merge_to`] hold at most: a shard that
    /// is not full yet, and three copies of the largest tensor: as read, in f32, as written.
    pub fn conversion_memory(&self) -> u64 {
        SHARD.min(self.files.bytes()) + 4 * self.files.largest()
    }

    /// Modules with a weight, and its `[n, k]` (`[n]` for norms).
    fn weight_modules(&mut self) -> Result<Vec<(String, Vec<usize>)>> {
        let names: Vec<String> =
            self.files.names().filter(|n| !is_part(n)).map(Into::into).collect();
        let mut modules = Vec::new();
        for name in names {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let shape = match quantized::shape(&mut self.files, &name)? {
                Some(shape) => shape.to_vec(),
                None => self.files.info(&name).map_or(Vec::new(), |info| info.shape.clone()),
            };
            modules.push((module.to_string(), shape));
        }
        // A tied head is a module too: an adapter may hold its own.
        let tied = self.config.model.tie_embeddings && self.files.info(HEAD).is_none();
        let embed = self.config.model.full_name(EMBED);
        if let Some(info) = self.files.info(&embed).filter(|_| tied) {
            modules.push((HEAD.trim_end_matches(".weight").into(), info.shape.clone()));
        }
        Ok(modules)
    }

    /// A weight in f32, expanded if it is 4-bit.
    pub(super) fn expanded(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        if let Some(tensor) = quantized::read(&mut self.files, name)? {
            return Ok((vec![tensor.n(), tensor.k()], tensor.dequantize(&Device::Cpu)?));
        }
        let data = self.files.read(name)?;
        let folder = self.files.folder();
        let values = floats(&data).map_err(placed(folder, name, &data.shape))?;
        finite(folder, name, &data.shape, &values)?;
        Ok((data.shape, values))
    }
}

impl<T: Float> Decoder<T> {
    /// Writes the decoder's base weights, without adapters and what they replace, to the folder `out`,
    /// with configuration and tokenizer of the folder `from` that it was loaded from. A dense tensor
    /// has the dtype it has in `from` if that holds its values, else the one that the decoder computes
    /// in; a 4-bit model has the bytes it was loaded with. The configuration says what became of the
    /// weights.
    ///
    /// # Errors
    /// `Config` if `out` exists; `Io`, `Format`; what the driver says.
    pub fn save_pretrained(&self, out: &Path, from: &Path) -> Result<()> {
        let Pretrained { config, mut files } = Pretrained::open(from)?;
        let mut writer = FolderWriter::create(out, SHARD)?;
        let (kept, options) = self.write_weights(out, &mut writer, Some(&files))?;
        let tower: Vec<String> = files.names().filter(|n| is_of_tower(n)).map(Into::into).collect();
        for name in &tower {
            let data = files.read(name)?;
            writer.put(files.name_in_file(name), data)?;
        }
        let mut raw = config.raw;
        if !kept {
            insert_dtype(&mut raw, T::DTYPE);
        }
        if let Some(options) = options.filter(|_| !config.quantized) {
            let dtype = if kept { config.dtype } else { T::DTYPE };
            let quantization = quantization_config(&options, dtype, !tower.is_empty());
            raw.insert("quantization_config".into(), quantization);
        } else if kept {
            // Nothing became of them: byte for byte the file that was there.
            return writer.finish(None, Some(from));
        }
        writer.finish(Some(&raw), Some(from))
    }

    /// Writes the base weights of a decoder that comes from no folder, a Llama of bytes, to the folder
    /// `out`, in the dtype that it computes in. `ends` are the ids that end a sequence.
    ///
    /// # Errors
    /// `Config` if `out` exists; `Io`; what the driver says.
    pub fn save_fresh(&self, out: &Path, ends: &[i32]) -> Result<()> {
        let mut writer = FolderWriter::create(out, SHARD)?;
        let (_, options) = self.write_weights(out, &mut writer, None)?;
        let mut config = llama(&self.config, ends);
        insert_dtype(&mut config, T::DTYPE);
        if let Some(options) = options {
            let quantization = quantization_config(&options, T::DTYPE, false);
            config.insert("quantization_config".into(), quantization);
        }
        writer.finish(Some(&config), None)
    }

    /// Writes all base weights, each under the name and in the dtype that it has in the files `from` if
    /// that holds its values. Returns whether all of them are so, and how weights are quantized, if some
    /// are.
    fn write_weights(
        &self,
        out: &Path,
        writer: &mut FolderWriter,
        from: Option<&WeightFiles>,
    ) -> Result<(bool, Option<Nf4Options>)> {
        let stored = |name| from.and_then(|f| f.info(name)).map_or(T::DTYPE, |info| info.dtype);
        let tied = |p: &Parameter<T>| p.name == HEAD && self.config.tie_embeddings;
        let other = |p: &Parameter<T>| [".lora_", ORIGINAL].iter().any(|n| p.name.contains(n));
        let mut kept = true;
        for p in self.params.iter().filter(|p| !p.is_empty() && !other(p) && !tied(p)) {
            let values = self.params.original(p).values()?;
            let data = rounded(&p.shape, &values, stored(&p.name));
            let exact = floats::<f32>(&data)? == values;
            kept &= exact;
            let own = || narrowed(out, &p.name, &p.shape, &values, T::DTYPE);
            let name = from.map_or(p.name.as_str(), |files| files.name_in_file(&p.name));
            writer.put(name, if exact { data } else { own()? })?;
        }
        let mut options = None;
        for linear in self.linears().chain([&self.head]) {
            if let Weight::Nf4(w) = &linear.weight {
                let parts = w.to_parts()?;
                options = Some(Nf4Options {
                    quant_type: parts.quant_type,
                    blocksize: parts.blocksize,
                    double_quant: matches!(parts.absmax, OwnedAbsmax::Nested { .. }),
                });
                let name = format!("{}.weight", linear.name);
                let name = from.map_or(name.as_str(), |files| files.name_in_file(&name));
                writer.put_quantized(name, &parts)?;
            }
        }
        Ok((kept, options))
    }
}

/// The `config.json` of a Llama.
fn llama(model: &ModelConfig, ends: &[i32]) -> Map<String, Value> {
    let values = [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("attention_bias", json!(false)),
        ("bos_token_id", Value::Null),
        ("eos_token_id", json!(ends)),
        ("head_dim", json!(model.head_dim)),
        ("hidden_act", json!("silu")),
        ("hidden_size", json!(model.hidden)),
        ("intermediate_size", json!(model.ffn)),
        ("max_position_embeddings", json!(model.max_positions)),
        ("mlp_bias", json!(false)),
        ("model_type", json!("llama")),
        ("num_attention_heads", json!(model.heads)),
        ("num_hidden_layers", json!(model.layers)),
        ("num_key_value_heads", json!(model.kv_heads)),
        ("rms_norm_eps", json!(model.norm_eps)),
        ("rope_theta", json!(model.rope_theta)),
        ("tie_word_embeddings", json!(model.tie_embeddings)),
        ("vocab_size", json!(model.vocab)),
    ];
    Map::from_iter(values.map(|(name, value)| (name.to_string(), value)))
}

/// Names `dtype` under the key that the file has: transformers 4 does not know the new one.
pub(super) fn insert_dtype(config: &mut Map<String, Value>, dtype: DType) {
    let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    insert_everywhere(config, key, torch_name(dtype).into());
}

/// Sets `key`, also for the parts of a model of pictures that name it for themselves.
fn insert_everywhere(config: &mut Map<String, Value>, key: &str, value: Value) {
    for part in ["text_config", "vision_config"] {
        if let Some(own) = config.get_mut(part).and_then(|part| part.get_mut(key)) {
            *own = value.clone();
        }
    }
    config.insert(key.into(), value);
}

/// W += scale·B·A, every sum over the rank in f64.
fn add_update(w: &mut [f32], update: &LoraUpdate) {
    let LoraUpdate { a, b, r, scale } = update;
    let k = a.len() / r;
    if k == 0 {
        return;
    }
    w.par_chunks_mut(k).zip(b.par_chunks(*r)).for_each(|(row, b)| {
        let mut sum = vec![0f64; k];
        for (&b, a) in b.iter().zip(a.chunks(k)) {
            sum.iter_mut().zip(a).for_each(|(s, &a)| *s += b as f64 * a as f64);
        }
        row.iter_mut().zip(&sum).for_each(|(w, s)| *w = (*w as f64 + scale * s) as f32);
    });
}

/// `values` in `dtype`, if it has room for all of them.
pub(super) fn narrowed(
    path: &Path,
    name: &str,
    shape: &[usize],
    values: &[f32],
    dtype: DType,
) -> Result<TensorData> {
    finite(path, name, shape, values)?;
    let data = rounded(shape, values, dtype);
    check_finite(path, name, &data).map_err(|e| match e {
        Error::Format { path, reason } => {
            Error::format(path, format!("in {}, {reason}: choose another dtype", dtype.name()))
        }
        other => other,
    })?;
    Ok(data)
}

/// Refuses NaN and infinity in a tensor of floats.
fn check_finite(path: &Path, name: &str, data: &TensorData) -> Result<()> {
    fn one<T: Float>(path: &Path, name: &str, data: &TensorData) -> Result<()> {
        finite(path, name, &data.shape, &data.to_vec::<T>()?)
    }
    match data.dtype {
        DType::F32 => one::<f32>(path, name, data),
        DType::Bf16 => one::<bf16>(path, name, data),
        DType::F16 => one::<f16>(path, name, data),
        DType::F64 => one::<f64>(path, name, data),
        DType::U8 | DType::I32 | DType::I64 => Ok(()),
    }
}

fn rounded(shape: &[usize], values: &[f32], dtype: DType) -> TensorData {
    fn to<T: Float>(shape: &[usize], values: &[f32]) -> TensorData {
        TensorData::new(shape, &values.iter().map(|&x| T::from_f32(x)).collect::<Vec<T>>())
    }
    match dtype {
        DType::Bf16 => to::<bf16>(shape, values),
        DType::F16 => to::<f16>(shape, values),
        DType::F32 | DType::F64 | DType::U8 | DType::I32 | DType::I64 => {
            TensorData::new(shape, values)
        }
    }
}

/// Whether `name` is the weight of a linear map of a block: what bitsandbytes quantizes.
fn is_block_linear(name: &str, model: &ModelConfig) -> bool {
    let part = |p: &str| name.ends_with(&format!(".{p}_proj.weight"));
    name.starts_with(&model.full_name("layers."))
        && ["q", "k", "v", "o", "gate", "up", "down"].into_iter().any(part)
}

/// Whether `name` is a part of a 4-bit weight, or a table older folders carry.
pub(super) fn is_part(name: &str) -> bool {
    name.contains(".weight.") || name.ends_with(".inv_freq")
}

/// Names tensor and folder in an error about values.
fn placed<'a>(path: &'a Path, name: &'a str, shape: &'a [usize]) -> impl Fn(Error) -> Error + 'a {
    move |e| match e {
        Error::NonFinite { index, .. } => non_finite(path, name, shape, index),
        Error::InvalidArgument { .. } => Error::format(path, format!("`{name}`: {e}")),
        other => other,
    }
}

/// `tower`: the model has one for pictures, which stays dense.
fn quantization_config(options: &Nf4Options, dtype: DType, tower: bool) -> Value {
    let dense = if tower { json!(["lm_head", "model.visual"]) } else { Value::Null };
    let mut map = Map::new();
    let kind = match options.quant_type {
        QuantType::Nf4 => "nf4",
        QuantType::Fp4 => "fp4",
    };
    for (key, value) in [
        ("_load_in_4bit", json!(true)),
        ("_load_in_8bit", json!(false)),
        ("bnb_4bit_compute_dtype", json!(torch_name(dtype))),
        ("bnb_4bit_quant_storage", json!("uint8")),
        ("bnb_4bit_quant_type", json!(kind)),
        ("bnb_4bit_use_double_quant", json!(options.double_quant)),
        ("llm_int8_enable_fp32_cpu_offload", json!(false)),
        ("llm_int8_has_fp16_weight", json!(false)),
        ("llm_int8_skip_modules", dense),
        ("llm_int8_threshold", json!(6.0)),
        ("load_in_4bit", json!(true)),
        ("load_in_8bit", json!(false)),
        ("quant_method", json!("bitsandbytes")),
    ] {
        map.insert(key.into(), value);
    }
    Value::Object(map)
}
