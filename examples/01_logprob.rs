//! 01: log-probabilities of tokens, and their gradient. `cargo run --example 01_logprob`
//!
//! A language model gives one row of logits per position. Training needs log p(token) of each position,
//! and later the gradient with respect to every logit. Neither op writes a row of probabilities.

use gradus::ops::{IGNORE, LogProb, LogProbBwd, logprob, logprob_bwd};
use gradus::{Device, Result, View, ViewMut};

const TOKENS: i64 = 3;
const VOCAB: i64 = 5;

fn main() -> Result<()> {
    let device = Device::best()?;

    // [T, V]: three positions, five tokens of vocabulary.
    #[rustfmt::skip]
    let logits: [f32; 15] = [
        2.0, 1.0, 0.0, 0.0, -1.0,
        0.0, 0.0, 0.0, 0.0, 0.0,
        9.0, 9.0, 9.0, 9.0, 9.0,
    ];
    // The last position is part of the prompt: it is not scored.
    let targets = [0, 3, IGNORE];

    // A view is a borrowed pointer with a shape. Ops read and write through views and copy nothing.
    let (mut logp, mut entropy) = ([0f32; 3], [0f32; 3]);
    let mut args = LogProb::new(
        View::new(&logits, &[TOKENS, VOCAB])?,
        View::from(&targets[..]),
        ViewMut::from(&mut logp[..]),
    );
    // What is optional has to be asked for.
    args.entropy = Some(ViewMut::from(&mut entropy[..]));
    logprob(&device, args)?;

    for t in 0..2 {
        let p = logp[t].exp();
        println!(
            "token {}: log p = {:.4}, p = {p:.3}, entropy {:.3}",
            targets[t], logp[t], entropy[t]
        );
    }
    // Five equal logits are a fifth each, and their entropy is ln 5. An ignored row is 0.
    assert!((logp[1].exp() - 0.2).abs() < 1e-6 && (entropy[1] - 5f32.ln()).abs() < 1e-6);
    assert_eq!(logp[2], 0.0);

    // Say a loss wants the first token to be more likely and the second to be less likely.
    let dlogp = [-1.0f32, 0.5, 0.0];
    let mut dlogits = [0f32; 15];
    logprob_bwd(
        &device,
        LogProbBwd::new(
            View::new(&logits, &[TOKENS, VOCAB])?,
            View::from(&targets[..]),
            View::from(&dlogp[..]),
            ViewMut::new(&mut dlogits, &[TOKENS, VOCAB])?,
        ),
    )?;

    // d log p(y) / d z_v = [v = y] - p(v): each row sums to 0, and an ignored row is 0 throughout.
    for (t, row) in dlogits.chunks(VOCAB as usize).enumerate() {
        println!("dlogits of position {t}: {row:+.3?}");
        assert!(row.iter().sum::<f32>().abs() < 1e-6);
    }
    assert!((dlogits[0] + (1.0 - logp[0].exp())).abs() < 1e-6, "the target: -(1 - p)");
    assert_eq!(dlogits[10..], [0.0; 5]);
    Ok(())
}
