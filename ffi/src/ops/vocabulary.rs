//! Ops on rows of logits: `include/gradus/vocabulary.h`.

use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Result, View};

use crate::field::impl_op;
use crate::quant::{adapters, nf4};
use crate::sys::*;
use crate::tensor::{Tensors, is_absent};

const TRANSFORM: gradus_logit_transform =
    gradus_logit_transform { temperature: 1.0, scale: 1.0, softcap: f64::INFINITY };

/// Exactly one of a dense and a 4-bit head.
fn head<'a, T: Float>(
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

impl_op!(gradus_linear_logprob_args {
    float hidden,
    defaults { transform: TRANSFORM },
    |args, t| linear_logprob(LinearLogProb {
        hidden,
        head: head(t, &args.head, args.head_nf4)?,
        lora: &adapters(t, args.lora, args.lora_count)?,
        targets, vocab, transform, logp, lse, entropy, score,
    })
});

impl_op!(gradus_linear_logprob_bwd_args {
    float hidden,
    defaults { transform: TRANSFORM },
    |args, t| linear_logprob_bwd(LinearLogProbBwd {
        hidden,
        head: head(t, &args.head, args.head_nf4)?,
        lora: &adapters(t, args.lora, args.lora_count)?,
        targets, vocab, transform, dlogp, dentropy, dhidden, dweight,
    })
});

fn divergence(t: &Tensors<'_>, number: i32, beta: f64) -> Result<Divergence> {
    use gradus_divergence::*;
    Ok(match t.enumerator("divergence", number)? {
        GRADUS_FORWARD_KL => Divergence::ForwardKl,
        GRADUS_REVERSE_KL => Divergence::ReverseKl,
        GRADUS_JSD => Divergence::Jsd { beta },
        GRADUS_TOTAL_VARIATION => Divergence::TotalVariation,
    })
}

fn guidance<'a, T: Float>(
    t: &Tensors<'a>,
    logits: &gradus_tensor,
    gamma: f64,
) -> Result<Option<Guidance<'a, T>>> {
    let logits: Option<View<'a, T>> = t.opt_read("guidance", logits)?;
    Ok(logits.map(|logits| Guidance { logits, gamma }))
}

impl_op!(gradus_vocab_kl_args {
    float policy,
    defaults { transform: TRANSFORM, gamma: 1.0, beta: 0.5 },
    |args, t| vocab_kl(VocabKl {
        policy, reference,
        guidance: guidance(t, &args.guidance, args.gamma)?,
        vocab, transform,
        divergence: divergence(t, args.divergence, args.beta)?,
        value,
    })
});

impl_op!(gradus_vocab_kl_bwd_args {
    float policy,
    defaults { transform: TRANSFORM, gamma: 1.0, beta: 0.5 },
    |args, t| vocab_kl_bwd(VocabKlBwd {
        policy, reference,
        guidance: guidance(t, &args.guidance, args.gamma)?,
        vocab, transform,
        divergence: divergence(t, args.divergence, args.beta)?,
        dvalue, dpolicy,
    })
});

impl_op!(gradus_sample_args {
    float logits,
    defaults { transform: TRANSFORM, top_p: 1.0 },
    |args, t| sample(Sample {
        logits, vocab, transform, top_k, top_p, min_p, greedy, uniform, token, logp, logp_kept, kept_mass,
        entropy: None,
    })
});
