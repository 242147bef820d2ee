//! A decoder from a folder, one tensor at a time.

use std::path::Path;

use rayon::prelude::*;

use crate::io::interrupt;
use crate::io::safetensors::TensorData;
use crate::model::{Decoder, ModelConfig, Start, WeightSource};
use crate::pretrained::config::HfConfig;
use crate::pretrained::quantized;
use crate::pretrained::weights::{WeightFiles, is_of_tower};
use gradus::device::{Device, zeros};
use gradus::dtype::{DType, Float, bf16, f16};
use gradus::error::{Error, Result};
use gradus::quant::{Nf4Options, Nf4Tensor};
use gradus::view::View;

/// How a folder is loaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// Quantize the blocks' weights while they are read, each from the dtype it has in the file, as
    /// bitsandbytes does. A folder that is 4-bit stays as it is: also what its
    /// `llm_int8_skip_modules` left dense.
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
        let (config, mut files) = (HfConfig::load(folder)?, WeightFiles::open(folder)?);
        if config.model.language_part {
            files.name_parts()?;
        }
        Ok(Pretrained { config, files })
    }

    /// The decoder that [`Pretrained::load`] gives, by shape.
    pub fn model(&self, options: &LoadOptions) -> ModelConfig {
        let most = self.config.model.max_positions;
        let max_positions = options.max_positions.map_or(most, |n| n.min(most));
        ModelConfig { max_positions, ..self.config.model.clone() }
    }

    /// Reads the weights into a decoder on `device`. Beside the decoder at most one tensor is in
    /// memory: its bytes in the file, its values in `T` and, quantizing, its 4-bit form.
    ///
    /// # Errors
    /// `Format` for a weight that is missing, has another shape, is no float or holds NaN or
    /// infinity, with the place, and for tensors that no part of the model takes, but for the tower of
    /// a model of pictures, which is left in the file; `OutOfMemory`, `Io`, or what the driver says.
    pub fn load<T: Float>(&mut self, device: Device, options: &LoadOptions) -> Result<Decoder<T>> {
        let model = self.model(options);
        let quantized = self.config.quantized;
        let source = FolderSource { files: &mut self.files, options, quantized, taken: Vec::new() };
        let (decoder, source) = Decoder::build(&model, device, source)?;
        let taken = source.taken;
        self.check_all_taken(taken)?;
        Ok(decoder)
    }

    /// The decoder that [`Pretrained::load`] gives, with zeros for values: what a memory plan needs. No
    /// weight is read, and host memory is touched for none.
    ///
    /// # Errors
    /// As [`Pretrained::load`], but for what is wrong with values.
    pub(crate) fn outline<T: Float>(
        &mut self,
        device: Device,
        options: &LoadOptions,
    ) -> Result<Decoder<T>> {
        let model = self.model(options);
        let quantized = self.config.quantized;
        let files = FolderSource { files: &mut self.files, options, quantized, taken: Vec::new() };
        Ok(Decoder::build(&model, device, Outline(files))?.0)
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
            .filter(|n| !of_taken(n) && !n.ends_with(".inv_freq") && !is_of_tower(n))
            .map(Into::into)
            .collect();
        let Some(first) = left.first() else { return Ok(()) };
        let folder = self.files.folder().to_path_buf();
        if self.config.model.tie_embeddings && left.len() == 1 && first == "lm_head.weight" {
            let embed = self.config.model.full_name(EMBED);
            let (head, embed) = (self.files.read(first)?, self.files.read(&embed)?);
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

/// The embedding, behind the names' common beginning.
pub(super) const EMBED: &str = "embed_tokens.weight";

/// The files as a source of weights.
struct FolderSource<'a> {
    files: &'a mut WeightFiles,
    options: &'a LoadOptions,
    /// The folder is a 4-bit one.
    quantized: bool,
    taken: Vec<String>,
}

impl FolderSource<'_> {
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<TensorData> {
        // Before the data are read: a wrong tensor may be of any size.
        self.check(name, shape)?;
        let data = self.files.read(name)?;
        self.taken.push(name.into());
        Ok(data)
    }
}

impl FolderSource<'_> {
    /// Tensor `name` is there and has `shape`.
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let reason = match self.files.info(name) {
            Some(info) if info.shape == shape => return Ok(()),
            Some(info) => format!("`{name}` has shape {:?}, the model {shape:?}", info.shape),
            None => format!("the weights lack `{name}`"),
        };
        Err(Error::format(self.files.folder(), reason))
    }

    /// Whether the folder has weight `name` in 4 bits.
    fn is_stored(&mut self, name: &str, [n, k]: [usize; 2]) -> Result<bool> {
        let Some(shape) = quantized::shape(self.files, name)? else { return Ok(false) };
        if shape == [n, k] {
            return Ok(true);
        }
        let reason = format!("{}x{}, the model {n}x{k}", shape[0], shape[1]);
        let reason = format!("`{name}` is a 4-bit weight of {reason}");
        Err(Error::format(self.files.folder(), reason))
    }

    /// How a dense weight is quantized while it is read, if it is.
    fn on_load(&self, block: bool) -> Option<&Nf4Options> {
        self.options.quantize.as_ref().filter(|_| block && !self.quantized)
    }
}

impl WeightSource for FolderSource<'_> {
    fn trains(&self) -> bool {
        self.options.trainable
    }

    fn values<F: Float>(&mut self, name: &str, shape: &[usize], _: Start) -> Result<Vec<F>> {
        interrupt::check()?;
        let data = self.read(name, shape)?;
        let values =
            floats(&data).map_err(|e| Error::format(self.files.folder(), format!("`{name}`: {e}")));
        let values = values?;
        finite(self.files.folder(), name, shape, &values)?;
        Ok(values)
    }

    fn quantized(
        &mut self,
        name: &str,
        shape: [usize; 2],
        block: bool,
    ) -> Result<Option<Nf4Tensor>> {
        interrupt::check()?;
        if self.is_stored(name, shape)? {
            let tensor = quantized::read(self.files, name)?;
            self.taken.push(name.into());
            return Ok(tensor);
        }
        let Some(options) = self.on_load(block).copied() else { return Ok(None) };
        let data = self.read(name, &shape)?;
        quantize(&data, &options).map(Some).map_err(|e| match e {
            Error::NonFinite { index, .. } => {
                non_finite(self.files.folder(), name, &data.shape, index)
            }
            Error::InvalidArgument { .. } => {
                Error::format(self.files.folder(), format!("`{name}`: {e}"))
            }
            other => other,
        })
    }

    fn keeps_dense(&self) -> bool {
        self.quantized
    }
}

/// The shapes of the files, without their values.
struct Outline<'a>(FolderSource<'a>);

impl WeightSource for Outline<'_> {
    fn trains(&self) -> bool {
        self.0.trains()
    }

    fn values<F: Float>(&mut self, name: &str, shape: &[usize], _: Start) -> Result<Vec<F>> {
        self.0.check(name, shape)?;
        zeros(shape.iter().product(), name)
    }

    fn quantized(
        &mut self,
        name: &str,
        shape: [usize; 2],
        block: bool,
    ) -> Result<Option<Nf4Tensor>> {
        if self.0.is_stored(name, shape)? {
            return quantized::outline(self.0.files, name);
        }
        let Some(options) = self.0.on_load(block) else { return Ok(None) };
        self.0.check(name, &shape)?;
        let dtype = self.0.files.info(name).map_or(DType::F32, |info| info.dtype);
        quantized::zeros(shape, options, dtype).map(Some)
    }

    fn keeps_dense(&self) -> bool {
        self.0.keeps_dense()
    }
}

/// Refuses NaN and infinity, and tells where the first lies: it would spoil every result, and far
/// from its cause.
pub(super) fn finite<F: Float>(
    path: &Path,
    name: &str,
    shape: &[usize],
    values: &[F],
) -> Result<()> {
    // Chunks of a size that one core reads in some 10 us.
    const CHUNK: usize = 1 << 16;
    // Without an early end the loop is one of vectors.
    let spoiled = |chunk: &[F]| chunk.iter().fold(false, |bad, x| bad | !x.to_f32().is_finite());
    let Some(chunk) = values.par_chunks(CHUNK).position_first(spoiled) else { return Ok(()) };
    let rest = &values[chunk * CHUNK..];
    let inside = rest.iter().position(|x| !x.to_f32().is_finite()).unwrap_or(0);
    Err(non_finite(path, name, shape, chunk * CHUNK + inside))
}

pub(super) fn non_finite(path: &Path, name: &str, shape: &[usize], index: usize) -> Error {
    let place = format!("element {index} of {shape:?}");
    Error::format(path, format!("`{name}` holds NaN or infinity at {place}"))
}

/// Quantizes a matrix from the dtype it is stored in.
pub(super) fn quantize(data: &TensorData, options: &Nf4Options) -> Result<Nf4Tensor> {
    fn from<T: Float>(data: &TensorData, options: &Nf4Options) -> Result<Nf4Tensor> {
        let values = data.to_vec::<T>()?;
        let k = data.shape.last().copied().unwrap_or(0);
        Nf4Tensor::quantize(&Device::Cpu, View::rows_of(&values, k)?, options)
    }
    match data.dtype {
        DType::Bf16 => from::<bf16>(data, options),
        DType::F16 => from::<f16>(data, options),
        DType::F32 | DType::F64 | DType::U8 | DType::I32 | DType::I64 => from::<f32>(data, options),
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
