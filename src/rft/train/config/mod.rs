//! The settings of a run: a TOML file whose every key is optional, and `--set a.b=c` on top.

use std::collections::BTreeMap;
use std::path::Path;

mod auto;
mod check;
pub(crate) mod choice;
pub mod explain;
mod keys;
pub(crate) mod section;
mod set;

pub use auto::Auto;
pub(crate) use choice::choice;
pub use choice::{
    AdvantageKey, ChatSetting, Control, DataFormat, KlKey, ModelDtype, OptimizerKey, QuantizeType,
    ScaleKey, Schedule, TaskName,
};
pub use keys::*;

use sha2::{Digest, Sha256};

use crate::io::json;
use crate::train::config::section::{Key, Section};
use crate::train::update::optimizer::Residence;
use gradus::device::Device;
use gradus::dtype::DType;
use gradus::error::{Error, Result};
use gradus::quant::{Nf4Options, QuantType};

impl RunConfig {
    /// Reads a TOML file. Keys it leaves out have the defaults of the demo, or, if it names a
    /// `model.path`, those of [`RunConfig::pretrained`].
    ///
    /// # Errors
    /// `Io`; `Format` for a file that is no TOML or has keys that do not exist; `Config` for a name that
    /// is none of the key's choices.
    pub fn load(path: &Path) -> Result<RunConfig> {
        RunConfig::read(path, RunConfig::default())
    }

    /// Reads a TOML file. Keys it leaves out have the values of `defaults`, or, if the file names a
    /// `model.path`, those of [`RunConfig::pretrained`].
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn read(path: &Path, defaults: RunConfig) -> Result<RunConfig> {
        let text = json::read_text(path, 1 << 20)?;
        let wrong = |e: toml::de::Error| Error::format(path, e.to_string().trim_end().to_string());
        let given: toml::Table = toml::from_str(&text).map_err(wrong)?;
        check::choices(&given)?;
        // Read once by itself, which names the line of a wrong key.
        let own: RunConfig = toml::from_str(&text).map_err(wrong)?;
        let defaults = if own.model.path.is_empty() { defaults } else { RunConfig::pretrained() };
        let mut table = defaults.to_table();
        overlay(&mut table, given);
        table.try_into().map_err(wrong)
    }

    fn to_table(&self) -> toml::Table {
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
        let name = self.device.as_str();
        match (name, name.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Device::best(),
            ("cpu", _) => Ok(Device::Cpu),
            ("cuda", _) => Device::cuda(0),
            (_, Some(Ok(ordinal))) => Device::cuda(ordinal),
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

/// The keys of a configuration that results depend on, dotted, with their values as TOML.
pub(crate) fn settings(table: &toml::Table) -> BTreeMap<String, String> {
    fn flatten(prefix: &str, table: &toml::Table, found: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(table) => flatten(&format!("{prefix}{key}."), table, found),
                value => drop(found.insert(format!("{prefix}{key}"), value.to_string())),
            }
        }
    }
    let mut found = BTreeMap::new();
    flatten("", table, &mut found);
    let neutral = RunConfig::neutral_keys();
    found.retain(|key, _| !neutral.contains(key));
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
