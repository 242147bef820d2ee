//! Micro-batches are cut anywhere without changing the loss.

use gradus::Device;
use gradus::ops::Advantage;
use gradus::ops::presets;
use gradus::view::View;
use gradus_rft::train::Trainer;
use gradus_rft::train::record::{Record, TokenClass};

use super::demo;

/// Two tokens, none and three: the first two records have as many tokens as there are records, and
/// their advantages are still one a token, because the call says so.
#[test]
fn advantages_of_tokens_stay_with_their_tokens() {
    let records = [2, 0, 3].map(|tokens| {
        let mut record = Record::default();
        record.push(&[1, 2], TokenClass::Prompt, &[]);
        record.push(&vec![3; tokens], TokenClass::Gen, &vec![-2.0; tokens]);
        record
    });
    let advantage = [1.0, -3.0, 0.5, 2.0, -1.0];
    let settings = presets::by_name("grpo", 4.0).unwrap().settings;
    let loss = |micro_batch: usize| {
        let config = demo(&[&format!("rl.micro_batch={micro_batch}")]);
        let trainer = Trainer::<f32>::on(config, Device::Cpu).unwrap();
        let advantage = Advantage::PerToken(View::from(&advantage[..]));
        let objective = trainer.rl_objective(&settings);
        let backward = trainer.forward_backward(&records, advantage, &[1.0; 3], objective);
        backward.unwrap().figures.loss
    };
    let whole = loss(3);
    for micro_batch in [1, 2] {
        let cut = loss(micro_batch);
        assert!((cut - whole).abs() <= 1e-12 * whole.abs(), "{micro_batch}: {cut} and {whole}");
    }
}
