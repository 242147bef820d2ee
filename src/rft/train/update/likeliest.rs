//! Divergences over the teacher's k likeliest tokens, in the place of the whole vocabulary.
//!
//! ```text
//! drop      p̃ = p / Σ_K p,  q̃ = q / Σ_K q                over the k tokens
//! bucket    p̃ = (p_1 … p_k, 1 − Σ_K p), q̃ likewise       the rest as one token more
//! ```
//! Both are what a teacher that only says its top k leaves open. Without the rest a policy is free to put
//! any share of its mass elsewhere; with it the share is learned, but not where it goes.

use crate::model::Decoder;
use crate::train::config::RestKey;
use gradus::device::{Buffer, Device};
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::{
    Divergence, GatherK, GatherKBwd, LogitTransform, TopK, VocabKl, VocabKlBwd, gather_k,
    gather_k_bwd, top_k, vocab_kl, vocab_kl_bwd,
};
use gradus::view::{View, ViewMut};

/// The tokens that count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Likeliest {
    /// How many.
    pub k: usize,
    /// What becomes of the others.
    pub rest: RestKey,
}

/// The least that is left to the rest: f32 log-probs do not resolve less.
const LEAST_REST: f64 = 1.0 / (1u64 << 24) as f64;

impl Likeliest {
    /// The weighted divergences of rows of logits, those of the policy and those of the teacher, and the
    /// gradient of the policy's logits. The k columns of a row come to the host.
    ///
    /// # Errors
    /// What the ops refuse.
    pub(crate) fn divergence<T: Float>(
        self,
        model: &Decoder<T>,
        [policy, teacher]: [&Buffer<T>; 2],
        (transform, divergence): (LogitTransform, Divergence),
        weight: f64,
    ) -> Result<(f64, Buffer<T>)> {
        let (allocator, vocab) = (&model.allocator, model.config.vocab);
        let (rows, k) = (policy.len() / vocab, self.k.min(vocab));
        let mut ids: Buffer<i32> = allocator.alloc(rows * k)?;
        let args =
            TopK { logits: teacher.rows(vocab)?, vocab: vocab as i64, ids: ids.rows_mut(k)? };
        top_k(&model.device, args)?;
        let renormalize = self.rest == RestKey::Drop;
        let known = |logits: &Buffer<T>| -> Result<Vec<f32>> {
            let mut logp: Buffer<f32> = allocator.alloc(rows * k)?;
            let args = GatherK {
                logits: logits.rows(vocab)?,
                ids: ids.rows(k)?,
                vocab: vocab as i64,
                transform,
                renormalize,
                logp: logp.rows_mut(k)?,
                mass: None,
            };
            gather_k(&model.device, args)?;
            logp.to_host()
        };
        let columns = [self.columns(known(policy)?, k), self.columns(known(teacher)?, k)];
        let (loss, slopes) = self.compare(&columns, k, divergence, weight)?;
        let dlogp = allocator.copy_of(&slopes)?;
        let mut dlogits: Buffer<T> = allocator.alloc(policy.len())?;
        let args = GatherKBwd {
            logits: policy.rows(vocab)?,
            ids: ids.rows(k)?,
            vocab: vocab as i64,
            transform,
            renormalize,
            dlogp: dlogp.rows(k)?,
            dlogits: dlogits.rows_mut(vocab)?,
        };
        gather_k_bwd(&model.device, args)?;
        Ok((loss, dlogits))
    }

    /// Log-probs of k tokens in f64, with that of the rest behind each row if it is a token.
    fn columns(self, logp: Vec<f32>, k: usize) -> Vec<f64> {
        let row = |row: &[f32]| {
            let mut wide: Vec<f64> = row.iter().map(|&l| l as f64).collect();
            if self.rest == RestKey::Bucket {
                let mass: f64 = wide.iter().map(|l| l.exp()).sum();
                wide.push((1.0 - mass).max(LEAST_REST).ln());
            }
            wide
        };
        logp.chunks(k).flat_map(row).collect()
    }

    /// The weighted divergences, and the slope of each of the k log-probs of the policy.
    fn compare(
        self,
        [policy, teacher]: &[Vec<f64>; 2],
        k: usize,
        divergence: Divergence,
        weight: f64,
    ) -> Result<(f64, Vec<f32>)> {
        let width = if self.rest == RestKey::Bucket { k + 1 } else { k };
        let rows = policy.len() / width;
        let (device, transform) = (Device::Cpu, LogitTransform::default());
        let (policy, teacher) = (View::rows_of(policy, width)?, View::rows_of(teacher, width)?);
        let (mut value, vocab, guidance) = (vec![0f32; rows], width as i64, None);
        let args = VocabKl {
            policy,
            reference: teacher,
            guidance,
            vocab,
            transform,
            divergence,
            value: (&mut value).into(),
        };
        vocab_kl(&device, args)?;
        let (dvalue, mut slopes) = (vec![weight as f32; rows], vec![0f64; rows * width]);
        let args = VocabKlBwd {
            policy,
            reference: teacher,
            guidance,
            vocab,
            transform,
            divergence,
            dvalue: (&dvalue).into(),
            dpolicy: ViewMut::rows_of(&mut slopes, width)?,
        };
        vocab_kl_bwd(&device, args)?;
        let row = |(i, row): (usize, &[f64])| -> Vec<f32> {
            // The rest is 1 − Σ of the others: each of them moves it.
            let q = |j: usize| policy.row(i)[j].exp();
            let lost = if width > k { row[k] / q(k) } else { 0.0 };
            (0..k).map(|j| (row[j] - lost * q(j)) as f32).collect()
        };
        let slopes = slopes.chunks(width).enumerate().flat_map(row).collect();
        let loss = value.into_iter().map(|value| weight * value as f64).sum();
        Ok((loss, slopes))
    }
}
