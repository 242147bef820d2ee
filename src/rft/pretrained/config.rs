//! `config.json` of a Hugging Face folder, as transformers 4 and 5 write it, read into
//! [`ModelConfig`]. What a decoder here cannot compute is refused by name: a field that is ignored
//! is a wrong model.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::io::json;
use crate::model::{ModelConfig, RopeScaling};
use gradus::dtype::DType;
use gradus::error::{Error, Result};

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
    /// Ids that stand for pictures and films, where the model reads them. Its language part, which is
    /// all that is computed here, does not.
    pub pictures: Vec<i32>,
    /// The file itself, for a folder that is written from this one.
    pub raw: Map<String, Value>,
}

impl HfConfig {
    /// Reads `folder/config.json` and, if it is there, `folder/generation_config.json`.
    ///
    /// # Errors
    /// `Io`; `Format` for a missing or wrong field, an architecture other than Llama, Mistral,
    /// Qwen2, Qwen3 or Qwen2.5-VL (of which the language part is meant), and every setting of these
    /// that changes the computation and is not supported.
    pub fn load(folder: &Path) -> Result<HfConfig> {
        let path = folder.join("config.json");
        let file = Fields { raw: json::read_object(&path)?, path };
        let generation = folder.join("generation_config.json");
        let language = language_part(&file)?;
        let part = language.as_ref().unwrap_or(&file);
        let mut eos = ids(part, "eos_token_id")?;
        if generation.exists() {
            let file = Fields { raw: json::read_object(&generation)?, path: generation };
            eos.extend(ids(&file, "eos_token_id")?);
        }
        // Each once, in the order of the files, which may hold millions.
        let mut seen = HashSet::new();
        eos.retain(|&id| seen.insert(id));
        let mut pictures = Vec::new();
        if language.is_some() {
            pictures = [ids(&file, "image_token_id")?, ids(&file, "video_token_id")?].concat();
        }
        let model = model_config(part)?;
        let (dtype, quantized) = (dtype(part)?, quantized(&file)?);
        Ok(HfConfig { model, dtype, quantized, eos, pictures, raw: file.raw })
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

/// A family of models, which `model_type` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    /// The language part of Qwen2.5-VL.
    Qwen25Vl,
}

const FAMILIES: [(&str, Family); 5] = [
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("qwen2_5_vl", Family::Qwen25Vl),
];

/// The settings of the language part of a model of pictures: `text_config` (transformers 5), or the file
/// itself (transformers 4). Settings that a file has once for both parts belong to it, too.
fn language_part(file: &Fields) -> Result<Option<Fields>> {
    const NAME: &str = "qwen2_5_vl";
    if file.get::<String>("model_type")?.as_deref() != Some(NAME) {
        return Ok(None);
    }
    let mut raw = match file.raw.get("text_config") {
        None | Some(Value::Null) => file.raw.clone(),
        Some(Value::Object(fields)) => fields.clone(),
        Some(_) => return file.refuse("`text_config` is not an object"),
    };
    for name in ["tie_word_embeddings", "dtype", "torch_dtype", "eos_token_id"] {
        let (own, whole) = (raw.get(name), file.raw.get(name).filter(|v| !v.is_null()));
        let Some(whole) = whole else { continue };
        if name == "tie_word_embeddings" && own.is_some_and(|own| own != whole) {
            return file.refuse(format!("`{name}` = {whole}, and not so in `text_config`"));
        }
        raw.insert(name.into(), whole.clone());
    }
    raw.insert("model_type".into(), NAME.into());
    Ok(Some(Fields { raw, path: file.path.clone() }))
}

fn model_config(file: &Fields) -> Result<ModelConfig> {
    let name: String = file.need("model_type")?;
    let Some((_, family)) = FAMILIES.into_iter().find(|family| family.0 == name) else {
        let known = FAMILIES.map(|family| family.0).join(", ");
        return file.refuse(format!("`model_type` = `{name}` is not one of {known}"));
    };
    refuse_unsupported(file, family)?;
    let language = family == Family::Qwen25Vl;
    let (hidden, heads) = (file.need("hidden_size")?, file.need("num_attention_heads")?);
    let (rope_theta, rope_scaling) = rope(file, family)?;
    let model = ModelConfig {
        vocab: file.need("vocab_size")?,
        hidden,
        layers: file.need("num_hidden_layers")?,
        heads,
        kv_heads: kv_heads(file, family, heads)?,
        head_dim: head_dim(file, family, hidden, heads)?,
        ffn: file.need("intermediate_size")?,
        norm_eps: file.or("rms_norm_eps", if language { 1e-5 } else { 1e-6 })?,
        rope_theta,
        rope_scaling,
        max_positions: file.need("max_position_embeddings")?,
        qkv_bias: language || family == Family::Qwen2,
        qk_norm: family == Family::Qwen3,
        tie_embeddings: file.or("tie_word_embeddings", false)?,
        language_part: language,
    };
    model.validate().map_err(|e| Error::format(&file.path, e.to_string()))?;
    Ok(model)
}

/// Heads of keys and values. A file without them means what its family's class in transformers falls
/// back to, null as many as there are heads.
fn kv_heads(file: &Fields, family: Family, heads: usize) -> Result<usize> {
    match (file.raw.contains_key("num_key_value_heads"), family) {
        (false, Family::Mistral | Family::Qwen25Vl) => Ok(8),
        (false, Family::Qwen2 | Family::Qwen3) => Ok(32),
        (false, Family::Llama) => Ok(heads),
        (true, _) => file.or("num_key_value_heads", heads),
    }
}

/// Width of a head; a file without it means what its family's class in transformers falls back to.
fn head_dim(file: &Fields, family: Family, hidden: usize, heads: usize) -> Result<usize> {
    match file.get("head_dim")? {
        Some(width) => Ok(width),
        None if family == Family::Qwen3 => Ok(128),
        None if heads > 0 && hidden.is_multiple_of(heads) => Ok(hidden / heads),
        None => {
            let reason = format!("{heads} `num_attention_heads` do not divide {hidden}");
            file.refuse(format!("`hidden_size`: {reason}"))
        }
    }
}

/// Settings of the supported families that change the computation.
fn refuse_unsupported(file: &Fields, family: Family) -> Result<()> {
    file.only("hidden_act", &["silu".into(), "swish".into()])?;
    for bias in ["attention_bias", "mlp_bias", "use_bias"] {
        file.only(bias, &[false.into()])?;
    }
    file.only("partial_rotary_factor", &[1.into(), 1.0.into()])?;
    for factor in ["logit_scale", "embedding_multiplier", "residual_multiplier", "logits_scaling"] {
        file.only(factor, &[1.into(), 1.0.into()])?;
    }
    let slides = match family {
        // Mistral's window is on unless the file says null, Llama's wherever it is given, Qwen's
        // behind a switch.
        Family::Mistral => file.raw.get("sliding_window").is_none_or(|w| !w.is_null()),
        Family::Llama => file.raw.get("sliding_window").is_some_and(|w| !w.is_null()),
        Family::Qwen2 | Family::Qwen3 | Family::Qwen25Vl => file.or("use_sliding_window", false)?,
    };
    if slides {
        let reason =
            "attention over a window is not supported (a Mistral file without the key has one)";
        return file.refuse(format!("`sliding_window`: {reason}"));
    }
    match file.get::<Vec<String>>("layer_types")? {
        Some(types) if types.iter().any(|t| t != "full_attention") => {
            file.refuse("`layer_types` other than full_attention are not supported")
        }
        _ => Ok(()),
    }
}

/// Base and scaling of the rotary frequencies: `rope_parameters` (transformers 5), or `rope_theta`
/// beside `rope_scaling` (transformers 4), which is the one that counts where a file has both.
fn rope(file: &Fields, family: Family) -> Result<(f64, RopeScaling)> {
    let language = family == Family::Qwen25Vl;
    let default = file.or("rope_theta", if language { 1e6 } else { 10_000.0 })?;
    let given = ["rope_scaling", "rope_parameters"].into_iter().find_map(|name| {
        let value = file.raw.get(name).filter(|v| !v.is_null())?;
        value.as_object().is_none_or(|fields| !fields.is_empty()).then_some((name, value))
    });
    let Some((name, value)) = given else { return Ok((default, RopeScaling::None)) };
    let rope = rope_fields(file, name, value, language)?;
    let theta = rope.or("rope_theta", default)?;
    rope.only("partial_rotary_factor", &[1.into(), 1.0.into()])?;
    let kind: Option<String> = match rope.get("rope_type")? {
        Some(kind) => Some(kind),
        None => rope.get("type")?,
    };
    let scaling = match kind.as_deref().unwrap_or("default") {
        "default" => RopeScaling::None,
        // Sections of a head turn by row, column and time of a picture. In text the three are one.
        "mrope" if language => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: positive(&rope, "factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: positive(&rope, "factor")?,
            low_freq_factor: positive(&rope, "low_freq_factor")?,
            high_freq_factor: positive(&rope, "high_freq_factor")?,
            original: match rope.get("original_max_position_embeddings")? {
                Some(original) => original,
                None => file.need("max_position_embeddings")?,
            },
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

/// Fields of rope settings that transformers knows. Those of other kinds of scaling are its defaults in
/// some files; a kind that is computed here reads none of them.
const ROPE_FIELDS: [&str; 15] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
];

/// The settings `value` of `name`. Where they are one object per kind of layer, those of full
/// attention, the only kind there is here.
fn rope_fields(file: &Fields, name: &str, value: &Value, language: bool) -> Result<Fields> {
    let Value::Object(fields) = value else {
        return file.refuse(format!("`{name}` is not an object"));
    };
    let by_layer = |key: &String| key.ends_with("_attention");
    let fields = match fields.keys().any(by_layer) {
        false => fields,
        true => match fields.keys().find(|key| !by_layer(key)) {
            Some(key) => {
                return file.refuse(format!("`{name}`: `{key}` beside settings by kind of layer"));
            }
            None => match fields.get("full_attention") {
                Some(Value::Object(fields)) => fields,
                _ => return file.refuse(format!("`{name}` has no object `full_attention`")),
            },
        },
    };
    let known = |key: &str| ROPE_FIELDS.contains(&key) || (language && key == "mrope_section");
    let unknown = |(key, value): &(&String, &Value)| !known(key) && !value.is_null();
    if let Some((key, value)) = fields.iter().find(unknown) {
        return file.refuse(format!("`{name}`: `{key}` = {value} is not supported"));
    }
    Ok(Fields { raw: fields.clone(), path: file.path.clone() })
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(family: &str, extra: Value) -> Result<ModelConfig> {
        let Value::Object(mut raw) = json!({"model_type": family, "hidden_size": 128,
            "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
            "vocab_size": 256, "max_position_embeddings": 512, "rope_theta": 5000.0,
            "num_key_value_heads": 4, "head_dim": 32, "sliding_window": null})
        else {
            unreachable!("the literal is an object")
        };
        for (key, value) in extra.as_object().unwrap() {
            match value == "absent" {
                true => drop(raw.remove(key)),
                false => drop(raw.insert(key.clone(), value.clone())),
            }
        }
        model_config(&Fields { raw, path: "config.json".into() })
    }

    /// What transformers 5.24 reads from the same files.
    #[test]
    fn rope_settings_are_read_as_transformers_reads_them() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0});
        let scaled = |original| RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original,
        };
        let full = json!({"rope_theta": 777.0});
        let (linear, other) = (
            json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 3.0}),
            json!({"rope_type": "linear", "factor": 4.0}),
        );
        let mut nested3 = llama3.clone();
        nested3["original_max_position_embeddings"] = 77.into();
        for (extra, theta, scaling) in [
            (json!({}), 5000.0, RopeScaling::None),
            (json!({"rope_parameters": full}), 777.0, RopeScaling::None),
            (json!({"rope_parameters": {"full_attention": full}}), 777.0, RopeScaling::None),
            (
                json!({"rope_parameters": {"full_attention": full,
                    "sliding_attention": {"rope_theta": 1.0}}}),
                777.0,
                RopeScaling::None,
            ),
            (json!({"rope_parameters": {"full_attention": {}}}), 5000.0, RopeScaling::None),
            (json!({"rope_parameters": {"full_attention": nested3}}), 5000.0, scaled(77)),
            (json!({"rope_scaling": llama3}), 5000.0, scaled(512)),
            (
                json!({"rope_scaling": other, "rope_parameters": linear}),
                5000.0,
                RopeScaling::Linear { factor: 4.0 },
            ),
            (
                json!({"rope_scaling": {}, "rope_parameters": linear}),
                3.0,
                RopeScaling::Linear { factor: 2.0 },
            ),
        ] {
            for (family, _) in FAMILIES {
                let got = config(family, extra.clone()).unwrap();
                assert_eq!((got.rope_theta, got.rope_scaling), (theta, scaling), "{extra}");
            }
        }
        for (rope, word) in [
            (json!({"full_attention": full, "rope_theta": 2.0}), "`rope_theta` beside"),
            (json!({"sliding_attention": full}), "full_attention"),
            (json!({"full_attention": null}), "full_attention"),
            (json!({"full_attention": {"rope_type": "yarn", "factor": 2.0}}), "yarn"),
            (json!({"full_attention": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
            (json!({"rope_theta": 2.0, "mrope_section": [1, 2]}), "mrope_section"),
            (json!({"rope_theta": -2.0}), "rope_theta"),
            (json!([1]), "rope_parameters"),
        ] {
            let error = config("qwen3", json!({"rope_parameters": rope})).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    /// A field that is not in the file has the value of the family's class, not one for all.
    #[test]
    fn fields_that_a_file_lacks_are_those_of_its_family() {
        let heads = |family, extra| config(family, extra).map(|c| (c.kv_heads, c.head_dim));
        let lacks = || {
            json!({"num_key_value_heads": "absent", "head_dim": "absent",
                "num_attention_heads": 64})
        };
        for (family, kv_heads, head_dim) in
            [("llama", 64, 2), ("mistral", 8, 2), ("qwen2", 32, 2), ("qwen3", 32, 128)]
        {
            assert_eq!(heads(family, lacks()).unwrap(), (kv_heads, head_dim), "{family}");
        }
        let null = json!({"num_key_value_heads": null});
        assert_eq!(heads("qwen3", null).unwrap(), (4, 32));
        let window = json!({"sliding_window": "absent"});
        let error = config("mistral", window.clone()).unwrap_err().to_string();
        assert!(error.contains("sliding_window"), "{error}");
        config("llama", window.clone()).unwrap();
        config("qwen2", window).unwrap();
    }
}
