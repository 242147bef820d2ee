//! The narrow dtypes of the ops whose own tests are in f64: what a kernel makes of f32 operands is
//! the f64 result on the same values, rounded once; 16-bit operands give what their widened values
//! give.

use crate::common::devices::{close, on_all, shared_gpus};
use crate::common::normals;
use gradus::dtype::{Float, Real};
use gradus::ops::{
    BetaMmlLoss, CopgLoss, InfoNceLoss, KtoLoss, LogProb, LogitTransform, OffPolicySettings,
    OffPolicyWeight, Pair, PrdpLoss, PreferenceKind, PreferenceLoss, PreferenceScore, Sample,
    beta_mml_loss, copg_loss, info_nce_loss, kto_loss, logprob, offpolicy_weight, prdp_loss,
    preference_loss, sample,
};
use gradus::quant::{Nf4Options, Nf4Tensor};
use gradus::{Device, View, ViewMut, bf16, f16};

/// Two roundings of f32.
const ROUNDED: f64 = 1.2e-7;

/// Values that f32 holds exactly, in `R`.
fn values<R: Real>(seed: u64, n: usize, scale: f64) -> Vec<R> {
    normals(seed, n, scale).iter().map(|&x| R::from_f64(x as f32 as f64)).collect()
}

fn nan<R: Real>(n: usize) -> Vec<R> {
    vec![R::from_f64(f64::NAN); n]
}

fn wide<R: Real>(columns: &[&[R]]) -> Vec<f64> {
    columns.iter().flat_map(|column| column.iter().map(|x| x.to_f64())).collect()
}

/// Holds the f32 form on every GPU, and on the CPU, against the f64 form on the CPU.
fn rounds_once(
    what: &str,
    narrow: impl Fn(&Device) -> Vec<f64>,
    exact: impl Fn(&Device) -> Vec<f64>,
) {
    let want = exact(&Device::Cpu);
    assert!(want.iter().all(|x| x.is_finite()) && want.iter().any(|&x| x != 0.0), "{what}");
    close(&format!("{what} on the CPU"), &want, &narrow(&Device::Cpu), ROUNDED, 1e-3);
    for executor in shared_gpus() {
        let name = format!("{what} on {}", executor.name);
        close(&name, &want, &narrow(&executor.device), ROUNDED, 1e-3);
    }
}

fn preference<R: Real>(device: &Device) -> Vec<f64> {
    let n = 37;
    let [a, b, c, d, weight] = [1, 2, 3, 4, 5].map(|seed| values::<R>(seed, n, 2.0));
    let (mut loss, mut total) = (nan::<R>(n), [f64::NAN]);
    let (mut chosen, mut rejected) = (nan::<R>(n), nan::<R>(n));
    let args = PreferenceLoss {
        logp: Pair { chosen: (&a).into(), rejected: (&b).into() },
        reference: Some(Pair { chosen: (&c).into(), rejected: (&d).into() }),
        length: None,
        kind: PreferenceKind::Sigmoid { label_smoothing: 0.1, margin: 0.0 },
        score: PreferenceScore::ReverseKl,
        beta: 0.3,
        likelihood: 0.25,
        weight: Some((&weight).into()),
        loss: (&mut loss).into(),
        d_logp: Pair { chosen: (&mut chosen).into(), rejected: (&mut rejected).into() },
        reward: None,
        total: Some((&mut total[..]).into()),
    };
    preference_loss(device, args).unwrap();
    wide(&[&loss, &chosen, &rejected])
}

fn kto<R: Real>(device: &Device) -> Vec<f64> {
    let n = 37;
    let (logp, reference) = (values::<R>(6, n, 2.0), values::<R>(7, n, 2.0));
    let desirable: Vec<u8> = (0..n).map(|i| (i % 3 == 0) as u8).collect();
    let (mut loss, mut d_logp) = (nan::<R>(n), nan::<R>(n));
    let args = KtoLoss {
        logp: (&logp).into(),
        reference: (&reference).into(),
        desirable: (&desirable).into(),
        beta: 0.3,
        kl: 0.1,
        desirable_weight: 1.0,
        undesirable_weight: 1.5,
        weight: None,
        loss: (&mut loss).into(),
        d_logp: (&mut d_logp).into(),
        total: None,
    };
    kto_loss(device, args).unwrap();
    wide(&[&loss, &d_logp])
}

fn prdp<R: Real>(device: &Device) -> Vec<f64> {
    let cu = [0i64, 5, 5, 17, 18, 51];
    let [logp, old, reference] = [8, 9, 10].map(|seed| values::<R>(seed, 51, 0.1));
    let reward = values::<R>(11, 5, 1.0);
    let pairs = [0i64, 2, 2, 4, 3, 0];
    let (mut loss, mut d_logp) = (nan::<R>(3), nan::<R>(51));
    let args = PrdpLoss {
        logp: (&logp).into(),
        old: (&old).into(),
        reference: (&reference).into(),
        mask: None,
        cu_seqlens: cu[..].into(),
        reward: (&reward).into(),
        pairs: View::rows_of(&pairs, 2).unwrap(),
        beta: 0.3,
        clip: 10.0,
        weight: None,
        loss: (&mut loss).into(),
        d_logp: (&mut d_logp).into(),
        total: None,
    };
    prdp_loss(device, args).unwrap();
    wide(&[&loss, &d_logp])
}

const GROUPS: [i64; 6] = [0, 4, 4, 5, 11, 40];

fn copg<R: Real>(device: &Device) -> Vec<f64> {
    let [logp, reference, reward] = [12, 13, 14].map(|seed| values::<R>(seed, 40, 1.0));
    let (mut loss, mut d_logp) = (nan::<R>(5), nan::<R>(40));
    let args = CopgLoss {
        logp: (&logp).into(),
        reference: Some((&reference).into()),
        reward: (&reward).into(),
        offsets: GROUPS[..].into(),
        beta: 0.4,
        weight: None,
        loss: (&mut loss).into(),
        d_logp: (&mut d_logp).into(),
        total: None,
    };
    copg_loss(device, args).unwrap();
    wide(&[&loss, &d_logp])
}

fn beta_mml<R: Real>(device: &Device) -> Vec<f64> {
    let logp = values::<R>(15, 40, 2.0);
    let (mut loss, mut d_logp) = (nan::<R>(5), nan::<R>(40));
    let args = BetaMmlLoss {
        logp: (&logp).into(),
        offsets: GROUPS[..].into(),
        beta: 0.5,
        weight: None,
        loss: (&mut loss).into(),
        d_logp: (&mut d_logp).into(),
        total: None,
    };
    beta_mml_loss(device, args).unwrap();
    wide(&[&loss, &d_logp])
}

fn info_nce<R: Real>(device: &Device) -> Vec<f64> {
    let n = 23;
    let logp = values::<R>(16, n * n, 2.0);
    let (mut loss, mut d_logp) = (nan::<R>(1), nan::<R>(n * n));
    let args = InfoNceLoss {
        logp: View::rows_of(&logp, n).unwrap(),
        length: None,
        loss: (&mut loss).into(),
        d_logp: ViewMut::rows_of(&mut d_logp, n).unwrap(),
    };
    info_nce_loss(device, args).unwrap();
    wide(&[&loss, &d_logp])
}

fn offpolicy<R: Real>(device: &Device) -> Vec<f64> {
    let (old, sampler) = (values::<R>(17, 300, 1.0), values::<R>(18, 300, 1.0));
    let mut weight = nan::<R>(300);
    let args = OffPolicyWeight {
        old_logp: (&old).into(),
        sampler_logp: (&sampler).into(),
        mask: None,
        cu_seqlens: [0i64, 100, 100, 299, 300][..].into(),
        settings: OffPolicySettings::default(),
        weight: (&mut weight).into(),
        stats: None,
    };
    offpolicy_weight(device, args).unwrap();
    wide(&[&weight])
}

#[test]
fn f32_is_f64_rounded_once() {
    rounds_once("preference_loss", preference::<f32>, preference::<f64>);
    rounds_once("kto_loss", kto::<f32>, kto::<f64>);
    rounds_once("prdp_loss", prdp::<f32>, prdp::<f64>);
    rounds_once("copg_loss", copg::<f32>, copg::<f64>);
    rounds_once("beta_mml_loss", beta_mml::<f32>, beta_mml::<f64>);
    rounds_once("info_nce_loss", info_nce::<f32>, info_nce::<f64>);
    rounds_once("offpolicy_weight", offpolicy::<f32>, offpolicy::<f64>);
}

/// Tokens and log-probs of a draw.
fn draw<T: Float>(
    device: &Device,
    logits: &[T],
    v: usize,
    uniform: &[f64],
) -> (Vec<i32>, Vec<u32>) {
    let n = uniform.len();
    let (mut token, mut logp) = (vec![-7; n], vec![f32::NAN; n]);
    let args = Sample {
        logits: View::rows_of(logits, v).unwrap(),
        vocab: v as i64,
        transform: LogitTransform { temperature: 0.8, ..Default::default() },
        top_k: 40,
        top_p: 0.9,
        min_p: 0.0,
        greedy: false,
        uniform: uniform.into(),
        token: (&mut token).into(),
        logp: (&mut logp).into(),
        logp_kept: None,
        kept_mass: None,
        entropy: None,
    };
    sample(device, args).unwrap();
    (token, crate::common::bits(&logp))
}

/// The bits of `logprob` for the tokens.
fn scored<T: Float>(device: &Device, logits: &[T], v: usize, token: &[i32]) -> Vec<u32> {
    let mut logp = vec![f32::NAN; token.len()];
    let rows = View::rows_of(logits, v).unwrap();
    let transform = LogitTransform { temperature: 0.8, ..Default::default() };
    let args = LogProb { transform, ..LogProb::new(rows, token.into(), (&mut logp).into()) };
    logprob(device, args).unwrap();
    crate::common::bits(&logp)
}

/// The bits of log-probs are those of `logprob` in the same dtype: how many logits a lane reads at
/// once, and with it the order of the sum, depends on the dtype.
#[test]
fn the_sampler_reads_16_bit_logits_as_their_values() {
    fn check<T: Float>() {
        for v in [1, 67, 1021, 4099] {
            let logits: Vec<T> = normals(20, 5 * v, 2.0).into_iter().map(T::from_f64).collect();
            let widened: Vec<f32> = logits.iter().map(|x| x.to_f64() as f32).collect();
            let uniform = [0.0, 0.3, 0.5, 0.9, 0.999];
            let want = draw(&Device::Cpu, &widened, v, &uniform).0;
            for executor in shared_gpus() {
                let (token, logp) = draw(&executor.device, &logits, v, &uniform);
                assert_eq!(token, want, "{} v = {v}", executor.name);
                let bits = scored(&executor.device, &logits, v, &token);
                assert_eq!(logp, bits, "{} v = {v}", executor.name);
            }
        }
    }
    check::<bf16>();
    check::<f16>();
}

#[test]
fn nf4_dequantizes_to_f16() {
    for shape in [(1, 1), (3, 7), (5, 64), (9, 130)] {
        let w: Vec<f32> = normals(21, shape.0 * shape.1, 1.0).iter().map(|&x| x as f32).collect();
        let rows = View::rows_of(&w, shape.1).unwrap();
        let t = Nf4Tensor::quantize(&Device::Cpu, rows, &Nf4Options::default()).unwrap();
        let dequantize = |device: &Device| t.dequantize::<f16>(device).unwrap();
        on_all(dequantize, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name} {shape:?}"));
    }
}
