//! A decoder from a folder, one tensor at a time.

use std::path::Path;

use crate::device::Device;
use crate::dtype::{DType, Float, bf16, f16};
use crate::error::{Error, Result};
use crate::io::safetensors::TensorData;
use crate::model::{Decoder, ModelConfig, Source, Start};
use crate::pretrained::config::HfConfig;
use crate::pretrained::quantized;
use crate::pretrained::weights::WeightFiles;
use crate::quant::{Nf4Options, Nf4Tensor};
use crate::view::View;

/// How a folder is loaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// Quantise the blocks' weights while they are read, each from the dtype it has in the file, as
    /// bitsandbytes does. Weights that are 4-bit already stay as they are.
    pub quantize: Option<Nf4Options>,
    /// Keep the dense parameters trainable, with their f32 values.
    pub trainable: bool,
    /// Positions the rotary table covers, if fewer than the model allows.
    pub max_positions: Option<usize>,
}

/// An open folder: its configuration and its weight files.
#[derive(Debug)]
pub struct Pretrained {
    /// `config.json`.
    pub config: HfConfig,
    /// The weights.
    pub files: WeightFiles,
}

impl Pretrained {
    /// Opens `folder` and checks its configuration and all headers; no weight is read.
    ///
    /// # Errors
    /// `Io`; `Format` for what [`HfConfig::load`] and [`WeightFiles::open`] refuse.
    pub fn open(folder: &Path) -> Result<Pretrained> {
        Ok(Pretrained { config: HfConfig::load(folder)?, files: WeightFiles::open(folder)? })
    }

    /// The decoder that [`Pretrained::load`] gives, by shape.
    pub fn model(&self, options: &LoadOptions) -> ModelConfig {
        let most = self.config.model.max_positions;
        let max_positions = options.max_positions.map_or(most, |n| n.min(most));
        ModelConfig { max_positions, ..self.config.model.clone() }
    }

    /// Reads the weights into a decoder on `device`. Beside the decoder at most one tensor is in
    /// memory: its bytes in the file, its values in `T` and, quantising, its 4-bit form.
    ///
    /// # Errors
    /// `Format` for a weight that is missing, has another shape or is no float, and for tensors
    /// that no part of the model takes; `NonFinite` for NaN or infinity in a weight that is
    /// quantised; `OutOfMemory`, `Io`, or what the driver says.
    pub fn load<T: Float>(&mut self, device: Device, options: &LoadOptions) -> Result<Decoder<T>> {
        let model = self.model(options);
        let source = FolderSource { files: &mut self.files, options, taken: Vec::new() };
        let (decoder, source) = Decoder::build(&model, device, source)?;
        let taken = source.taken;
        self.check_all_taken(taken)?;
        Ok(decoder)
    }

    /// A tensor that was not read means another model than the configuration says.
    fn check_all_taken(&mut self, mut taken: Vec<String>) -> Result<()> {
        taken.sort_unstable();
        let of_taken = |name: &str| {
            // The parts of a 4-bit weight follow its name.
            let weight = name.find(".weight.").map(|at| &name[..at + ".weight".len()]);
            let known = |name: &str| taken.binary_search_by(|t| t.as_str().cmp(name)).is_ok();
            known(name) || weight.is_some_and(known)
        };
        let left: Vec<String> = self
            .files
            .names()
            .filter(|n| !of_taken(n) && !n.ends_with(".inv_freq"))
            .map(Into::into)
            .collect();
        let Some(first) = left.first() else { return Ok(()) };
        let folder = self.files.folder().to_path_buf();
        if self.config.model.tie_embeddings && left.len() == 1 && first == "lm_head.weight" {
            let (head, embed) = (self.files.read(first)?, self.files.read(EMBED)?);
            if head == embed {
                return Ok(());
            }
            let reason =
                "`lm_head.weight` differs from the embedding that `tie_word_embeddings` ties it to";
            return Err(Error::format(folder, reason));
        }
        let reason =
            format!("{} tensors that the model does not have, such as `{first}`", left.len());
        Err(Error::format(folder, reason))
    }
}

const EMBED: &str = "model.embed_tokens.weight";

/// The files as a source of weights.
struct FolderSource<'a> {
    files: &'a mut WeightFiles,
    options: &'a LoadOptions,
    taken: Vec<String>,
}

impl FolderSource<'_> {
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<TensorData> {
        let data = self.files.read(name)?;
        if data.shape != shape {
            let reason = format!("`{name}` has shape {:?}, the model {shape:?}", data.shape);
            return Err(Error::format(self.files.folder(), reason));
        }
        self.taken.push(name.into());
        Ok(data)
    }
}

impl Source for FolderSource<'_> {
    fn trains(&self) -> bool {
        self.options.trainable
    }

    fn values<F: Float>(&mut self, name: &str, shape: &[usize], _: Start) -> Result<Vec<F>> {
        let data = self.read(name, shape)?;
        floats(&data).map_err(|e| Error::format(self.files.folder(), format!("`{name}`: {e}")))
    }

    fn quantized(&mut self, name: &str, n: usize, k: usize) -> Result<Option<Nf4Tensor>> {
        if let Some(tensor) = quantized::read(self.files, name)? {
            if (tensor.n(), tensor.k()) != (n, k) {
                let reason = format!("{}x{}, the model {n}x{k}", tensor.n(), tensor.k());
                let reason = format!("`{name}` is a 4-bit weight of {reason}");
                return Err(Error::format(self.files.folder(), reason));
            }
            self.taken.push(name.into());
            return Ok(Some(tensor));
        }
        let Some(options) = &self.options.quantize else { return Ok(None) };
        let data = self.read(name, &[n, k])?;
        quantize(&data, options).map(Some).map_err(|e| match e {
            Error::NonFinite { op, index, .. } => Error::NonFinite { op, arg: name.into(), index },
            Error::InvalidArgument { .. } => {
                Error::format(self.files.folder(), format!("`{name}`: {e}"))
            }
            other => other,
        })
    }
}

/// Quantises a matrix from the dtype it is stored in.
pub(super) fn quantize(data: &TensorData, options: &Nf4Options) -> Result<Nf4Tensor> {
    fn from<T: Float>(data: &TensorData, options: &Nf4Options) -> Result<Nf4Tensor> {
        let values = data.to_vec::<T>()?;
        let k = data.shape.last().copied().unwrap_or(0);
        Nf4Tensor::quantize(&Device::Cpu, View::rows_of(&values, k)?, options)
    }
    match data.dtype {
        DType::Bf16 => from::<bf16>(data, options),
        DType::F16 => from::<f16>(data, options),
        _ => from::<f32>(data, options),
    }
}

/// The values of a float tensor in `F`, rounded once.
pub(super) fn floats<F: Float>(data: &TensorData) -> Result<Vec<F>> {
    fn from<S: Float, F: Float>(bytes: &[u8]) -> Vec<F> {
        let one = |b: &[u8]| F::from_f32(bytemuck::pod_read_unaligned::<S>(b).to_f32());
        bytes.chunks_exact(size_of::<S>()).map(one).collect()
    }
    match data.dtype {
        DType::F32 => Ok(from::<f32, F>(&data.bytes)),
        DType::Bf16 => Ok(from::<bf16, F>(&data.bytes)),
        DType::F16 => Ok(from::<f16, F>(&data.bytes)),
        other => Err(Error::invalid("load", "dtype", other.name(), "f32, bf16 or f16")),
    }
}
