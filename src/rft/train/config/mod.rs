//! The settings of a run: a TOML file whose every key is optional, and `--set a.b=c` on top.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

mod auto;
mod bounds;
pub(crate) mod buffers;
mod check;
pub(crate) mod choice;
mod env;
pub mod explain;
mod keys;
mod plan;
pub(crate) mod readers;
pub(crate) mod section;
mod set;
mod suites;

pub use auto::Auto;
pub use bounds::Bounds;
pub(crate) use choice::choice;
pub use choice::{
    AdvantageKey, ChatSetting, CheckpointingKey, CombineKey, Control, CreditKey, DataFormat,
    DistillSource, DivergenceKey, HistoryKey, ImportanceKey, KeepKey, KlKey, ModelDtype,
    OptimizerKey, QuantizeType, RestKey, ScaleKey, Schedule, SourceKey, TaskName,
};
pub use keys::*;
pub use plan::{Drawn, PhaseEntry, PhasePlan};

use sha2::{Digest, Sha256};

use crate::io::json;
use crate::recipes;
use crate::train::config::section::{Key, Section};
use crate::train::update::optimizer::Residence;
use gradus::device::Device;
use gradus::dtype::DType;
use gradus::error::{Error, Result};
use gradus::quant::{Nf4Options, QuantType};

/// A device by its name.
pub(crate) enum NamedDevice {
    /// A GPU if there is one, else the CPU.
    Best,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(i32),
}

impl RunConfig {
    /// Reads a TOML file. Keys it leaves out have the defaults of the demo, or, if it names a
    /// `model.path`, those of [`RunConfig::pretrained`]; a recipe that it names is laid over these.
    ///
    /// # Errors
    /// `Io`; `Format` for a file that is no TOML or has keys that do not exist; `Config` for a name that
    /// is none of the key's choices.
    pub fn load(path: &Path) -> Result<RunConfig> {
        RunConfig::layered(RunConfig::default(), None, Some(path))
    }

    /// What a run wrote down: all of its keys, so that nothing is laid under them.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub(crate) fn of_run(path: &Path) -> Result<RunConfig> {
        let mut table = RunConfig::default().to_table();
        overlay(&mut table, read_table(path)?);
        table.try_into().map_err(|e| unreadable(path, e))
    }

    /// A recipe laid over `defaults`, and a TOML file over both. If the file names a `model.path`, the
    /// defaults are those of [`RunConfig::pretrained`]. The recipe is `recipe`, or else the one that the
    /// file names; an empty name is none.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn layered(
        defaults: RunConfig,
        recipe: Option<&str>,
        file: Option<&Path>,
    ) -> Result<RunConfig> {
        let given = file.map_or_else(|| Ok(toml::Table::new()), read_table)?;
        let own = file.map_or_else(|| Ok(RunConfig::default()), read)?;
        let defaults = if own.model.path.is_empty() { defaults } else { RunConfig::pretrained() };
        let mut table = defaults.to_table();
        let recipe = recipe.unwrap_or(&own.recipe).to_string();
        if !recipe.is_empty() {
            overlay(&mut table, recipes::find(&recipe)?.settings()?);
        }
        overlay(&mut table, given);
        table.insert("recipe".into(), recipe.into());
        let path = file.unwrap_or("recipe".as_ref());
        table.try_into().map_err(|e| unreadable(path, e))
    }

    /// The keys that a TOML file sets, dotted.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn keys_of(path: &Path) -> Result<BTreeSet<String>> {
        Ok(flattened(&read_table(path)?).into_keys().collect())
    }

    pub(crate) fn to_table(&self) -> toml::Table {
        toml::Table::try_from(self).expect("a configuration is a table")
    }

    /// All keys with their values, as TOML; addresses of rewards without their secrets.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(&self.without_secrets()).expect("a configuration is a table")
    }

    /// What may be shown and written down: addresses of rewards without users, passwords and tokens.
    pub fn without_secrets(&self) -> RunConfig {
        let mut config = self.clone();
        for function in &mut config.reward.functions {
            *function = crate::reward::spec::without_secrets(function);
        }
        for table in config.phase.values_mut() {
            let functions = table.get_mut("reward").and_then(|reward| reward.get_mut("functions"));
            let functions = functions.and_then(toml::Value::as_array_mut).into_iter().flatten();
            for function in functions {
                if let toml::Value::String(text) = function {
                    *text = crate::reward::spec::without_secrets(text);
                }
            }
        }
        config
    }

    /// Keys that a run may change when it goes on: where it is stored, how often it is saved, how
    /// many threads, slots and workers compute it and how patient they are. No result depends on them.
    pub fn neutral_keys() -> Vec<String> {
        keys().into_iter().filter(|key| key.neutral).map(|key| key.name).collect()
    }

    /// SHA-256 of everything that influences results: all keys but
    /// [`RunConfig::neutral_keys`], addresses without their secrets.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (key, value) in settings(&self.without_secrets().to_table()) {
            hash.update(format!("{key} = {value}\n"));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The device that the configuration names.
    ///
    /// # Errors
    /// `Config` for a name that is none; `NoDriver` for a CUDA device that is not there.
    pub fn open_device(&self) -> Result<Device> {
        match self.named_device()? {
            NamedDevice::Best => Device::best(),
            NamedDevice::Cpu => Ok(Device::Cpu),
            NamedDevice::Cuda(ordinal) => Device::cuda(ordinal),
        }
    }

    /// What `device` names.
    ///
    /// # Errors
    /// `Config` for a name that is none.
    pub(crate) fn named_device(&self) -> Result<NamedDevice> {
        let name = self.device.as_str();
        match (name, name.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(NamedDevice::Best),
            ("cpu", _) => Ok(NamedDevice::Cpu),
            ("cuda", _) => Ok(NamedDevice::Cuda(0)),
            (_, Some(Ok(ordinal))) => Ok(NamedDevice::Cuda(ordinal)),
            _ => Err(Error::config("device", format!("`{name}` is not auto, cpu, cuda or cuda:N"))),
        }
    }

    /// How the blocks' weights are quantized, if they are.
    pub fn nf4_options(&self) -> Option<Nf4Options> {
        let quant_type = match self.quantize.r#type {
            QuantizeType::None => return None,
            QuantizeType::Fp4 => QuantType::Fp4,
            QuantizeType::Nf4 => QuantType::Nf4,
        };
        let QuantizeConfig { blocksize, double_quant, .. } = self.quantize;
        Some(Nf4Options { quant_type, blocksize, double_quant })
    }
}

impl ModelDtype {
    /// The dtype of weights and activations.
    pub fn dtype(self) -> DType {
        match self {
            ModelDtype::F32 => DType::F32,
            ModelDtype::Bf16 => DType::Bf16,
        }
    }
}

/// Most sequences of a micro-batch that `rl.micro_batch` leaves to `rl.group`.
const MOST_SEQUENCES: usize = 16;

impl RlConfig {
    /// Sequences of a micro-batch: `micro_batch`, and for 0 the samples of a prompt, but at most
    /// 16, so that a prompt is computed once where they are not more. The settings alone decide, and
    /// not the memory of a machine: the rounding of a run depends on it.
    pub fn sequences(&self) -> usize {
        match self.micro_batch {
            0 => self.group.min(MOST_SEQUENCES),
            n => n,
        }
    }
}

impl OptimizerKey {
    /// Where the optimizer's moments live.
    pub fn residence(self) -> Residence {
        match self {
            OptimizerKey::AdamW => Residence::Device,
            OptimizerKey::PagedAdamW => Residence::Host,
        }
    }
}

/// Every key, in the order of a configuration's file.
pub(crate) fn keys() -> Vec<Key> {
    let mut keys = Vec::new();
    RunConfig::keys("", &mut keys);
    keys
}

fn read_table(path: &Path) -> Result<toml::Table> {
    let table = json::read_text(path, 1 << 20)?.parse().map_err(|e| unreadable(path, e))?;
    check::choices(&table)?;
    Ok(table)
}

/// A file by itself, over the defaults of the demo; errors name the line of a wrong key.
fn read(path: &Path) -> Result<RunConfig> {
    read_table(path)?;
    toml::from_str(&json::read_text(path, 1 << 20)?).map_err(|e| unreadable(path, e))
}

fn unreadable(path: &Path, error: toml::de::Error) -> Error {
    Error::format(path, error.to_string().trim_end().to_string())
}

/// The values of a table under dotted keys, as TOML on one line.
pub(crate) fn flattened(table: &toml::Table) -> BTreeMap<String, String> {
    fn flatten(prefix: &str, table: &toml::Table, found: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(table) => flatten(&format!("{prefix}{key}."), table, found),
                value => drop(found.insert(format!("{prefix}{key}"), on_one_line(value))),
            }
        }
    }
    let mut found = BTreeMap::new();
    flatten("", table, &mut found);
    found
}

/// A value that is no table as TOML without line breaks, for which TOML has the escapes of JSON.
fn on_one_line(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) if text.contains('\n') => {
            serde_json::Value::from(text.as_str()).to_string()
        }
        toml::Value::Array(values) => {
            format!("[{}]", values.iter().map(on_one_line).collect::<Vec<_>>().join(", "))
        }
        value => value.to_string(),
    }
}

/// The keys of a configuration that results depend on, dotted, with their values as TOML.
pub(crate) fn settings(table: &toml::Table) -> BTreeMap<String, String> {
    let mut found = flattened(table);
    let phase = table.get("phase").cloned().and_then(|phases| phases.try_into().ok());
    let phases = RunConfig { phase: phase.unwrap_or_default(), ..RunConfig::default() };
    let neutral = RunConfig::neutral_keys();
    // A phase's own key is neutral where the run's is.
    found.retain(|key, _| !neutral.contains(&phases.stands_for(key).unwrap_or(key.clone())));
    found
}

/// Puts the values of `over` in the place of those of `base`, section by section.
fn overlay(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => overlay(base, over),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}
