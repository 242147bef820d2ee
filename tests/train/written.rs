//! What `sft.template` makes of a buffer's records, and buffers that grow from round to round.

use gradus_rft::reward::{RewardInput, RewardOutcome};
use gradus_rft::train::record::TokenClass;
use gradus_rft::train::{RunConfig, Trainer};

use crate::kept::try_config;

fn config(settings: &[&str]) -> gradus::Result<RunConfig> {
    let rounds = [
        "phases=collect,sft",
        "sft.demos=0",
        "sft.source=buffer:own",
        "rl.store=own",
        "rl.max_new_tokens=6",
        "value.collect_steps=2",
    ];
    let config = try_config(&[&rounds, settings].concat())?;
    config.validate()?;
    Ok(config)
}

/// A reward of 1 for completions that begin with an odd byte.
fn trainer(settings: &[&str]) -> Trainer {
    let trainer = Trainer::on(config(settings).unwrap(), gradus::Device::Cpu).unwrap();
    trainer.with_reward(|input: &RewardInput<'_>| {
        let right = input.completion.bytes().next().is_some_and(|byte| byte % 2 == 1);
        Ok(RewardOutcome::Score(right as u8 as f32))
    })
}

#[test]
fn a_template_writes_what_is_learned_of_a_record() {
    let template = "sft.template={% if score >= 1 %}+{% else %}-{{ feedback }}{% endif %}{{ prompt }}{{ completion }}";
    let mut plain = trainer(&[]);
    let mut written = trainer(&[template]);
    for trainer in [&mut plain, &mut written] {
        trainer.enter(&trainer.config.plan().unwrap()[0]);
        trainer.collect_step(0, false).unwrap();
        trainer.enter(&trainer.config.plan().unwrap()[1]);
    }
    let codec = plain.task.codec();
    let (stop, mut marks) = (codec.stops()[0], [0, 0]);
    for step in 0..plain.sft_steps() {
        let before = plain.demonstrations(step).unwrap();
        let after = written.demonstrations(step).unwrap();
        assert!(before.len() == after.len() && !after.is_empty());
        for (before, after) in before.iter().zip(&after) {
            assert!(after.class.iter().all(|&class| class == TokenClass::Demo), "all is learned");
            let right = before.reward == 1.0;
            marks[right as usize] += 1;
            let said = codec.decode(&before.ids).unwrap();
            let text = format!("{}{said}", if right { '+' } else { '-' });
            let mut ids = codec.encode_rendered(&text).unwrap();
            ids.extend(before.finished.then_some(stop));
            ids.truncate(plain.task.lengths().0 + 6);
            assert_eq!(after.ids, ids, "{text}");
        }
        assert!(written.sft_step(step).unwrap().get("loss".parse().unwrap()).unwrap() > 0.0);
    }
    assert!(marks.iter().all(|&count| count > 0), "both marks: {marks:?}");
}

#[test]
fn a_template_that_means_nothing_is_refused() {
    for (settings, named) in [
        (vec!["sft.source=demos", "rl.store=", "sft.template={{ prompt }}"], "sft.template"),
        (vec!["sft.template={{ prompt"], "sft.template"),
    ] {
        let error = config(&settings).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    let mut trainer = trainer(&["sft.template={{ nothing_of_this_name }}"]);
    trainer.enter(&trainer.config.plan().unwrap()[0]);
    trainer.collect_step(0, false).unwrap();
    let error = trainer.demonstrations(0).unwrap_err().to_string();
    assert!(error.contains("sft.template"), "{error}");
}

/// The same step drawn twice brings the same completions: a book takes them in once.
#[test]
fn a_buffer_of_distinct_records_does_not_grow_by_repetition() {
    for (dedupe, factor) in [("rl.dedupe=true", 1), ("rl.dedupe=false", 2)] {
        let mut trainer = trainer(&[dedupe]);
        trainer.enter(&trainer.config.plan().unwrap()[0]);
        let mut sizes = Vec::new();
        for _ in 0..2 {
            trainer.collect_step(0, false).unwrap();
            let all = trainer.buffers.get("own").map_or(0, |b| b.newest(usize::MAX).count());
            sizes.push(all);
        }
        assert!(sizes[0] > 0 && sizes[1] == factor * sizes[0], "{dedupe}: {sizes:?}");
    }
}
