//! The sampler on logits of 16 bits.

use crate::common::devices::shared_gpus;
use crate::common::normals;
use gradus::dtype::Float;
use gradus::ops::{LogProb, LogitTransform, Sample, logprob, sample};
use gradus::{Device, View, bf16, f16};

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
