//! Losses over pairs and groups of sequences: the third part of `include/gradus/policy.h`.

use gradus::Result;
use gradus::ops::*;

use crate::args::Op;
use crate::field::{Field, call, for_dtype};
use crate::sys::*;
use crate::tensor::{Tensors, is_absent};

/// Whether both of two optional tensors are given; one alone is a mistake.
fn both(t: &Tensors<'_>, names: [&str; 2], tensors: [&gradus_tensor; 2]) -> Result<bool> {
    let [chosen, rejected] = tensors.map(|tensor| !is_absent(tensor));
    if chosen == rejected {
        return Ok(chosen);
    }
    let [given, missing] = if chosen { names } else { [names[1], names[0]] };
    Err(t.invalid(missing, "no tensor", &format!("one, as `{given}` is given")))
}

/// Two fields as a pair.
fn pair<'a, F: Field<'a, gradus_tensor>>(
    t: &Tensors<'a>,
    [chosen_name, rejected_name]: [&str; 2],
    [chosen, rejected]: [&gradus_tensor; 2],
) -> Result<Pair<F>> {
    Ok(Pair {
        chosen: F::get(t, chosen_name, chosen)?,
        rejected: F::get(t, rejected_name, rejected)?,
    })
}

impl gradus_preference_loss_args {
    fn kind(&self, t: &Tensors<'_>) -> Result<PreferenceKind> {
        use PreferenceKind as K;
        use gradus_preference_kind::*;
        let label_smoothing = self.label_smoothing;
        Ok(match t.enumerator("kind", self.kind)? {
            GRADUS_DPO => K::Sigmoid { label_smoothing, margin: self.margin },
            GRADUS_HINGE => K::Hinge,
            GRADUS_IPO => K::Ipo,
            GRADUS_ROBUST => K::Robust { label_smoothing },
            GRADUS_EXO => K::Exo { label_smoothing },
            GRADUS_NCA => K::Nca,
            GRADUS_BCO => K::Bco { reference_point: self.reference_point },
            GRADUS_SPPO_HARD => K::SppoHard,
            GRADUS_APO_ZERO => K::ApoZero,
            GRADUS_APO_DOWN => K::ApoDown,
            GRADUS_DISCOPOP => K::Discopop { temperature: self.temperature },
            GRADUS_ORPO => K::Orpo,
        })
    }

    fn score(&self, t: &Tensors<'_>) -> Result<PreferenceScore> {
        use PreferenceScore as S;
        use gradus_preference_score::*;
        Ok(match t.enumerator("score", self.score)? {
            GRADUS_SCORE_REVERSE_KL => S::ReverseKl,
            GRADUS_SCORE_FORWARD_KL => S::ForwardKl,
            GRADUS_SCORE_JENSEN_SHANNON => S::JensenShannon,
            GRADUS_SCORE_ALPHA => S::Alpha(self.alpha),
        })
    }
}

impl Op for gradus_preference_loss_args {
    fn defaults(&mut self) {
        (self.beta, self.temperature, self.alpha) = (0.1, 0.05, 1.0);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let logps = (["logp_chosen", "logp_rejected"], [&self.logp_chosen, &self.logp_rejected]);
        let lengths =
            (["length_chosen", "length_rejected"], [&self.length_chosen, &self.length_rejected]);
        let references = (
            ["reference_chosen", "reference_rejected"],
            [&self.reference_chosen, &self.reference_rejected],
        );
        let rewards =
            (["reward_chosen", "reward_rejected"], [&self.reward_chosen, &self.reward_rejected]);
        let gradients =
            (["dlogp_chosen", "dlogp_rejected"], [&self.dlogp_chosen, &self.dlogp_rejected]);
        let has_length = both(t, lengths.0, lengths.1)?;
        let has_reference = both(t, references.0, references.1)?;
        let has_reward = both(t, rewards.0, rewards.1)?;
        for_dtype!(real t, "logp_chosen", &self.logp_chosen, R, {
            let reference = has_reference.then(|| pair(t, references.0, references.1));
            let length = has_length.then(|| pair(t, lengths.0, lengths.1));
            let reward = has_reward.then(|| pair(t, rewards.0, rewards.1));
            let (reference, length, reward) =
                (reference.transpose()?, length.transpose()?, reward.transpose()?);
            call!(self, t, preference_loss(PreferenceLoss::<R> {
                logp: pair(t, logps.0, logps.1)?,
                reference: reference,
                length: length,
                kind: self.kind(t)?,
                score: self.score(t)?,
                beta,
                likelihood,
                weight,
                loss,
                dlogp: pair(t, gradients.0, gradients.1)?,
                reward: reward,
                total,
            }))
        })
    }
}
