//! `config.json` of a Hugging Face folder, as transformers 4 and 5 write it, read into
//! [`ModelConfig`]. What a decoder here cannot compute is refused by name: a field that is ignored
//! is a wrong model.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::json;
use crate::model::{ModelConfig, RopeScaling};

/// What a folder's `config.json` and `generation_config.json` say.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    /// Extents and switches.
    pub model: ModelConfig,
    /// Dtype of the weights, f32 where the file names none.
    pub dtype: DType,
    /// Whether the linear weights are 4-bit bitsandbytes tensors.
    pub quantized: bool,
    /// Ids that end a sequence, of both files.
    pub eos: Vec<i32>,
    /// The file itself, for a folder that is written from this one.
    pub raw: Map<String, Value>,
}

impl HfConfig {
    /// Reads `folder/config.json` and, if it is there, `folder/generation_config.json`.
    ///
    /// # Errors
    /// `Io`; `Format` for a missing or wrong field, an architecture other than Llama, Mistral,
    /// Qwen2 or Qwen3, and every setting of these that changes the computation and is not
    /// supported.
    pub fn load(folder: &Path) -> Result<HfConfig> {
        let path = folder.join("config.json");
        let file = Fields { raw: json::read_object(&path)?, path };
        let generation = folder.join("generation_config.json");
        let mut eos = ids(&file, "eos_token_id")?;
        if generation.exists() {
            let file = Fields { raw: json::read_object(&generation)?, path: generation };
            for id in ids(&file, "eos_token_id")? {
                if !eos.contains(&id) {
                    eos.push(id);
                }
            }
        }
        let model = model_config(&file)?;
        let (dtype, quantized) = (dtype(&file)?, quantized(&file)?);
        Ok(HfConfig { model, dtype, quantized, eos, raw: file.raw })
    }
}

/// A JSON object with the file it came from.
pub(super) struct Fields {
    pub raw: Map<String, Value>,
    pub path: PathBuf,
}

impl Fields {
    pub fn refuse<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(Error::format(&self.path, reason))
    }

    pub fn get<T: for<'de> serde::Deserialize<'de>>(&self, name: &str) -> Result<Option<T>> {
        json::field(&self.raw, name).map_err(|e| Error::format(&self.path, e))
    }

    pub fn need<T: for<'de> serde::Deserialize<'de>>(&self, name: &str) -> Result<T> {
        match self.get(name)? {
            Some(value) => Ok(value),
            None => self.refuse(format!("`{name}` is missing")),
        }
    }

    /// `name`, or `default` where it is missing or null.
    pub fn or<T: for<'de> serde::Deserialize<'de>>(&self, name: &str, default: T) -> Result<T> {
        Ok(self.get(name)?.unwrap_or(default))
    }

    /// Refuses the file if `name` is anything but missing, null or one of `allowed`.
    pub fn only(&self, name: &str, allowed: &[Value]) -> Result<()> {
        match self.raw.get(name) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if allowed.contains(value) => Ok(()),
            Some(value) => self.refuse(format!("`{name}` = {value} is not supported")),
        }
    }
}

fn ids(file: &Fields, name: &str) -> Result<Vec<i32>> {
    match file.raw.get(name) {
        Some(Value::Array(_)) => file.need(name),
        _ => Ok(file.get::<i32>(name)?.into_iter().collect()),
    }
}

const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

fn model_config(file: &Fields) -> Result<ModelConfig> {
    let family: String = file.need("model_type")?;
    if !FAMILIES.contains(&family.as_str()) {
        let known = FAMILIES.join(", ");
        return file.refuse(format!("`model_type` = `{family}` is not one of {known}"));
    }
    refuse_unsupported(file, &family)?;
    let (hidden, heads) = (file.need("hidden_size")?, file.need("num_attention_heads")?);
    let (rope_theta, rope_scaling) = rope(file)?;
    let model = ModelConfig {
        vocab: file.need("vocab_size")?,
        hidden,
        layers: file.need("num_hidden_layers")?,
        heads,
        kv_heads: file.or("num_key_value_heads", heads)?,
        head_dim: match file.get("head_dim")? {
            Some(width) => width,
            None if heads > 0 && hidden % heads == 0 => hidden / heads,
            None => {
                let reason = format!("{heads} `num_attention_heads` do not divide {hidden}");
                return file.refuse(format!("`hidden_size`: {reason}"));
            }
        },
        ffn: file.need("intermediate_size")?,
        norm_eps: file.or("rms_norm_eps", 1e-6)?,
        rope_theta,
        rope_scaling,
        max_positions: file.need("max_position_embeddings")?,
        qkv_bias: family == "qwen2",
        qk_norm: family == "qwen3",
        tie_embeddings: file.or("tie_word_embeddings", false)?,
    };
    model.validate().map_err(|e| Error::format(&file.path, e.to_string()))?;
    Ok(model)
}

/// Settings of the supported families that change the computation.
fn refuse_unsupported(file: &Fields, family: &str) -> Result<()> {
    file.only("hidden_act", &["silu".into(), "swish".into()])?;
    for bias in ["attention_bias", "mlp_bias", "use_bias"] {
        file.only(bias, &[false.into()])?;
    }
    file.only("partial_rotary_factor", &[1.into(), 1.0.into()])?;
    for factor in ["logit_scale", "embedding_multiplier", "residual_multiplier", "logits_scaling"] {
        file.only(factor, &[1.into(), 1.0.into()])?;
    }
    let slides = match family {
        // Mistral's window is on wherever it is given, Qwen's behind a switch.
        "mistral" | "llama" => file.raw.get("sliding_window").is_some_and(|w| !w.is_null()),
        _ => file.or("use_sliding_window", false)?,
    };
    if slides {
        return file.refuse("`sliding_window`: attention over a window is not supported");
    }
    match file.get::<Vec<String>>("layer_types")? {
        Some(types) if types.iter().any(|t| t != "full_attention") => {
            file.refuse("`layer_types` other than full_attention are not supported")
        }
        _ => Ok(()),
    }
}

/// Base and scaling of the rotary frequencies: `rope_parameters` (transformers 5), or `rope_theta`
/// beside `rope_scaling` (transformers 4).
fn rope(file: &Fields) -> Result<(f64, RopeScaling)> {
    let default = file.or("rope_theta", 10_000.0)?;
    let Some(raw) = ["rope_parameters", "rope_scaling"]
        .into_iter()
        .find_map(|name| file.raw.get(name).filter(|v| !v.is_null()))
    else {
        return Ok((default, RopeScaling::None));
    };
    let Value::Object(raw) = raw else {
        return file.refuse("the rope settings are not an object");
    };
    let rope = Fields { raw: raw.clone(), path: file.path.clone() };
    let theta = rope.or("rope_theta", default)?;
    rope.only("partial_rotary_factor", &[1.into(), 1.0.into()])?;
    let kind: Option<String> = match rope.get("rope_type")? {
        Some(kind) => Some(kind),
        None => rope.get("type")?,
    };
    let scaling = match kind.as_deref().unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: positive(&rope, "factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: positive(&rope, "factor")?,
            low_freq_factor: positive(&rope, "low_freq_factor")?,
            high_freq_factor: positive(&rope, "high_freq_factor")?,
            original: rope.need("original_max_position_embeddings")?,
        },
        other => {
            let known = "default, linear, llama3";
            return file.refuse(format!("`rope_type` = `{other}` is not one of {known}"));
        }
    };
    if let RopeScaling::Llama3 { low_freq_factor: low, high_freq_factor: high, .. } = scaling
        && low >= high
    {
        return file.refuse(format!("`low_freq_factor` {low} is not below {high}"));
    }
    Ok((theta, scaling))
}

fn positive(file: &Fields, name: &str) -> Result<f64> {
    match file.need::<f64>(name)? {
        value if value.is_finite() && value > 0.0 => Ok(value),
        value => file.refuse(format!("`{name}` = {value} is not a finite number > 0")),
    }
}

/// `dtype` (transformers 5) or `torch_dtype` (transformers 4).
fn dtype(file: &Fields) -> Result<DType> {
    let name: Option<String> = match file.get("dtype")? {
        Some(name) => Some(name),
        None => file.get("torch_dtype")?,
    };
    match name.as_deref() {
        None | Some("float32") => Ok(DType::F32),
        Some("bfloat16") => Ok(DType::Bf16),
        Some("float16") => Ok(DType::F16),
        Some(other) => {
            file.refuse(format!("`dtype` = `{other}` is not float32, bfloat16 or float16"))
        }
    }
}

fn quantized(file: &Fields) -> Result<bool> {
    let Some(raw) = file.raw.get("quantization_config").filter(|v| !v.is_null()) else {
        return Ok(false);
    };
    let Value::Object(raw) = raw else {
        return file.refuse("`quantization_config` is not an object");
    };
    let quant = Fields { raw: raw.clone(), path: file.path.clone() };
    let method: String = quant.or("quant_method", "none".to_string())?;
    let four: bool = quant.or("load_in_4bit", quant.or("_load_in_4bit", false)?)?;
    if method != "bitsandbytes" || !four {
        let reason = "only bitsandbytes with load_in_4bit is supported";
        return file.refuse(format!("`quantization_config`: `{method}`; {reason}"));
    }
    Ok(true)
}
