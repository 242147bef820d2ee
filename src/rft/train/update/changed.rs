//! Updates of those weights alone in which two models differ (Mukherjee et al. 2025, arXiv:2505.11711).

use std::path::Path;

use crate::pretrained::Pretrained;
use crate::train::config::RlConfig;
use crate::train::trainer::Trainer;
use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::error::{Error, Result};

impl RlConfig {
    /// The two models of `rl.only_changed`, if there are some.
    ///
    /// # Errors
    /// `Config` for more or fewer of them.
    pub(crate) fn changed(&self) -> Result<Option<(&Path, &Path)>> {
        match self.only_changed.as_slice() {
            [] => Ok(None),
            [before, after] => Ok(Some((before.as_ref(), after.as_ref()))),
            other => {
                let reason = format!("{} folders, expected two: before and after", other.len());
                Err(Error::config("rl.only_changed", reason))
            }
        }
    }
}

impl<T: Float> Trainer<T> {
    /// Reads which weights may move, if `rl.only_changed` says so and it is not known yet. For a memory plan
    /// nothing is read.
    ///
    /// # Errors
    /// `Config` where adapters train, and for models of other weights; what reading them meets.
    pub(crate) fn hold_changed(&mut self) -> Result<()> {
        let Some((before, after)) = self.config.rl.changed()? else { return Ok(()) };
        if self.optimizer.is_restricted() {
            return Ok(());
        }
        let wrong = |reason: String| Error::config("rl.only_changed", reason);
        if self.model.has_adapters() {
            return Err(wrong("is about whole weights, and adapters train".into()));
        }
        let trained = self.model.params.iter().filter(|p| p.trainable);
        let shapes: Vec<(String, usize)> = trained.map(|p| (p.name.clone(), p.len())).collect();
        let mut models = match self.longest {
            true => None,
            false => Some((Pretrained::open(before)?, Pretrained::open(after)?)),
        };
        let (mut masks, mut moving) = (Vec::new(), 0usize);
        for (name, len) in shapes {
            let mut mask: Buffer<u8> = Buffer::new(&self.model.device, len)?;
            if let Some((before, after)) = &mut models {
                let (_, a, b) = before.both(after, &name)?;
                if a.len() != len {
                    let got = format!("{name} has {} elements there and {len} here", a.len());
                    return Err(wrong(got));
                }
                let moves: Vec<u8> = a.iter().zip(&b).map(|(a, b)| (a != b) as u8).collect();
                moving += moves.iter().filter(|&&moves| moves > 0).count();
                mask.upload(&moves)?;
            }
            masks.push(mask);
        }
        if models.is_some() && moving == 0 {
            return Err(wrong(
                "no weight differs between the two models, so that none would move".into(),
            ));
        }
        self.optimizer.restrict(masks);
        Ok(())
    }
}
