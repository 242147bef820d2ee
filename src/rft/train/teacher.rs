//! The teacher of the phase `distill`: a model folder whose distributions the policy learns. It has to
//! read the same ids.

use crate::model::{Decoder, ModelConfig};
use crate::pretrained::{LoadOptions, Pretrained};
use crate::text::Codec;
use crate::train::inputs::codec;
use crate::train::phase::Phase;
use crate::train::trainer::Trainer;
use gradus::dtype::Float;
use gradus::error::{Error, Result};

/// A model that is only read.
#[derive(Debug)]
pub(crate) struct Teacher<T> {
    /// Its folder.
    path: String,
    pub model: Decoder<T>,
}

/// Opens the folder `path` as a teacher of a model of the shape `student`; no weight is read.
///
/// # Errors
/// `Config` for a teacher with another tokenizer, with fewer ids or with fewer positions; `Io` or
/// `Format` for a folder that cannot be read.
pub(crate) fn open(path: &str, own: &dyn Codec, student: &ModelConfig) -> Result<Pretrained> {
    let wrong = |reason: String| Error::config("distill.teacher", format!("`{path}` {reason}"));
    let folder = Pretrained::open(path.as_ref())?;
    let its = codec(&folder, &mut Vec::new())?;
    if let Some(difference) = difference(own, its.as_ref())? {
        return Err(wrong(format!("has another tokenizer than the model: {difference}")));
    }
    let shape = &folder.config.model;
    for (what, has, needs) in [
        ("ids", shape.vocab, student.vocab),
        ("positions", shape.max_positions, student.max_positions),
    ] {
        if has < needs {
            return Err(wrong(format!("has {has} {what}, the model needs {needs}")));
        }
    }
    Ok(folder)
}

/// In what two vocabularies differ. Tokens that end a sequence may do so in one of them alone, as with
/// a chat model and its base model, but not all of them.
fn difference(own: &dyn Codec, its: &dyn Codec) -> Result<Option<String>> {
    if own.len() != its.len() {
        return Ok(Some(format!("{} tokens and not {}", its.len(), own.len())));
    }
    let common = own.stops().iter().any(|stop| its.stops().contains(stop));
    let neither = own.stops().is_empty() && its.stops().is_empty();
    if !common && !neither {
        let (its, own) = (its.stops(), own.stops());
        return Ok(Some(format!("sequences end with {its:?} and not with {own:?}")));
    }
    for id in 0..own.len() as i32 {
        if own.stops().contains(&id) || its.stops().contains(&id) {
            continue;
        }
        let (a, b) = (own.decode_spelled(&[id])?, its.decode_spelled(&[id])?);
        if a != b {
            return Ok(Some(format!("token {id} is {b:?} and not {a:?}")));
        }
    }
    Ok(None)
}

impl<T: Float> Trainer<T> {
    /// Refuses teachers of the run's phases that do not fit, before anything runs.
    ///
    /// # Errors
    /// What [`open`] refuses.
    pub(crate) fn check_teachers(&self) -> Result<()> {
        let plans = self.config.plan()?;
        plans.iter().filter(|plan| plan.kind == Phase::Distill).try_for_each(|plan| {
            let path = &plan.config.distill.teacher;
            let opened = open(path, self.task.codec(), &self.model.config);
            opened.map(drop).map_err(|error| self.config.in_phase(&plan.name, error))
        })
    }

    /// Loads the teacher that the settings name, unless it is there. `outline`: for a memory plan,
    /// without reading a weight.
    ///
    /// # Errors
    /// What [`open`] refuses, and what reading the weights meets.
    pub(crate) fn hold_teacher(&mut self, outline: bool) -> Result<()> {
        let path = &self.config.distill.teacher;
        if self.teacher.as_ref().is_some_and(|teacher| teacher.path == *path) {
            return Ok(());
        }
        // Before the next one takes its room.
        self.teacher = None;
        let mut folder = open(path, self.task.codec(), &self.model.config)?;
        let options = LoadOptions {
            quantize: None,
            trainable: false,
            max_positions: Some(self.model.config.max_positions),
        };
        let device = self.model.device.clone();
        let model = match outline {
            true => folder.outline(device, &options)?,
            false => folder.load(device, &options)?,
        };
        self.teacher = Some(Teacher { path: path.clone(), model });
        Ok(())
    }
}
