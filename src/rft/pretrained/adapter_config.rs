//! `adapter_config.json` of a PEFT LoRA adapter: which modules it adapts, with what rank and scale.
//! The rules are PEFT's; kinds of adapter that compute something else are refused by name.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::io::json;
use crate::model::{LoraOptions, ModelConfig};
use crate::pretrained::config::Fields;
use crate::pretrained::pattern::Pattern;
use gradus::error::{Error, Result};

/// An adapter's configuration.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    targets: Names,
    exclude: Option<Names>,
    layers: Option<Layers>,
    rank: usize,
    alpha: f64,
    rslora: bool,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
    modules_to_save: Vec<String>,
    raw: Map<String, Value>,
}

/// A choice of modules by name.
#[derive(Clone, Debug)]
enum Names {
    /// Every linear map but the head.
    AllLinear,
    /// Names, or ends of names behind a dot.
    List(Vec<String>),
    /// The whole name.
    Pattern(Pattern),
}

/// A choice of layers.
#[derive(Clone, Debug)]
struct Layers {
    indices: Vec<usize>,
    patterns: Vec<Pattern>,
}

/// What LoRA variants, by the key that switches them on, are not computed here.
const VARIANTS: [(&str, &str); 12] = [
    ("use_dora", "DoRA"),
    ("lora_bias", "LoRA with a bias"),
    ("fan_in_fan_out", "transposed weights"),
    ("use_qalora", "QA-LoRA"),
    ("use_bdlora", "BD-LoRA"),
    ("layer_replication", "replicated layers"),
    ("trainable_token_indices", "single trained tokens"),
    ("target_parameters", "adapted parameters without a module"),
    ("alora_invocation_tokens", "activated LoRA"),
    ("arrow_config", "Arrow routing"),
    ("megatron_config", "Megatron's layers"),
    ("ensure_weight_tying", "tied copies of adapted embeddings"),
];

impl AdapterConfig {
    /// The configuration of adapters that [`crate::model::Decoder::attach_lora`] attaches to `model`
    /// from `base`, with every field PEFT writes.
    pub fn new(options: &LoraOptions, model: &ModelConfig, base: &str) -> Result<AdapterConfig> {
        let names = match options.targets.as_str() {
            "all-linear" => crate::model::LINEAR_NAMES.to_vec(),
            list => list.split(',').map(str::trim).collect(),
        };
        // The tower of a model of pictures has maps of the same names.
        let targets = match model.language_part {
            true => json!(format!(r"model\.language_model\..*\.({})", names.join("|"))),
            false => json!(names),
        };
        let raw = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
            "r": options.rank, "lora_alpha": alpha_value(options.alpha), "lora_dropout": 0.0,
            "use_rslora": options.rslora, "target_modules": targets, "bias": "none",
            "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
            "use_dora": false, "modules_to_save": null, "rank_pattern": {}, "alpha_pattern": {},
            "exclude_modules": null, "layers_to_transform": null, "layers_pattern": null,
            "revision": null, "auto_mapping": null,
        });
        let Value::Object(raw) = raw else { unreachable!("the literal is an object") };
        AdapterConfig::parse(Fields { raw, path: PathBuf::from("adapter_config.json") })
    }

    /// Reads `folder/adapter_config.json`.
    ///
    /// # Errors
    /// `Io`; `Format` for a missing `r`, `lora_alpha` or `target_modules`, a pattern that is not a
    /// regular expression, and everything but plain or rank-stabilized LoRA.
    pub fn load(folder: &Path) -> Result<AdapterConfig> {
        let path = folder.join("adapter_config.json");
        AdapterConfig::parse(Fields { raw: json::read_object(&path)?, path })
    }

    fn parse(file: Fields) -> Result<AdapterConfig> {
        refuse_variants(&file)?;
        let Some(targets) = names(&file, "target_modules")? else {
            return file.refuse("`target_modules` is missing");
        };
        let rank: usize = file.need("r")?;
        let alpha: f64 = file.need("lora_alpha")?;
        if rank == 0 || !alpha.is_finite() {
            return file
                .refuse(format!("`r` = {rank} and `lora_alpha` = {alpha}: not a LoRA scale"));
        }
        Ok(AdapterConfig {
            targets,
            exclude: names(&file, "exclude_modules")?,
            layers: layers(&file)?,
            rank,
            alpha,
            rslora: file.or("use_rslora", false)?,
            ranks: patterns(&file, "rank_pattern")?,
            alphas: patterns(&file, "alpha_pattern")?,
            modules_to_save: file.or("modules_to_save", Vec::new())?,
            raw: file.raw,
        })
    }

    /// Names `base`, a folder or a name, as the model that the adapter goes with.
    pub fn on_base(mut self, base: &str) -> AdapterConfig {
        self.raw.insert("base_model_name_or_path".into(), base.into());
        self
    }

    /// Names `p` as the dropout that the adapter was trained with. It is of training alone.
    pub fn with_dropout(mut self, p: f64) -> AdapterConfig {
        self.raw.insert("lora_dropout".into(), p.into());
        self
    }

    /// The file's content.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// Whether `module`, a linear map, takes an adapter. `is_head`: it is the output head.
    ///
    /// # Errors
    /// `Format` for a pattern that takes too many steps on this name, here and below.
    pub fn targets(&self, module: &str, is_head: bool) -> Result<bool> {
        if let Some(names) = &self.exclude
            && names.contain(module, false)?
        {
            return Ok(false);
        }
        if !self.targets.contain(module, is_head)? {
            return Ok(false);
        }
        match (&self.targets, &self.layers) {
            (Names::List(names), Some(layers)) if !names.iter().any(|n| n == module) => {
                layers.contain(module)
            }
            _ => Ok(true),
        }
    }

    /// Whether the adapter holds a whole copy of `module`.
    pub fn saves(&self, module: &str) -> bool {
        self.modules_to_save.iter().any(|name| module.ends_with(name.as_str()))
    }

    /// Whether it holds whole copies of modules.
    #[cfg(feature = "serve")]
    pub(crate) fn saves_whole(&self) -> bool {
        !self.modules_to_save.is_empty()
    }

    /// Rank of the adapter of `module`.
    pub fn rank(&self, module: &str) -> Result<usize> {
        Ok(first(&self.ranks, module)?.unwrap_or(self.rank))
    }

    /// What B·A is scaled by: alpha / r, rank-stabilized alpha / √r (Kalajdzievski 2023,
    /// arXiv:2312.03732).
    pub fn scale(&self, module: &str) -> Result<f64> {
        let r = self.rank(module)? as f64;
        let alpha = first(&self.alphas, module)?.unwrap_or(self.alpha);
        Ok(if self.rslora { alpha / r.sqrt() } else { alpha / r })
    }
}

/// PEFT writes whole alphas as integers.
fn alpha_value(alpha: f64) -> Value {
    match alpha.fract() == 0.0 && alpha.abs() < 1e15 {
        true => json!(alpha as i64),
        false => json!(alpha),
    }
}

fn refuse_variants(file: &Fields) -> Result<()> {
    let kind: String = file.need("peft_type")?;
    if kind != "LORA" {
        return file.refuse(format!("`peft_type` = `{kind}` is not LORA"));
    }
    let on = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    };
    for (key, what) in VARIANTS {
        if file.raw.get(key).is_some_and(on) {
            return file.refuse(format!("`{key}`: {what} is not supported"));
        }
    }
    // Variants that are younger than this list.
    let variant = |key: &str| key.starts_with("use_") || key.ends_with("_config");
    let plain = ["use_rslora", "loftq_config", "eva_config", "corda_config"];
    if let Some((key, _)) =
        file.raw.iter().find(|(k, v)| variant(k) && on(v) && !plain.contains(&k.as_str()))
    {
        return file
            .refuse(format!("`{key}` is not known, and may change what the adapter computes"));
    }
    file.only("bias", &["none".into()])?;
    // Others subtract the first adapter from the base weights.
    let starts = [json!(true), json!(false), json!("gaussian"), json!("eva"), json!("orthogonal")];
    file.only("init_lora_weights", &starts)
}

fn names(file: &Fields, key: &'static str) -> Result<Option<Names>> {
    Ok(match file.raw.get(key) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text == "all-linear" => Some(Names::AllLinear),
        Some(Value::String(text)) => {
            let texts = [format!("^(?:{text})$")];
            Pattern::all(&file.path, key, &texts)?.pop().map(Names::Pattern)
        }
        Some(_) => Some(Names::List(file.need(key)?)),
    })
}

fn layers(file: &Fields) -> Result<Option<Layers>> {
    let indices = match file.raw.get("layers_to_transform") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(_)) => file.need("layers_to_transform")?,
        Some(_) => vec![file.need("layers_to_transform")?],
    };
    let given: Vec<String> = match file.raw.get("layers_pattern") {
        Some(Value::String(one)) => vec![one.clone()],
        _ => file.or("layers_pattern", Vec::new())?,
    };
    let texts: Vec<String> = match given.is_empty() {
        true => vec![r"^.*\.[^.]*\.(\d+)\.".into()],
        false => given.iter().map(|p| format!(r"^.*\.{p}\.(\d+)\.")).collect(),
    };
    let patterns = Pattern::all(&file.path, "layers_pattern", &texts)?;
    Ok(Some(Layers { indices, patterns }))
}

fn patterns<V: for<'de> serde::Deserialize<'de>>(
    file: &Fields,
    key: &'static str,
) -> Result<Vec<(Pattern, V)>> {
    let Some(Value::Object(map)) = file.raw.get(key).filter(|v| !v.is_null()) else {
        return Ok(Vec::new());
    };
    let one = |(text, value): (&String, &Value)| {
        V::deserialize(value)
            .map_err(|e| Error::format(&file.path, format!("`{key}`: `{text}`: {e}")))
    };
    let values: Vec<V> = map.iter().map(one).collect::<Result<_>>()?;
    let texts: Vec<String> = map.keys().map(|text| format!(r"^(?:.*\.)?(?:{text})$")).collect();
    Ok(Pattern::all(&file.path, key, &texts)?.into_iter().zip(values).collect())
}

fn first<V: Copy>(patterns: &[(Pattern, V)], module: &str) -> Result<Option<V>> {
    for (pattern, value) in patterns {
        if pattern.matches(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

impl Names {
    fn contain(&self, module: &str, is_head: bool) -> Result<bool> {
        Ok(match self {
            Names::AllLinear => !is_head,
            Names::Pattern(pattern) => pattern.matches(module)?,
            Names::List(names) => names.iter().any(|name| {
                module
                    .strip_suffix(name.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        })
    }
}

impl Layers {
    fn contain(&self, module: &str) -> Result<bool> {
        for pattern in &self.patterns {
            let found = pattern.captures(module)?;
            let index = found.and_then(|found| found.get(1)?.as_str().parse::<usize>().ok());
            if let Some(index) = index {
                return Ok(self.indices.contains(&index));
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: Value) -> Result<AdapterConfig> {
        let Value::Object(mut raw) = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16,
            "target_modules": ["q_proj", "v_proj"]})
        else {
            unreachable!()
        };
        raw.append(&mut extra.as_object().unwrap().clone());
        AdapterConfig::parse(Fields { raw, path: "adapter_config.json".into() })
    }

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const K0: &str = "model.layers.0.self_attn.k_proj";
    const Q11: &str = "model.layers.11.self_attn.q_proj";

    #[test]
    fn targets_are_ends_paths_patterns_or_all() {
        let chosen = |targets: Value| {
            let c = config(json!({ "target_modules": targets })).unwrap();
            [Q0, K0, Q11, "lm_head"].map(|m| c.targets(m, m == "lm_head").unwrap())
        };
        assert_eq!(chosen(json!(["q_proj"])), [true, false, true, false]);
        assert_eq!(chosen(json!([Q0])), [true, false, false, false]);
        assert_eq!(chosen(json!("all-linear")), [true, true, true, false]);
        assert_eq!(chosen(json!(r".*layers\.1\d\..*q_proj")), [false, false, true, false]);
        assert_eq!(chosen(json!("q_proj")), [false; 4], "a pattern has to match the whole name");
        assert_eq!(chosen(json!(["proj"])), [false; 4], "an end begins behind a dot");
        assert_eq!(chosen(json!(["lm_head"])), [false, false, false, true]);
    }

    #[test]
    fn layers_and_exclusions_narrow_the_choice() {
        let c = config(json!({"layers_to_transform": [1, 11]})).unwrap();
        assert_eq!([Q0, Q11].map(|m| c.targets(m, false).unwrap()), [false, true]);
        let c = config(json!({"layers_to_transform": 0, "layers_pattern": "layers"})).unwrap();
        assert_eq!([Q0, Q11].map(|m| c.targets(m, false).unwrap()), [true, false]);
        let c = config(json!({"exclude_modules": [Q0]})).unwrap();
        assert_eq!([Q0, Q11].map(|m| c.targets(m, false).unwrap()), [false, true]);
    }

    #[test]
    fn patterns_set_rank_and_scale() {
        let c = config(json!({"rank_pattern": {"layers.0.self_attn.q_proj": 4}, "alpha_pattern": {"q_proj": 32},
            "use_rslora": true}))
        .unwrap();
        assert_eq!((c.rank(Q0).unwrap(), c.scale(Q0).unwrap()), (4, 16.0));
        assert_eq!((c.rank(Q11).unwrap(), c.scale(Q11).unwrap()), (8, 32.0 / 8f64.sqrt()));
        assert_eq!((c.rank(K0).unwrap(), c.scale(K0).unwrap()), (8, 16.0 / 8f64.sqrt()));
    }

    #[test]
    fn other_adapters_are_refused_by_name() {
        for (extra, word) in [
            (json!({"use_dora": true}), "DoRA"),
            (json!({"peft_type": "IA3"}), "IA3"),
            (json!({"bias": "all"}), "`bias`"),
            (json!({"init_lora_weights": "pissa"}), "pissa"),
            (json!({"lora_bias": true}), "bias"),
            (json!({"use_tomorrow": true}), "use_tomorrow"),
            (json!({"new_config": {"a": 1}}), "new_config"),
            (json!({"target_modules": null}), "target_modules"),
            (json!({"target_modules": "("}), "target_modules"),
            (json!({"r": 0}), "`r`"),
            (json!({"lora_alpha": null}), "lora_alpha"),
            (json!({"trainable_token_indices": [1]}), "tokens"),
        ] {
            let error = config(extra).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        assert!(config(json!({"qalora_group_size": 16, "eva_config": null})).is_ok());
    }

    /// Look-ahead and look-behind, as ms-swift writes them; hostile patterns are bounded.
    #[test]
    fn patterns_look_around_and_come_back_in_bounded_time() {
        let chosen = |targets: &str| {
            let c = config(json!({ "target_modules": targets })).unwrap();
            [Q0, K0, Q11, "lm_head"].map(|m| c.targets(m, m == "lm_head").unwrap())
        };
        let swift = r"^(model)(?!.*(lm_head|output|emb|wte|shared)).*\.(q_proj|k_proj)$";
        assert_eq!(chosen(swift), [true, true, true, false]);
        assert_eq!(chosen(r"^(?=.*layers\.11\.).*proj"), [false, false, true, false]);
        assert_eq!(chosen(r".*(?<!k)_proj"), [true, false, true, false]);
        assert_eq!(chosen(r"model\.layers\.(\d)\1\..*"), [false, false, true, false]);

        // Look-around costs steps, counted; size and depth are bounded before anything is compiled.
        let begun = std::time::Instant::now();
        let (open, close) = ("(".repeat(7_000), ")".repeat(7_000));
        for (targets, why) in [
            (r"(?!x)(([a-z._0-9]+)+)+\1!".to_string(), "Max limit for backtracking"),
            (r"(?=.*q)(.*.*.*.*.*.*.*.*)\1y".to_string(), "Max limit for backtracking"),
            (open + &close, "too deeply nested"),
            ("[^x]{60000}{60000}".into(), "error building NFA"),
            ("a".repeat(17 << 10), "bytes, at most 16384"),
        ] {
            let made = config(json!({ "target_modules": targets }));
            let error = made.and_then(|c| c.targets(Q0, false)).unwrap_err().to_string();
            assert!(error.contains("`target_modules`") && error.contains(why), "{error}");
        }
        let many: Map<String, Value> =
            (0..2_000).map(|i| (format!(r"(?!x)(([a-z._0-9]+)+)+\2-{i}!"), 4.into())).collect();
        let made = config(json!({ "rank_pattern": many }));
        let error = made.and_then(|c| c.rank(Q0)).unwrap_err().to_string();
        assert!(error.contains("`rank_pattern`: matching"), "{error}");
        let error = config(json!({ "alpha_pattern": {"b".repeat(1 << 18): 4} })).unwrap_err();
        assert!(error.to_string().contains("at most 131072"), "{error}");
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    }
}
