//! Losses of pairs and groups of sequences: the second half of `include/gradus/policy.h`.

use gradus::Result;
use gradus::ops::*;

use super::policy::pair;
use crate::args::Op;
use crate::sys::*;
use crate::tensor::{Tensors, for_real, is_absent};

/// Whether both of two optional tensors are given; one alone is a mistake.
fn both(t: &Tensors<'_>, names: [&str; 2], tensors: [&gradus_tensor; 2]) -> Result<bool> {
    let [chosen, rejected] = tensors.map(|tensor| !is_absent(tensor));
    if chosen == rejected {
        return Ok(chosen);
    }
    let [given, missing] = if chosen { names } else { [names[1], names[0]] };
    Err(t.invalid(missing, "no tensor", &format!("one, as `{given}` is given")))
}

impl gradus_preference_loss_args {
    fn kind(&self, t: &Tensors<'_>) -> Result<PreferenceKind> {
        use PreferenceKind as K;
        let label_smoothing = self.label_smoothing;
        let all = [
            K::Sigmoid { label_smoothing, margin: self.margin },
            K::Hinge,
            K::Ipo,
            K::Robust { label_smoothing },
            K::Exo { label_smoothing },
            K::Nca,
            K::Bco { reference_point: self.reference_point },
            K::SppoHard,
            K::ApoZero,
            K::ApoDown,
            K::Discopop { temperature: self.temperature },
            K::Orpo,
        ];
        t.choice("kind", self.kind, &all)
    }

    fn score(&self, t: &Tensors<'_>) -> Result<PreferenceScore> {
        use PreferenceScore as S;
        let all = [S::ReverseKl, S::ForwardKl, S::JensenShannon, S::Alpha(self.alpha)];
        t.choice("score", self.score, &all)
    }
}

impl Op for gradus_preference_loss_args {
    fn defaults(&mut self) {
        (self.beta, self.temperature, self.alpha) = (0.1, 0.05, 1.0);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let lengths = ["length_chosen", "length_rejected"];
        let references = ["reference_chosen", "reference_rejected"];
        let rewards = ["reward_chosen", "reward_rejected"];
        let has_length = both(t, lengths, [&self.length_chosen, &self.length_rejected])?;
        let has_reference =
            both(t, references, [&self.reference_chosen, &self.reference_rejected])?;
        let has_reward = both(t, rewards, [&self.reward_chosen, &self.reward_rejected])?;
        for_real!(t, "logp_chosen", &self.logp_chosen, R, {
            let reference = match has_reference {
                true => {
                    Some(pair(t, references, &self.reference_chosen, &self.reference_rejected)?)
                }
                false => None,
            };
            let length = match has_length {
                true => Some(Pair {
                    chosen: t.read(lengths[0], &self.length_chosen)?,
                    rejected: t.read(lengths[1], &self.length_rejected)?,
                }),
                false => None,
            };
            let reward = match has_reward {
                true => Some(Pair {
                    chosen: t.write(rewards[0], &self.reward_chosen)?,
                    rejected: t.write(rewards[1], &self.reward_rejected)?,
                }),
                false => None,
            };
            let logps = ["logp_chosen", "logp_rejected"];
            let args = PreferenceLoss::<R> {
                logp: pair(t, logps, &self.logp_chosen, &self.logp_rejected)?,
                reference,
                length,
                kind: self.kind(t)?,
                score: self.score(t)?,
                beta: self.beta,
                likelihood: self.likelihood,
                weight: t.opt_read("weight", &self.weight)?,
                loss: t.write("loss", &self.loss)?,
                d_logp: Pair {
                    chosen: t.write("dlogp_chosen", &self.dlogp_chosen)?,
                    rejected: t.write("dlogp_rejected", &self.dlogp_rejected)?,
                },
                reward,
                total: t.opt_write("total", &self.total)?,
            };
            t.disjoint()?;
            preference_loss(t.device, args)
        })
    }
}

impl Op for gradus_kto_loss_args {
    fn defaults(&mut self) {
        (self.beta, self.desirable_weight, self.undesirable_weight) = (0.1, 1.0, 1.0);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_real!(t, "logp", &self.logp, R, {
            let args = KtoLoss::<R> {
                logp: t.read("logp", &self.logp)?,
                reference: t.read("reference", &self.reference)?,
                desirable: t.read("desirable", &self.desirable)?,
                beta: self.beta,
                kl: self.kl,
                desirable_weight: self.desirable_weight,
                undesirable_weight: self.undesirable_weight,
                weight: t.opt_read("weight", &self.weight)?,
                loss: t.write("loss", &self.loss)?,
                d_logp: t.write("dlogp", &self.dlogp)?,
                total: t.opt_write("total", &self.total)?,
            };
            t.disjoint()?;
            kto_loss(t.device, args)
        })
    }
}

impl Op for gradus_copg_loss_args {
    fn defaults(&mut self) {
        self.beta = 0.1;
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_real!(t, "logp", &self.logp, R, {
            let args = CopgLoss::<R> {
                logp: t.read("logp", &self.logp)?,
                reference: t.opt_read("reference", &self.reference)?,
                reward: t.read("reward", &self.reward)?,
                offsets: t.read("offsets", &self.offsets)?,
                beta: self.beta,
                weight: t.opt_read("weight", &self.weight)?,
                loss: t.write("loss", &self.loss)?,
                d_logp: t.write("dlogp", &self.dlogp)?,
                total: t.opt_write("total", &self.total)?,
            };
            t.disjoint()?;
            copg_loss(t.device, args)
        })
    }
}

impl Op for gradus_beta_mml_loss_args {
    fn defaults(&mut self) {
        self.beta = 1.0;
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_real!(t, "logp", &self.logp, R, {
            let args = BetaMmlLoss::<R> {
                logp: t.read("logp", &self.logp)?,
                offsets: t.read("offsets", &self.offsets)?,
                beta: self.beta,
                weight: t.opt_read("weight", &self.weight)?,
                loss: t.write("loss", &self.loss)?,
                d_logp: t.write("dlogp", &self.dlogp)?,
                total: t.opt_write("total", &self.total)?,
            };
            t.disjoint()?;
            beta_mml_loss(t.device, args)
        })
    }
}

impl Op for gradus_info_nce_loss_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_real!(t, "logp", &self.logp, R, {
            let args = InfoNceLoss::<R> {
                logp: t.read("logp", &self.logp)?,
                length: t.opt_read("length", &self.length)?,
                loss: t.write("loss", &self.loss)?,
                d_logp: t.write("dlogp", &self.dlogp)?,
            };
            t.disjoint()?;
            info_nce_loss(t.device, args)
        })
    }
}

impl Op for gradus_prdp_loss_args {
    fn defaults(&mut self) {
        (self.beta, self.clip) = (0.1, f64::INFINITY);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_real!(t, "logp", &self.logp, R, {
            let args = PrdpLoss::<R> {
                logp: t.read("logp", &self.logp)?,
                old: t.read("old", &self.old)?,
                reference: t.read("reference", &self.reference)?,
                mask: t.opt_read("mask", &self.mask)?,
                cu_seqlens: t.read("cu_seqlens", &self.cu_seqlens)?,
                reward: t.read("reward", &self.reward)?,
                pairs: t.read("pairs", &self.pairs)?,
                beta: self.beta,
                clip: self.clip,
                weight: t.opt_read("weight", &self.weight)?,
                loss: t.write("loss", &self.loss)?,
                d_logp: t.write("dlogp", &self.dlogp)?,
                total: t.opt_write("total", &self.total)?,
            };
            t.disjoint()?;
            prdp_loss(t.device, args)
        })
    }
}
