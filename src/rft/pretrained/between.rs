//! Two models of one shape: their weights one by one, mixed or compared.

use std::collections::BTreeMap;
use std::path::Path;

use crate::pretrained::convert::{Converted, OnTensor, insert_dtype, is_part, narrowed};
use crate::pretrained::folder::{FolderWriter, SHARD};
use crate::pretrained::load::Pretrained;
use crate::pretrained::quantized;
use gradus::device::Device;
use gradus::error::{Error, Result};
use gradus::ops::{Lerp, SparsityStats, UpdateSparsity, lerp, sparsity_stats};
use gradus::view::View;

/// How far the weights of two models are apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Counts over all weights.
    pub all: UpdateSparsity,
    /// Counts of each kind of weight, such as `self_attn.q_proj`, over all blocks.
    pub kinds: BTreeMap<String, UpdateSparsity>,
}

impl Pretrained {
    /// Writes (1 − λ)·A + λ·B to `out`, with configuration and tokenizer of this model, A, and in its dtype;
    /// 4-bit weights are expanded and stay expanded. λ is `weight`, from 0, which is A, to 1.
    ///
    /// # Errors
    /// `Config` for a λ outside [0, 1] and if `out` exists; `Format` for models whose weights have other
    /// names or shapes, and for NaN or infinity; `Io`.
    ///
    /// # Cost
    /// Reads both models once; memory as [`Pretrained::conversion_memory`] says, and as much of B's
    /// largest tensor.
    pub fn lerp_to(
        &mut self,
        other: &mut Pretrained,
        weight: f64,
        out: &Path,
        on_tensor: OnTensor<'_>,
    ) -> Result<Converted> {
        if !(0.0..=1.0).contains(&weight) {
            let reason = format!("{weight} is not from 0, the first model, to 1, the second");
            return Err(Error::config("weight", reason));
        }
        let names = self.common(other)?;
        let mut writer = FolderWriter::create(out, SHARD)?;
        let from = self.files.bytes() + other.files.bytes();
        let (mut done, dtype) = (Converted { from, ..Converted::default() }, self.config.dtype);
        for (i, name) in names.iter().enumerate() {
            let expands = quantized::shape(&mut self.files, name)?.is_some();
            let (shape, a, b) = self.both(other, name)?;
            let mut y = vec![0f32; a.len()];
            let args = Lerp { a: (&a).into(), b: (&b).into(), weight, y: (&mut y).into() };
            lerp(&Device::Cpu, args)?;
            let data = narrowed(self.files.folder(), name, &shape, &y, dtype)?;
            done.to += data.bytes.len() as u64;
            done.expanded += expands as usize;
            match a == b {
                true => done.kept += 1,
                false => done.changed += 1,
            }
            writer.put(self.files.name_in_file(name), data)?;
            on_tensor(i + 1, names.len());
        }
        let mut config = self.config.raw.clone();
        config.remove("quantization_config");
        insert_dtype(&mut config, dtype);
        writer.finish(Some(&config), Some(self.files.folder()))?;
        Ok(done)
    }

    /// Counts which weights of `other` differ from those of this model; |Δ| up to `tol` counts as
    /// unchanged in [`UpdateSparsity::within_tol`]. 4-bit weights are compared as they are read.
    ///
    /// # Errors
    /// `Format` for models whose weights have other names or shapes, and for NaN or infinity;
    /// `InvalidArgument` for a bad `tol`; `Io`.
    ///
    /// # Cost
    /// Reads both models once; memory for the largest tensor of each in f32.
    pub fn difference(
        &mut self,
        other: &mut Pretrained,
        tol: f64,
        on_tensor: OnTensor<'_>,
    ) -> Result<Difference> {
        let names = self.common(other)?;
        let mut found = Difference::default();
        for (i, name) in names.iter().enumerate() {
            let (shape, a, b) = self.both(other, name)?;
            let columns = shape.last().copied().unwrap_or(1).max(1);
            let mut stats = UpdateSparsity::default();
            let (w0, w1) = (View::rows_of(&a, columns)?, View::rows_of(&b, columns)?);
            let args = SparsityStats { w0, w1, tol, row_nnz: None, stats: &mut stats };
            sparsity_stats(&Device::Cpu, args)?;
            add(&mut found.all, &stats);
            add(found.kinds.entry(kind(name)).or_default(), &stats);
            on_tensor(i + 1, names.len());
        }
        Ok(found)
    }

    /// The names of the weights, which are those of the other model.
    fn common(&self, other: &Pretrained) -> Result<Vec<String>> {
        let names = |model: &Pretrained| -> Vec<String> {
            model.files.names().filter(|name| !is_part(name)).map(Into::into).collect()
        };
        let (own, its) = (names(self), names(other));
        let lacks = |names: &[String], model: &Pretrained| {
            let lost = names.iter().find(|name| model.files.info(name).is_none());
            lost.map(|name| {
                let reason = format!("has no `{name}`, which the other model has");
                Error::format(model.files.folder(), reason)
            })
        };
        match lacks(&own, other).or_else(|| lacks(&its, self)) {
            Some(error) => Err(error),
            None => Ok(own),
        }
    }

    /// Shape and values of a weight in both models.
    pub(crate) fn both(
        &mut self,
        other: &mut Pretrained,
        name: &str,
    ) -> Result<(Vec<usize>, Vec<f32>, Vec<f32>)> {
        let ((shape, a), (its, b)) = (self.expanded(name)?, other.expanded(name)?);
        if shape != its {
            let reason = format!("`{name}` is {its:?}, and {shape:?} in the other model");
            return Err(Error::format(other.files.folder(), reason));
        }
        Ok((shape, a, b))
    }
}

fn add(sum: &mut UpdateSparsity, part: &UpdateSparsity) {
    sum.n += part.n;
    sum.equal_exact += part.equal_exact;
    sum.within_tol += part.within_tol;
    sum.absorbed_bf16 += part.absorbed_bf16;
    sum.max_delta = sum.max_delta.max(part.max_delta);
}

/// A weight's name without the number of its block.
fn kind(name: &str) -> String {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let name = name.strip_prefix("model.").unwrap_or(name);
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    match name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        Some((_, inner)) => inner.into(),
        None => name.into(),
    }
}
