//! Micro-batches are cut anywhere without changing the loss.

use gradus::Device;
use gradus::ops::Advantage;
use gradus::ops::presets;
use gradus::view::View;
use gradus_rft::train::Trainer;
use gradus_rft::train::record::{Record, TokenClass};
use gradus_rft::train::step::Backward;

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

/// Demonstrations that are packed by tokens: the loss is the same, and where the cuts are, the bits of
/// the gradients are.
#[test]
fn packed_demonstrations_teach_what_others_do() {
    let backward = |settings: &[&str]| -> Backward {
        let settings = [settings, &["rl.max_new_tokens=16"]].concat();
        let trainer = Trainer::<f32>::on(demo(&settings), Device::Cpu).unwrap();
        let mut records = trainer.demonstrations(0).unwrap();
        // Of 16 to 13 tokens.
        records.iter_mut().enumerate().for_each(|(i, record)| {
            record.push(&vec![1; 16 - i - record.ids.len()], TokenClass::Demo, &[]);
        });
        let (loss, ones) = (presets::sft().settings, vec![1.0; records.len()]);
        let objective = trainer.sft_objective(&loss);
        let advantage = Advantage::PerSequence(View::from(&ones));
        trainer.forward_backward(&records, advantage, &ones, objective).unwrap()
    };
    let bits = |backward: &Backward| -> Vec<u32> {
        let each = backward.gradients.iter().flat_map(|(_, g)| g.to_host().unwrap());
        each.map(f32::to_bits).collect()
    };
    let whole = backward(&["rl.micro_batch=4"]);
    // Tokens, and the sequences that fit.
    for (packing, micro_batch) in [(1 << 20, 4), (58, 4), (57, 3), (31, 2), (26, 1), (1, 1)] {
        let packed = backward(&[&format!("sft.packing={packing}"), "rl.micro_batch=1"]);
        let (a, b) = (packed.figures.loss, whole.figures.loss);
        assert!((a - b).abs() <= 1e-12 * b, "{packing}: {a} and {b}");
        let cut = backward(&[&format!("rl.micro_batch={micro_batch}")]);
        assert!(bits(&packed) == bits(&cut), "{packing}");
    }
    // Of 16, 15, 14 and 13 tokens the last two fit.
    assert!(bits(&backward(&["sft.packing=27"])) != bits(&backward(&["rl.micro_batch=1"])));
}
