// Generated from ffi/include/gradus.h by `cargo run -p gradus-bindings`.
//! Calls of ops whose C arguments have the names of the Rust ones. See `ffi/bindings`.

use gradus::ops::*;

use crate::field::impl_op;
use crate::sys::*;

impl_op!(gradus_logprob_args {
    float logits,
    defaults { transform: gradus_logit_transform { temperature: 1.0, scale: 1.0, softcap: f64::INFINITY } },
    |args, t| logprob(LogProb { logits, targets, vocab, transform, logp, lse, entropy, log_sum_sq, top1 })
});

impl_op!(gradus_logprob_bwd_args {
    float logits,
    defaults { transform: gradus_logit_transform { temperature: 1.0, scale: 1.0, softcap: f64::INFINITY } },
    |args, t| logprob_bwd(LogProbBwd { logits, targets, vocab, transform, dlogp, dentropy, dlse, dlogits })
});

impl_op!(gradus_logprob_fused_args {
    float logits,
    defaults { transform: gradus_logit_transform { temperature: 1.0, scale: 1.0, softcap: f64::INFINITY } },
    |args, t| logprob_fused(LogProbFused { logits, targets, vocab, transform, dlogp, logp, entropy })
});

impl_op!(gradus_score_scale_args {
    float score,
    |args, t| score_scale(ScoreScale { score, dlogp, dhidden })
});

impl_op!(gradus_gather_k_args {
    float logits,
    defaults { transform: gradus_logit_transform { temperature: 1.0, scale: 1.0, softcap: f64::INFINITY } },
    |args, t| gather_k(GatherK { logits, ids, vocab, transform, renormalize, logp, mass })
});

impl_op!(gradus_gather_k_bwd_args {
    float logits,
    defaults { transform: gradus_logit_transform { temperature: 1.0, scale: 1.0, softcap: f64::INFINITY } },
    |args, t| gather_k_bwd(GatherKBwd { logits, ids, vocab, transform, renormalize, dlogp, dlogits })
});

impl_op!(gradus_top_k_args {
    float logits,
    |args, t| top_k(TopK { logits, vocab, ids })
});

impl_op!(gradus_gae_args {
    real reward,
    defaults { gamma: 1.0, gae_lambda: 0.95 },
    |args, t| gae(Gae { reward, value, mask, cu_seqlens, bootstrap, gamma, gae_lambda, advantage, returns })
});

impl_op!(gradus_kl_reward_args {
    real score,
    defaults { clamp: f64::INFINITY },
    |args, t| kl_reward(KlReward { score, logp, reference, mask, cu_seqlens, beta, estimator, clamp, reward })
});

impl_op!(gradus_kto_loss_args {
    real logp,
    defaults { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 },
    |args, t| kto_loss(KtoLoss { logp, reference, desirable, beta, kl, desirable_weight, undesirable_weight, weight, loss, dlogp, total })
});

impl_op!(gradus_copg_loss_args {
    real logp,
    defaults { beta: 0.1 },
    |args, t| copg_loss(CopgLoss { logp, reference, reward, offsets, beta, weight, loss, dlogp, total })
});

impl_op!(gradus_beta_mml_loss_args {
    real logp,
    defaults { beta: 1.0 },
    |args, t| beta_mml_loss(BetaMmlLoss { logp, offsets, beta, weight, loss, dlogp, total })
});

impl_op!(gradus_info_nce_loss_args {
    real logp,
    |args, t| info_nce_loss(InfoNceLoss { logp, length, loss, dlogp })
});

impl_op!(gradus_prdp_loss_args {
    real logp,
    defaults { beta: 0.1, clip: f64::INFINITY },
    |args, t| prdp_loss(PrdpLoss { logp, old, reference, mask, cu_seqlens, reward, pairs, beta, clip, weight, loss, dlogp, total })
});

impl_op!(gradus_seq_reduce_args {
    real x,
    |args, t| seq_reduce(SeqReduce { x, mask, cu_seqlens, reduction, y, count })
});

impl_op!(gradus_seq_broadcast_args {
    real x,
    |args, t| seq_broadcast(SeqBroadcast { x, mask, cu_seqlens, mean, y })
});

impl_op!(gradus_matmul_dw_args {
    float dy,
    |args, t| matmul_dw(MatmulDw { dy, x, dw, dbias })
});

impl_op!(gradus_lora_grad_args {
    float x,
    |args, t| lora_grad(LoraGrad { x, dy, s, lora, adapter, index, da, db })
});

impl_op!(gradus_nf4_quantize_args {
    float x,
    defaults { blocksize: 64 },
    |args, t| nf4_quantize(Nf4Quantize { x, quant_type, blocksize, packed, absmax })
});

impl_op!(gradus_nf4_dequantize_args {
    float y,
    |args, t| nf4_dequantize(Nf4Dequantize { w, y })
});

impl_op!(gradus_rmsnorm_args {
    float x,
    defaults { eps: 1e-6 },
    |args, t| rmsnorm(RmsNorm { x, weight, eps, y, rstd })
});

impl_op!(gradus_rmsnorm_bwd_args {
    float x,
    defaults { eps: 1e-6 },
    |args, t| rmsnorm_bwd(RmsNormBwd { x, weight, eps, dy, residual, dx, dweight })
});

impl_op!(gradus_rope_args {
    float x,
    |args, t| rope(Rope { x, positions, cos, sin, inverse })
});

impl_op!(gradus_swiglu_args {
    float gate,
    |args, t| swiglu(Swiglu { gate, up, y })
});

impl_op!(gradus_swiglu_bwd_args {
    float gate,
    |args, t| swiglu_bwd(SwigluBwd { gate, up, dy, dgate, dup })
});

impl_op!(gradus_embedding_args {
    float table,
    |args, t| embedding(Embedding { ids, table, y })
});

impl_op!(gradus_embedding_bwd_args {
    float dy,
    |args, t| embedding_bwd(EmbeddingBwd { ids, dy, dtable })
});

impl_op!(gradus_copy_rows_args {
    float x,
    |args, t| copy_rows(CopyRows { x, from_rows, to_rows, y })
});

impl_op!(gradus_lerp_args {
    float a,
    defaults { weight: 0.5 },
    |args, t| lerp(Lerp { a, b, weight, y })
});
