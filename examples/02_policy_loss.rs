//! 02: a policy loss by hand. `cargo run --example 02_policy_loss`
//!
//! Four answers to one prompt got rewards. Rewards become advantages, advantages and log-probs become a
//! loss and its gradient. This is one GRPO-like update (DAPO's settings) without the model around it.

use gradus::ops::{
    Advantage, GroupAdvantage, GroupSettings, PolicyLoss, PolicyStats, group_advantage,
    policy_loss, presets, seq_weights,
};
use gradus::{Device, Result};

/// The advantages of four answers to one prompt: one group.
fn advantages(device: &Device, reward: &[f32; 4]) -> Result<[f32; 4]> {
    let (groups, mut advantage) = ([0i64, 4], [0f32; 4]);
    let args = GroupAdvantage {
        reward: reward[..].into(),
        offsets: groups[..].into(),
        length: None,
        settings: GroupSettings::default(),
        advantage: (&mut advantage[..]).into(),
        groups: None,
    };
    group_advantage(device, args)?;
    Ok(advantage)
}

fn main() -> Result<()> {
    let device = Device::best()?;

    // Two of four answers were right. An answer is better or worse than the mean of its group.
    let reward = [1f32, 0.0, 0.0, 1.0];
    let advantage = advantages(&device, &reward)?;
    println!("rewards {reward:?} -> advantages {advantage:.3?}");
    assert!(advantage.iter().sum::<f32>().abs() < 1e-5 && advantage[0] > 0.0);

    // Answers have different lengths and lie one after the other, without padding: answer i is
    // tokens cu_seqlens[i]..cu_seqlens[i + 1].
    let cu_seqlens = [0i64, 3, 5, 6, 8];
    let lengths = [3, 2, 1, 2];
    // log p of each token, now and when the answers were sampled. The policy has moved since.
    let logp = [-0.5f32, -1.0, -0.2, -0.7, -2.0, -1.5, -0.1, -0.9];
    let mut old_logp = logp;
    old_logp[0] -= 0.5; // 1.65 times as likely as before: beyond DAPO's upper bound of 1.28

    // A published objective is a preset: the loss, its clip bounds, and how tokens are averaged.
    let dapo = presets::by_name("dapo", 256.0)?;
    let weights = seq_weights(dapo.aggregation, &lengths)?;
    let seq_weight: Vec<f32> = weights.iter().map(|&w| w as f32).collect();

    let (mut loss, mut dlogp, mut stats) = (0.0, [0f32; 8], PolicyStats::default());
    let mut args = PolicyLoss::new(
        logp[..].into(),
        Advantage::PerSequence(advantage[..].into()),
        cu_seqlens[..].into(),
        (&seq_weight).into(),
        &dapo.settings,
        &mut loss,
        (&mut dlogp[..]).into(),
    );
    args.old_logp = Some(old_logp[..].into());
    args.stats = Some(&mut stats);
    policy_loss(&device, args)?;

    println!("loss {loss:.4}, {} of {} tokens clipped", stats.n_clip_hi, stats.n_tokens);
    for (i, span) in cu_seqlens.windows(2).enumerate() {
        let tokens = span[0] as usize..span[1] as usize;
        println!("answer {i}: reward {}, dlogp {:+.3?}", reward[i], &dlogp[tokens]);
    }
    // A clipped token has no gradient. All others of a good answer pull its log-probs up (a negative
    // gradient of a loss that is minimized), those of a bad answer push them down.
    assert_eq!((stats.n_clip_hi, dlogp[0]), (1, 0.0));
    assert!(dlogp[1] < 0.0 && dlogp[3] > 0.0 && dlogp[5] > 0.0 && dlogp[6] < 0.0);
    // DAPO averages over tokens: where the ratio is 1, each token has the weight 1/8.
    assert!((dlogp[1] + advantage[0] / 8.0).abs() < 1e-6);
    Ok(())
}
