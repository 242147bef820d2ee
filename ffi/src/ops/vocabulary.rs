//! Rows of logits: `include/gradus/vocabulary.h`.

use gradus::ops::*;
use gradus::{Result, View};

use crate::args::Op;
use crate::quant::{adapters, nf4};
use crate::sys::{self, *};
use crate::tensor::{Tensors, for_float, is_absent};

impl gradus_logit_transform {
    fn set_defaults(&mut self) {
        (self.temperature, self.scale, self.softcap) = (1.0, 1.0, f64::INFINITY);
    }

    fn get(&self) -> LogitTransform {
        LogitTransform { temperature: self.temperature, scale: self.scale, softcap: self.softcap }
    }
}

impl Op for gradus_logprob_args {
    fn defaults(&mut self) {
        self.transform.set_defaults();
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "logits", &self.logits, T, {
            let args = LogProb::<T> {
                logits: t.read("logits", &self.logits)?,
                targets: t.read("targets", &self.targets)?,
                vocab: self.vocab,
                transform: self.transform.get(),
                logp: t.write("logp", &self.logp)?,
                lse: t.opt_write("lse", &self.lse)?,
                entropy: t.opt_write("entropy", &self.entropy)?,
                log_sum_sq: t.opt_write("log_sum_sq", &self.log_sum_sq)?,
                top1: t.opt_write("top1", &self.top1)?,
            };
            t.disjoint()?;
            logprob(t.device, args)
        })
    }
}

impl Op for gradus_logprob_bwd_args {
    fn defaults(&mut self) {
        self.transform.set_defaults();
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "logits", &self.logits, T, {
            let args = LogProbBwd::<T> {
                logits: t.read("logits", &self.logits)?,
                targets: t.read("targets", &self.targets)?,
                vocab: self.vocab,
                transform: self.transform.get(),
                dlogp: t.read("dlogp", &self.dlogp)?,
                dentropy: t.opt_read("dentropy", &self.dentropy)?,
                dlse: t.opt_read("dlse", &self.dlse)?,
                dlogits: t.write("dlogits", &self.dlogits)?,
            };
            t.disjoint()?;
            logprob_bwd(t.device, args)
        })
    }
}

impl Op for gradus_logprob_fused_args {
    fn defaults(&mut self) {
        self.transform.set_defaults();
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "logits", &self.logits, T, {
            let args = LogProbFused::<T> {
                logits: t.write("logits", &self.logits)?,
                targets: t.read("targets", &self.targets)?,
                vocab: self.vocab,
                transform: self.transform.get(),
                dlogp: t.read("dlogp", &self.dlogp)?,
                logp: t.write("logp", &self.logp)?,
                entropy: t.opt_write("entropy", &self.entropy)?,
            };
            t.disjoint()?;
            logprob_fused(t.device, args)
        })
    }
}

/// Exactly one of a dense and a 4-bit head.
fn head<'a, T: gradus::dtype::Float>(
    t: &Tensors<'a>,
    dense: &gradus_tensor,
    packed: *const gradus_nf4,
) -> Result<Head<'a, T>> {
    match (is_absent(dense), packed.is_null()) {
        (false, true) => Ok(Head::Dense(t.read("head", dense)?)),
        (true, false) => Ok(Head::Nf4(nf4(t, "head_nf4", t.given("head_nf4", packed)?)?)),
        (dense, _) => {
            let got = if dense { "neither head nor head_nf4" } else { "both head and head_nf4" };
            Err(t.invalid("head", got, "one of them"))
        }
    }
}

impl Op for gradus_linear_logprob_args {
    fn defaults(&mut self) {
        self.transform.set_defaults();
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "hidden", &self.hidden, T, {
            let args = LinearLogProb::<T> {
                hidden: t.read("hidden", &self.hidden)?,
                head: head(t, &self.head, self.head_nf4)?,
                lora: &adapters(t, self.lora, self.lora_count)?,
                targets: t.read("targets", &self.targets)?,
                vocab: self.vocab,
                transform: self.transform.get(),
                logp: t.write("logp", &self.logp)?,
                lse: t.opt_write("lse", &self.lse)?,
                entropy: t.opt_write("entropy", &self.entropy)?,
                score: t.opt_write("score", &self.score)?,
            };
            t.disjoint()?;
            linear_logprob(t.device, args)
        })
    }
}

impl Op for gradus_linear_logprob_bwd_args {
    fn defaults(&mut self) {
        self.transform.set_defaults();
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "hidden", &self.hidden, T, {
            let args = LinearLogProbBwd::<T> {
                hidden: t.read("hidden", &self.hidden)?,
                head: head(t, &self.head, self.head_nf4)?,
                lora: &adapters(t, self.lora, self.lora_count)?,
                targets: t.read("targets", &self.targets)?,
                vocab: self.vocab,
                transform: self.transform.get(),
                dlogp: t.read("dlogp", &self.dlogp)?,
                dentropy: t.opt_read("dentropy", &self.dentropy)?,
                dhidden: t.write("dhidden", &self.dhidden)?,
                dweight: t.opt_write("dweight", &self.dweight)?,
            };
            t.disjoint()?;
            linear_logprob_bwd(t.device, args)
        })
    }
}

impl Op for gradus_score_scale_args {
    fn defaults(&mut self) {}
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "score", &self.score, T, {
            let args = ScoreScale::<T> {
                score: t.read("score", &self.score)?,
                dlogp: t.read("dlogp", &self.dlogp)?,
                dhidden: t.write("dhidden", &self.dhidden)?,
            };
            t.disjoint()?;
            score_scale(t.device, args)
        })
    }
}

impl Op for gradus_gather_k_args {
    fn defaults(&mut self) {
        self.transform.set_defaults();
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "logits", &self.logits, T, {
            let args = GatherK::<T> {
                logits: t.read("logits", &self.logits)?,
                ids: t.read("ids", &self.ids)?,
                vocab: self.vocab,
                transform: self.transform.get(),
                renormalize: t.flag("renormalize", self.renormalize)?,
                logp: t.write("logp", &self.logp)?,
                mass: t.opt_write("mass", &self.mass)?,
            };
            t.disjoint()?;
            gather_k(t.device, args)
        })
    }
}

impl Op for gradus_gather_k_bwd_args {
    fn defaults(&mut self) {
        self.transform.set_defaults();
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "logits", &self.logits, T, {
            let args = GatherKBwd::<T> {
                logits: t.read("logits", &self.logits)?,
                ids: t.read("ids", &self.ids)?,
                vocab: self.vocab,
                transform: self.transform.get(),
                renormalize: t.flag("renormalize", self.renormalize)?,
                dlogp: t.read("dlogp", &self.dlogp)?,
                dlogits: t.write("dlogits", &self.dlogits)?,
            };
            t.disjoint()?;
            gather_k_bwd(t.device, args)
        })
    }
}

fn divergence(t: &Tensors<'_>, kind: i32, beta: f64) -> Result<Divergence> {
    let all = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd { beta },
        Divergence::TotalVariation,
    ];
    t.choice("divergence", kind, &all)
}

fn guidance<'a, T>(logits: Option<View<'a, T>>, gamma: f64) -> Option<Guidance<'a, T>> {
    logits.map(|logits| Guidance { logits, gamma })
}

impl Op for gradus_vocab_kl_args {
    fn defaults(&mut self) {
        self.transform.set_defaults();
        (self.gamma, self.beta) = (1.0, 0.5);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "policy", &self.policy, T, {
            let args = VocabKl::<T> {
                policy: t.read("policy", &self.policy)?,
                reference: t.read("reference", &self.reference)?,
                guidance: guidance(t.opt_read("guidance", &self.guidance)?, self.gamma),
                vocab: self.vocab,
                transform: self.transform.get(),
                divergence: divergence(t, self.divergence, self.beta)?,
                value: t.write("value", &self.value)?,
            };
            t.disjoint()?;
            vocab_kl(t.device, args)
        })
    }
}

impl Op for gradus_vocab_kl_bwd_args {
    fn defaults(&mut self) {
        self.transform.set_defaults();
        (self.gamma, self.beta) = (1.0, 0.5);
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "policy", &self.policy, T, {
            let args = VocabKlBwd::<T> {
                policy: t.read("policy", &self.policy)?,
                reference: t.read("reference", &self.reference)?,
                guidance: guidance(t.opt_read("guidance", &self.guidance)?, self.gamma),
                vocab: self.vocab,
                transform: self.transform.get(),
                divergence: divergence(t, self.divergence, self.beta)?,
                dvalue: t.read("dvalue", &self.dvalue)?,
                dpolicy: t.write("dpolicy", &self.dpolicy)?,
            };
            t.disjoint()?;
            vocab_kl_bwd(t.device, args)
        })
    }
}

impl Op for gradus_sample_args {
    fn defaults(&mut self) {
        self.transform.set_defaults();
        self.top_p = 1.0;
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        for_float!(t, "logits", &self.logits, T, {
            let args = Sample::<T> {
                logits: t.read("logits", &self.logits)?,
                vocab: self.vocab,
                transform: self.transform.get(),
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                greedy: t.flag("greedy", self.greedy)?,
                uniform: t.read("uniform", &self.uniform)?,
                token: t.write("token", &self.token)?,
                logp: t.write("logp", &self.logp)?,
                logp_kept: t.opt_write("logp_kept", &self.logp_kept)?,
                kept_mass: t.opt_write("kept_mass", &self.kept_mass)?,
                entropy: None,
            };
            t.disjoint()?;
            sample(t.device, args)
        })
    }
}

/// Sizes of this header's other structs.
pub(super) const STRUCTS: [(&str, usize); 1] =
    [("logit_transform", size_of::<sys::gradus_logit_transform>())];
