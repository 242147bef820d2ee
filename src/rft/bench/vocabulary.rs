//! Rows of logits, and the head that makes them.

use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::ops::*;

use super::case::{Case, Work, products, repeated, shape, table, wave};

/// Rows of logits, vocabulary, hidden size.
const T: usize = 32;
const VOCAB: usize = 151_936;
const HIDDEN: usize = 1536;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![sampler(), gathered(), divergences(), divergences_gradient()];
    cases.push(head::<f32>([256, 256, 8192], Pass::Score));
    cases.extend(of::<f32>());
    #[cfg(not(debug_assertions))]
    cases.extend(of::<gradus::bf16>());
    cases
}

pub fn of<F: Float>() -> Vec<Case> {
    vec![logprobs::<F>(T), logprobs_gradient::<F>(), scores::<F>()]
}

fn logits(rows: usize) -> String {
    format!("{rows} x {VOCAB}")
}

/// Every logit read once; an exponential is about 15 flops.
pub fn logprobs<F: Float>(rows: usize) -> Case {
    let n = rows * VOCAB;
    let costs = [size_of::<F>() * n, 15 * n];
    Case::new::<F>(["vocabulary", "logprob"], logits(rows), costs, Work::F32, move |device| {
        let (x, mut logp) = (wave::<F>(device, n, 1)?, Buffer::<f32>::new(device, rows)?);
        let targets = table(device, rows, |i| (i * 4001 % VOCAB) as i32)?;
        let all = [rows as i64];
        Ok(Box::new(move |device| {
            let (x, targets) = (x.view(&shape(rows, VOCAB))?, targets.view(&all)?);
            logprob(device, LogProb::new(x, targets, logp.view_mut(&all)?))
        }))
    })
}

/// Log-probs, then the gradient of the logits: what one backward pass of a library does.
pub fn logprobs_train<F: Float>(rows: usize) -> Case {
    let n = rows * VOCAB;
    let costs = [size_of::<F>() * 3 * n, 45 * n];
    let name = logits(rows) + " train";
    Case::new::<F>(["vocabulary", "logprob"], name, costs, Work::F32, move |device| {
        let (x, mut dx) = (wave::<F>(device, n, 1)?, Buffer::<F>::new(device, n)?);
        let targets = table(device, rows, |i| (i * 4001 % VOCAB) as i32)?;
        let (dlogp, all) = (wave::<f32>(device, rows, 2)?, [rows as i64]);
        let mut logp = Buffer::<f32>::new(device, rows)?;
        Ok(Box::new(move |device| {
            let (x, targets) = (x.view(&shape(rows, VOCAB))?, targets.view(&all)?);
            logprob(device, LogProb::new(x, targets, logp.view_mut(&all)?))?;
            let (dlogp, dx) = (dlogp.view(&all)?, dx.view_mut(&shape(rows, VOCAB))?);
            logprob_bwd(device, LogProbBwd::new(x, targets, dlogp, dx))
        }))
    })
}

/// Every logit read once, its gradient written.
fn logprobs_gradient<F: Float>() -> Case {
    let n = T * VOCAB;
    let costs = [size_of::<F>() * 2 * n, 30 * n];
    Case::new::<F>(["vocabulary", "logprob_bwd"], logits(T), costs, Work::F32, move |device| {
        let (x, mut dx) = (wave::<F>(device, n, 1)?, Buffer::<F>::new(device, n)?);
        let targets = table(device, T, |i| (i * 4001 % VOCAB) as i32)?;
        let dlogp = wave::<f32>(device, T, 2)?;
        Ok(Box::new(move |device| {
            let (x, targets) = (x.view(&shape(T, VOCAB))?, targets.view(&[T as i64])?);
            let (dlogp, dx) = (dlogp.view(&[T as i64])?, dx.view_mut(&shape(T, VOCAB))?);
            logprob_bwd(device, LogProbBwd::new(x, targets, dlogp, dx))
        }))
    })
}

/// Every logit read once.
fn sampler() -> Case {
    let n = T * VOCAB;
    Case::new::<f32>(
        ["vocabulary", "sample"],
        logits(T),
        [4 * n, 15 * n],
        Work::F32,
        move |device| {
            let x = wave::<f32>(device, n, 1)?;
            let uniform = table(device, T, |i| (i as f64 + 0.5) / T as f64)?;
            let (mut token, mut logp) =
                (Buffer::<i32>::new(device, T)?, Buffer::<f32>::new(device, T)?);
            Ok(Box::new(move |device| {
                let args = Sample {
                    logits: x.view(&shape(T, VOCAB))?,
                    vocab: VOCAB as i64,
                    transform: LogitTransform::default(),
                    top_k: 0,
                    top_p: 1.0,
                    min_p: 0.0,
                    greedy: false,
                    uniform: uniform.view(&[T as i64])?,
                    token: token.view_mut(&[T as i64])?,
                    logp: logp.view_mut(&[T as i64])?,
                    logp_kept: None,
                    kept_mass: None,
                    entropy: None,
                };
                sample(device, args)
            }))
        },
    )
}

/// `2·T·H` elements, a product each.
fn scores<F: Float>() -> Case {
    let rows = 512;
    let n = rows * HIDDEN;
    let costs = [size_of::<F>() * 2 * n + 4 * rows, n];
    let name = format!("{rows} x {HIDDEN}");
    Case::new::<F>(["vocabulary", "score_scale"], name, costs, Work::F64, move |device| {
        let (score, dlogp) = (wave::<F>(device, n, 1)?, wave::<f32>(device, rows, 2)?);
        let mut dhidden = Buffer::<F>::new(device, n)?;
        Ok(Box::new(move |device| {
            let args = ScoreScale {
                score: score.view(&shape(rows, HIDDEN))?,
                dlogp: dlogp.view(&[rows as i64])?,
                dhidden: dhidden.view_mut(&shape(rows, HIDDEN))?,
            };
            score_scale(device, args)
        }))
    })
}

/// What a head computes.
#[derive(Clone, Copy, PartialEq)]
pub enum Pass {
    /// Log-probs.
    Forward,
    /// Log-probs and the gradients of the hidden states, for a frozen head.
    Score,
    /// Log-probs, then the gradients of hidden states and head.
    Train,
}

/// Hidden states and head once, their gradients where there are any (the head's in f32, read and
/// written); a product of `2·T·H·V` flops forward and one for each gradient. `linear_logprob_bwd`
/// computes the logits a second time, which is not counted: nobody has to.
pub fn head<T: Float>([rows, h, vocab]: [usize; 3], pass: Pass) -> Case {
    let (name, gradients) = match pass {
        Pass::Forward => ("", 0),
        Pass::Score => (" score", 1),
        Pass::Train => (" train", 2),
    };
    let (hidden_len, weights) = (rows * h, vocab * h);
    let mut bytes = size_of::<T>() * (hidden_len + weights) + 8 * rows;
    bytes += size_of::<T>() * hidden_len * gradients.min(1);
    bytes += if pass == Pass::Train { 8 * weights } else { 0 };
    let costs = [bytes, 2 * rows * h * vocab * (1 + gradients)];
    let name = format!("{rows} x {h} x {vocab}{name}");
    Case::new::<T>(["vocabulary", "linear_logprob"], name, costs, products::<T>(), move |device| {
        let (hidden, w) = (wave::<T>(device, hidden_len, 1)?, wave::<T>(device, weights, 2)?);
        let targets = table(device, rows, |i| (i * 4001 % vocab) as i32)?;
        let dlogp = wave::<f32>(device, rows, 3)?;
        let mut logp = Buffer::<f32>::new(device, rows)?;
        let given = |wanted: bool, len: usize| if wanted { len } else { 0 };
        // The scores, or the gradient of the hidden states.
        let mut dhidden = Buffer::<T>::new(device, given(gradients > 0, hidden_len))?;
        let mut dw = repeated(device, given(pass == Pass::Train, weights), 1, |_| 0f32)?;
        let all = [rows as i64];
        Ok(Box::new(move |device| {
            let (x, targets) = (hidden.view(&shape(rows, h))?, targets.view(&all)?);
            let head = Head::Dense(w.view(&shape(vocab, h))?);
            let mut args = LinearLogProb::new(x, head, targets, logp.view_mut(&all)?);
            if pass == Pass::Score {
                args.score = Some(dhidden.view_mut(&shape(rows, h))?);
            }
            linear_logprob(device, args)?;
            if pass != Pass::Train {
                return Ok(());
            }
            let args = LinearLogProbBwd {
                hidden: x,
                head,
                lora: &[],
                targets,
                vocab: vocab as i64,
                transform: LogitTransform::default(),
                dlogp: dlogp.view(&all)?,
                dentropy: None,
                dhidden: dhidden.view_mut(&shape(rows, h))?,
                dweight: Some(dw.view_mut(&shape(vocab, h))?),
            };
            linear_logprob_bwd(device, args)
        }))
    })
}

/// Every logit read once for the mass of eight ids per row.
fn gathered() -> Case {
    let (n, ids) = (T * VOCAB, 8);
    let costs = [4 * n + 8 * T * ids, 15 * n];
    Case::new::<f32>(
        ["vocabulary", "gather_k"],
        format!("{} of {ids}", logits(T)),
        costs,
        Work::F32,
        move |device| {
            let x = wave::<f32>(device, n, 1)?;
            let kept = table(device, T * ids, |i| (i % ids * 4001 % VOCAB) as i32)?;
            let mut logp = Buffer::<f32>::new(device, T * ids)?;
            Ok(Box::new(move |device| {
                let args = GatherK {
                    logits: x.view(&shape(T, VOCAB))?,
                    ids: kept.view(&shape(T, ids))?,
                    vocab: VOCAB as i64,
                    transform: LogitTransform::default(),
                    renormalize: false,
                    logp: logp.view_mut(&shape(T, ids))?,
                    mass: None,
                };
                gather_k(device, args)
            }))
        },
    )
}

/// Both rows read once; two exponentials per pair of logits are about 30 flops.
fn divergences() -> Case {
    let n = T * VOCAB;
    Case::new::<f32>(
        ["vocabulary", "vocab_kl"],
        logits(T),
        [8 * n, 30 * n],
        Work::F32,
        move |device| {
            let (policy, reference) = (wave::<f32>(device, n, 1)?, wave::<f32>(device, n, 2)?);
            let mut value = Buffer::<f32>::new(device, T)?;
            Ok(Box::new(move |device| {
                let args = VocabKl {
                    policy: policy.view(&shape(T, VOCAB))?,
                    reference: reference.view(&shape(T, VOCAB))?,
                    guidance: None,
                    vocab: VOCAB as i64,
                    transform: LogitTransform::default(),
                    divergence: Divergence::ReverseKl,
                    value: value.view_mut(&[T as i64])?,
                };
                vocab_kl(device, args)
            }))
        },
    )
}

/// Both rows read once, the gradient of one written.
fn divergences_gradient() -> Case {
    let n = T * VOCAB;
    Case::new::<f32>(
        ["vocabulary", "vocab_kl_bwd"],
        logits(T),
        [12 * n, 60 * n],
        Work::F32,
        move |device| {
            let (policy, reference) = (wave::<f32>(device, n, 1)?, wave::<f32>(device, n, 2)?);
            let (dvalue, mut dpolicy) =
                (wave::<f32>(device, T, 3)?, Buffer::<f32>::new(device, n)?);
            Ok(Box::new(move |device| {
                let args = VocabKlBwd {
                    policy: policy.view(&shape(T, VOCAB))?,
                    reference: reference.view(&shape(T, VOCAB))?,
                    guidance: None,
                    vocab: VOCAB as i64,
                    transform: LogitTransform::default(),
                    divergence: Divergence::ReverseKl,
                    dvalue: dvalue.view(&[T as i64])?,
                    dpolicy: dpolicy.view_mut(&shape(T, VOCAB))?,
                };
                vocab_kl_bwd(device, args)
            }))
        },
    )
}
