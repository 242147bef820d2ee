//! PEFT LoRA adapters: `adapter_config.json` and `adapter_model.safetensors`, in and out.
//!
//! The file's keys are the module's name between `base_model.model.` and `.lora_A.weight` `[r, k]`
//! or `.lora_B.weight` `[n, r]`; modules that are saved whole have their parameters there. Keys that
//! are missing or left over are errors: PEFT warns, and serves the base model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::io::atomic;
use crate::io::json::read_limited;
use crate::io::safetensors::{TensorData, Tensors, deserialize, write_pt};
use crate::model::{Decoder, HEAD, Linear, NewLora, Parameter, Weight};
use crate::pretrained::adapter_config::AdapterConfig;
use crate::pretrained::folder::write_json;
use crate::pretrained::load::{finite, floats};
use gradus::dtype::Float;
use gradus::error::{Error, Result};

/// An adapter with its values.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// `adapter_config.json`.
    pub config: AdapterConfig,
    tensors: Tensors,
    path: PathBuf,
}

const PREFIX: &str = "base_model.model.";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Largest adapter file that is read.
const LIMIT: u64 = 16 << 30;

/// The update of one module.
pub(crate) struct LoraUpdate {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub r: usize,
    pub scale: f64,
}

/// An adapter held against the modules of a model.
pub(crate) struct MergePlan<'a> {
    updates: BTreeMap<String, LoraUpdate>,
    replaced: BTreeMap<String, &'a TensorData>,
}

impl MergePlan<'_> {
    /// The update of `module`.
    pub fn update(&self, module: &str) -> Option<&LoraUpdate> {
        self.updates.get(module)
    }

    /// The whole copy of parameter `name`.
    pub fn replaced(&self, name: &str) -> Option<&TensorData> {
        self.replaced.get(name).copied()
    }
}

impl Adapter {
    /// Reads the adapter in `folder`.
    ///
    /// # Errors
    /// `Io`; `Format` for what [`AdapterConfig::load`] refuses and a weight file that is not strict
    /// safetensors.
    pub fn load(folder: &Path) -> Result<Adapter> {
        let config = AdapterConfig::load(folder)?;
        let path = folder.join(WEIGHTS);
        if !path.exists() && folder.join("adapter_model.bin").exists() {
            let reason = "adapter_model.bin is a pickle, which can run code and is never read";
            return Err(Error::format(folder, reason));
        }
        let tensors = deserialize(&path, &read_limited(&path, LIMIT)?)?;
        Ok(Adapter { config, tensors, path })
    }

    /// The adapters of `model`, under `config`, which they were attached by.
    ///
    /// # Errors
    /// `InvalidArgument` if the model has none; what the driver says.
    pub fn of<T: Float>(model: &Decoder<T>, config: &AdapterConfig) -> Result<Adapter> {
        let mut tensors = Tensors::new();
        for p in model.params.iter() {
            if p.name.contains(".lora_") || p.trainable {
                let data = TensorData::new::<f32>(&p.shape, &p.values()?);
                tensors.insert(format!("{PREFIX}{}", p.name), data);
            }
        }
        if tensors.is_empty() {
            return Err(Error::invalid("adapter", "model", "no adapter", "a model with adapters"));
        }
        Ok(Adapter { config: config.clone(), tensors, path: WEIGHTS.into() })
    }

    /// Writes the adapter to `folder`, which is there whole or not at all; an older one is replaced.
    ///
    /// # Errors
    /// `Io`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        atomic::folder(folder, |folder| {
            write_pt(&folder.join(WEIGHTS), &self.tensors)?;
            let config = Value::Object(self.config.raw().clone());
            write_json(&folder.join("adapter_config.json"), &config)
        })
    }

    /// Names and values, as in the file.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Attaches the adapter to `model`, which is frozen but for it. Modules that the adapter holds
    /// whole take the place of the model's and train on; the base model keeps its own, also as a head
    /// that was tied to a replaced embedding, as in PEFT.
    ///
    /// # Errors
    /// `Format` for an adapter of another model: modules without an adapter where there should be
    /// one, keys that belong nowhere, other shapes; for NaN or infinity, and for a whole copy of a
    /// 4-bit module. `InvalidArgument` if the model has adapters. Nothing has changed then.
    pub fn attach<T: Float>(&self, model: &mut Decoder<T>) -> Result<()> {
        let plan = self.plan(&modules(model))?;
        let mut replaced = Vec::new();
        for (name, data) in &plan.replaced {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            if packed(model).any(|linear| linear.name == module) {
                let reason = format!("`modules_to_save`: `{module}` is 4-bit in this model");
                return Err(Error::format(&self.path, reason));
            }
            replaced.push((name, floats::<f32>(data)?));
        }
        let mut updates = plan.updates;
        model.attach(|linear| {
            let update = updates.remove(&linear.name)?;
            Some(NewLora { r: update.r, scale: update.scale, a: update.a, b: update.b })
        })?;
        replaced.into_iter().try_for_each(|(name, values)| model.replace(name, values))
    }

    /// Holds the adapter against `modules`, the names and shapes of a model's weights.
    pub(crate) fn plan(&self, modules: &[(String, Vec<usize>)]) -> Result<MergePlan<'_>> {
        let wrong = |reason: String| Error::format(&self.path, reason);
        let mut plan = MergePlan { updates: BTreeMap::new(), replaced: BTreeMap::new() };
        let mut used = BTreeSet::new();
        for (module, shape) in modules {
            if self.config.saves(module) {
                let name = format!("{module}.weight");
                let key = format!("{PREFIX}{name}");
                let data = self.tensor(&key, shape)?;
                self.values(&key, data)?;
                plan.replaced.insert(name, data);
                used.insert(key);
                continue;
            }
            if shape.len() != 2 || !self.config.targets(module, is_outer(module))? {
                continue;
            }
            if is_outer(module) {
                let reason =
                    format!("`target_modules` includes `{module}`, which takes no adapter here");
                return Err(wrong(reason));
            }
            let (r, scale) = (self.config.rank(module)?, self.config.scale(module)?);
            let keys = ["A", "B"].map(|m| format!("{PREFIX}{module}.lora_{m}.weight"));
            let a = self.values(&keys[0], self.tensor(&keys[0], &[r, shape[1]])?)?;
            let b = self.values(&keys[1], self.tensor(&keys[1], &[shape[0], r])?)?;
            plan.updates.insert(module.clone(), LoraUpdate { a, b, r, scale });
            used.extend(keys);
        }
        if let Some(left) = self.tensors.keys().find(|key| !used.contains(*key)) {
            return Err(wrong(format!(
                "key `{left}` belongs to no module that the adapter targets"
            )));
        }
        if plan.updates.is_empty() {
            return Err(wrong("`target_modules` matches no module of the model".into()));
        }
        Ok(plan)
    }

    fn values(&self, key: &str, data: &TensorData) -> Result<Vec<f32>> {
        let values =
            floats(data).map_err(|e| Error::format(&self.path, format!("`{key}`: {e}")))?;
        finite(&self.path, key, &data.shape, &values)?;
        Ok(values)
    }

    fn tensor(&self, key: &str, shape: &[usize]) -> Result<&TensorData> {
        let Some(data) = self.tensors.get(key) else {
            return Err(Error::format(&self.path, format!("key `{key}` is missing")));
        };
        if data.shape != shape {
            let reason = format!("`{key}` has shape {:?}, expected {shape:?}", data.shape);
            return Err(Error::format(&self.path, reason));
        }
        Ok(data)
    }
}

/// Embedding and head: modules outside the blocks.
fn is_outer(module: &str) -> bool {
    !module.contains(".layers.")
}

/// The 4-bit maps of a model, the head among them.
fn packed<T: Float>(model: &Decoder<T>) -> impl Iterator<Item = &Linear> {
    let all = model.linears().chain([&model.head]);
    all.filter(|linear| matches!(linear.weight, Weight::Nf4(_)))
}

/// Names and shapes of the model's weights. A head that is tied to the embedding is a module too: an
/// adapter may hold its own.
fn modules<T: Float>(model: &Decoder<T>) -> Vec<(String, Vec<usize>)> {
    let dense = |p: &Parameter<T>| {
        let module = p.name.strip_suffix(".weight").filter(|m| !m.contains(".lora_"))?;
        (!p.is_empty()).then(|| (module.to_string(), p.shape.clone()))
    };
    let mut modules: Vec<_> = model.params.iter().filter_map(dense).collect();
    let whole = |linear: &Linear| vec![linear.n, linear.k];
    modules.extend(packed(model).map(|linear| (linear.name.clone(), whole(linear))));
    let head = HEAD.trim_end_matches(".weight");
    if !modules.iter().any(|(name, _)| name == head) {
        modules.push((head.into(), whole(&model.head)));
    }
    modules
}
