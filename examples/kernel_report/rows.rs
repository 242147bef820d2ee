//! Rows of logits: every kernel of the vocabulary, on rows of a size that a cluster of four shares.

use gradus::device::DeviceBuffer;
use gradus::ops::*;
use gradus::{Result, View, bf16};

use crate::Bench;

const T: usize = 4;

/// Log-probs, their gradient, divergences, sampling; also where rows do not begin at 16 bytes.
pub fn report(bench: &Bench) -> Result<()> {
    for v in [151_936usize, 151_937] {
        log_probs(bench, v)?;
    }
    let v = 151_936;
    divergences(bench, v)?;
    entries(bench, v)?;
    draws(bench, v)
}

/// Logits without a pattern that a warp could profit from.
fn logits(bench: &Bench, v: usize, seed: usize) -> Result<DeviceBuffer<bf16>> {
    let x = |i: usize| ((i * 7 + seed) * 2_654_435_761 % 4_294_967_291 % 1_999) as f32 * 0.005;
    let logits: Vec<bf16> = (0..T * v).map(|i| bf16::from_f32(x(i))).collect();
    DeviceBuffer::from_host(&bench.gpu, &logits)
}

fn log_probs(bench: &Bench, v: usize) -> Result<()> {
    let logits = logits(bench, v, 0)?;
    let targets = DeviceBuffer::from_host(&bench.gpu, &[5i32, 70_000, 0, v as i32 - 1])?;
    let (mut logp, mut entropy) =
        (DeviceBuffer::<f32>::new(&bench.gpu, T)?, DeviceBuffer::<f32>::new(&bench.gpu, T)?);
    let (shape, bytes) = ([T as i64, v as i64], (2 * T * v) as u64);
    let name = format!("bf16 {T} x {v}");
    bench.report(&name, bytes, |d| {
        logprob(d, LogProb::new(logits.view(&shape)?, targets.view(&[4])?, logp.view_mut(&[4])?))
    })?;
    bench.report(&format!("{name}, entropy"), bytes, |d| {
        let (x, y) = (logits.view(&shape)?, targets.view(&[4])?);
        let args = LogProb::new(x, y, logp.view_mut(&[4])?);
        logprob(d, LogProb { entropy: Some(entropy.view_mut(&[4])?), ..args })
    })?;
    let dlogp = DeviceBuffer::from_host(&bench.gpu, &[1f32; T])?;
    let mut dlogits = DeviceBuffer::<bf16>::new(&bench.gpu, T * v)?;
    bench.report(&name, 2 * bytes, |d| {
        let (x, y) = (logits.view(&shape)?, targets.view(&[4])?);
        logprob_bwd(d, LogProbBwd::new(x, y, dlogp.view(&[4])?, dlogits.view_mut(&shape)?))
    })
}

fn divergences(bench: &Bench, v: usize) -> Result<()> {
    let (policy, reference) = (logits(bench, v, 0)?, logits(bench, v, 1)?);
    let mut value = DeviceBuffer::<f32>::new(&bench.gpu, T)?;
    let dvalue = DeviceBuffer::from_host(&bench.gpu, &[1f32; T])?;
    let mut dpolicy = DeviceBuffer::<bf16>::new(&bench.gpu, T * v)?;
    let (shape, bytes) = ([T as i64, v as i64], (2 * T * v) as u64);
    let transform = LogitTransform::default();
    for (name, divergence) in [
        ("forward KL", Divergence::ForwardKl),
        ("reverse KL", Divergence::ReverseKl),
        ("JSD", Divergence::Jsd { beta: 0.5 }),
        ("total variation", Divergence::TotalVariation),
    ] {
        let name = format!("bf16 {T} x {v}, {name}");
        let (q, p): (View<'_, bf16>, View<'_, bf16>) =
            (policy.view(&shape)?, reference.view(&shape)?);
        bench.report(&name, 2 * bytes, |d| {
            let value = value.view_mut(&[T as i64])?;
            let (guidance, vocab) = (None, v as i64);
            vocab_kl(
                d,
                VocabKl { policy: q, reference: p, guidance, vocab, transform, divergence, value },
            )
        })?;
        bench.report(&name, 3 * bytes, |d| {
            vocab_kl_bwd(
                d,
                VocabKlBwd {
                    policy: q,
                    reference: p,
                    guidance: None,
                    vocab: v as i64,
                    transform,
                    divergence,
                    dvalue: dvalue.view(&[T as i64])?,
                    dpolicy: dpolicy.view_mut(&shape)?,
                },
            )
        })?;
    }
    Ok(())
}

fn entries(bench: &Bench, v: usize) -> Result<()> {
    const K: usize = 64;
    let logits = logits(bench, v, 0)?;
    let ids: Vec<i32> = (0..T * K).map(|i| (i % K * 2_371) as i32).collect();
    let ids = DeviceBuffer::from_host(&bench.gpu, &ids)?;
    let dlogp = DeviceBuffer::from_host(&bench.gpu, &[1f32; T * K])?;
    let mut logp = DeviceBuffer::<f32>::new(&bench.gpu, T * K)?;
    let mut dlogits = DeviceBuffer::<bf16>::new(&bench.gpu, T * v)?;
    let (shape, some) = ([T as i64, v as i64], [T as i64, K as i64]);
    let (bytes, vocab, transform) = ((2 * T * v) as u64, v as i64, LogitTransform::default());
    for (name, renormalize, reads) in [("whole row", false, 1), ("kept set", true, 0)] {
        let name = format!("bf16 {T} x {v}, {K} ids, {name}");
        let (x, of_ids): (View<'_, bf16>, View<'_, i32>) = (logits.view(&shape)?, ids.view(&some)?);
        bench.report(&name, reads * bytes + (12 * T * K) as u64, |d| {
            let logp = logp.view_mut(&some)?;
            let args =
                GatherK { logits: x, ids: of_ids, vocab, transform, renormalize, logp, mass: None };
            gather_k(d, args)
        })?;
        bench.report(&name, (reads + 1) * bytes, |d| {
            let (dlogp, dlogits) = (dlogp.view(&some)?, dlogits.view_mut(&shape)?);
            let args = GatherKBwd {
                logits: x,
                ids: of_ids,
                vocab,
                transform,
                renormalize,
                dlogp,
                dlogits,
            };
            gather_k_bwd(d, args)
        })?;
    }
    Ok(())
}

fn draws(bench: &Bench, v: usize) -> Result<()> {
    let logits = logits(bench, v, 0)?;
    let uniform = DeviceBuffer::from_host(&bench.gpu, &[0.1f64, 0.4, 0.7, 0.99])?;
    let mut token = DeviceBuffer::<i32>::new(&bench.gpu, T)?;
    let mut logp = DeviceBuffer::<f32>::new(&bench.gpu, T)?;
    for (name, top_k, top_p, min_p, greedy) in [
        ("greedy", 0, 1.0, 0.0, true),
        ("no filter", 0, 1.0, 0.0, false),
        ("min-p 0.1", 0, 1.0, 0.1, false),
        ("top-k 50", 50, 1.0, 0.0, false),
        ("top-p 0.9", 0, 0.9, 0.0, false),
    ] {
        bench.report(&format!("bf16 {T} x {v}, {name}"), (2 * T * v) as u64, |d| {
            sample(
                d,
                Sample {
                    logits: logits.view(&[T as i64, v as i64])?,
                    vocab: v as i64,
                    transform: LogitTransform::default(),
                    top_k,
                    top_p,
                    min_p,
                    greedy,
                    uniform: uniform.view(&[T as i64])?,
                    token: token.view_mut(&[T as i64])?,
                    logp: logp.view_mut(&[T as i64])?,
                    logp_kept: None,
                    kept_mass: None,
                    entropy: None,
                },
            )
        })?;
    }
    Ok(())
}
