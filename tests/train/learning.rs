//! The trainer learns, and only from rewards: a shortened demo run beside its negative controls. The
//! controls share the warm-up with the run, so every difference comes from the RL phase. Seeds are
//! fixed and runs are bitwise reproducible on a machine, so these are not coin flips.

use gradus_rft::train::{Resume, RunConfig, Summary, train};

fn run(out: &std::path::Path, settings: &[&str]) -> Summary {
    let mut config = RunConfig { out: out.to_string_lossy().into_owned(), ..RunConfig::default() };
    let short = [
        "model.hidden=64",
        "model.head_dim=16",
        "model.ffn=192",
        "sft.demos=2000",
        "sft.epochs=8",
        "rl.steps=80",
        "rl.prompts=32",
        "eval.max_prompts=128",
        "eval.samples=4",
        "eval.every=1000",
    ];
    for setting in short.iter().chain(settings) {
        config.apply_set(setting).unwrap();
    }
    train(config, &Resume::No).unwrap()
}

/// Points gained over the model that RL began with.
fn gain(run: &Summary) -> f64 {
    run.final_accuracy.unwrap() - run.quantized_accuracy.unwrap()
}

#[test]
fn rewards_teach_and_nothing_else_does() {
    let folder = tempfile::tempdir().unwrap();
    let learned = run(folder.path(), &[]);
    assert!(gain(&learned) >= 0.06, "{learned:?}");
    assert_eq!(learned.first_ratio_max_abs_dev, 0.0);
    let still = run(folder.path(), &["rl.control=zero_lr"]);
    assert_eq!(still.final_accuracy, learned.quantized_accuracy, "nothing moves at rate 0");
    let noise = run(folder.path(), &["rl.control=shuffled_rewards"]);
    assert!(gain(&noise) < 0.02, "{} from shuffled rewards", gain(&noise));
    // A KL to the base holds the policy back.
    let held = run(folder.path(), &["rl.beta=10"]);
    assert!(gain(&held).abs() < 0.04, "{} under a KL weight of 10", gain(&held));
}
