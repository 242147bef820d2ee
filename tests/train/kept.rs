//! What a step keeps of its records: selection, buffers, replay, and phases that learn from a buffer.

use gradus_rft::io::safetensors::Tensors;
use gradus_rft::reward::{RewardInput, RewardOutcome};
use gradus_rft::train::metrics::Metrics;
use gradus_rft::train::record::{Record, TokenClass};
use gradus_rft::train::{RunConfig, Trainer};

/// A tiny model with `settings`, which are not checked together.
pub(crate) fn try_config(settings: &[&str]) -> gradus::Result<RunConfig> {
    let mut config = RunConfig::default();
    let small = [
        "model.hidden=16",
        "model.layers=1",
        "model.heads=2",
        "model.kv_heads=2",
        "model.head_dim=8",
        "model.ffn=32",
        "phases=rl",
        "sft.batch=4",
        "sft.epochs=1",
        "sft.warmup_steps=1",
        "rl.prompts=4",
        "rl.group=3",
        "rl.micro_batch=5",
        "rl.warmup_steps=1",
        "rl.steps=8",
        "eval.max_prompts=2",
        "eval.samples=1",
    ];
    small.iter().chain(settings).try_for_each(|s| config.apply_set(s))?;
    Ok(config)
}

/// A reward that differs within most groups: the share of `1` to `4` among the characters.
fn trainer(settings: &[&str]) -> Trainer {
    let trainer = Trainer::on(try_config(settings).unwrap(), gradus::Device::Cpu).unwrap();
    trainer.with_reward(|input: &RewardInput<'_>| {
        let low = input.completion.chars().filter(|c| "1234".contains(*c)).count();
        Ok(RewardOutcome::Score(low as f32 / input.completion.len().max(1) as f32))
    })
}

fn step(trainer: &mut Trainer, step: u64) -> Metrics {
    let (_, records, _) = trainer.collect(step).unwrap();
    trainer.rl_step(step, records).unwrap()
}

fn value(metrics: &Metrics, key: &str) -> f64 {
    metrics.get(key.parse().unwrap()).unwrap_or_else(|| panic!("no {key} in {metrics:?}"))
}

fn newest(trainer: &Trainer, name: &str) -> Vec<Record> {
    trainer
        .buffers
        .get(name)
        .map_or(Vec::new(), |buffer| buffer.newest(usize::MAX).cloned().collect())
}

#[test]
fn keys_that_mean_nothing_are_refused() {
    for (settings, key) in [
        (vec!["rl.keep_share=0.3"], "rl.keep_share"),
        (vec!["rl.keep_threshold=0.3", "rl.keep=best"], "rl.keep_threshold"),
        (vec!["rl.keep=positive", "rl.advantage=gae"], "rl.keep"),
        (vec!["rl.keep=positive", "rl.loss=reft"], "rl.keep"),
        (vec!["rl.divert_below=0.3"], "rl.divert_below"),
        (vec!["rl.overlong_penalty=0.3"], "rl.overlong_penalty"),
        (vec!["rl.replay_share=0.3"], "rl.replay_share"),
        (vec!["rl.replay_window=3"], "rl.replay_window"),
        (vec!["rl.store=a b"], "rl.store"),
        (vec!["rl.prompts_of=a b"], "rl.prompts_of"),
        (vec!["rl.prompts_of=own", "rl.source=data"], "rl.prompts_of"),
        (vec!["rl.prompts_tau=0.5"], "rl.prompts_tau"),
        (vec!["rl.kl_share=0.5"], "rl.kl_share"),
        (vec!["rl.kl_share=0.5", "rl.beta=0.1", "rl.kl=reward"], "rl.kl_share"),
        (vec!["rl.kl_share=0.5", "rl.loss=prdp"], "rl.kl_share"),
        (vec!["rl.fresh_reference=true"], "rl.fresh_reference"),
        (vec!["data.mix=kind"], "data.mix"),
        (vec!["sft.layer_decay=0.5", "rl.optim=paged_adamw"], "sft.layer_decay"),
        (vec!["sft.freeze_share=0.5", "rl.optim=paged_adamw"], "sft.freeze_share"),
        (vec!["data.mix_power=0.5"], "data.mix_power"),
        (vec!["rl.divert=../a"], "rl.divert"),
        (vec!["sft.source=file"], "sft.source"),
        (vec!["sft.source=buffer:"], "sft.source"),
        (vec!["sft.drain=false"], "sft.drain"),
        (vec!["rl.then=hard"], "rl.then"),
        (vec!["rl.then=hard >= 0: sft"], "rl.then"),
        (vec!["rl.then=hard >= x: sft"], "rl.then"),
        (vec!["rl.dynamic_sampling=64"], "rl.dynamic_sampling"),
        (vec!["rl.loss=info_nce", "rl.dedupe=true"], "rl.dedupe"),
    ] {
        let error = try_config(&settings).unwrap().validate().unwrap_err().to_string();
        assert!(error.contains(key), "{settings:?}: {error}");
    }
    let error = try_config(&["rl.keep=most"]).unwrap_err().to_string();
    assert!(error.contains("rl.keep") && error.contains("best"), "{error}");
}

/// A buffer that is read is filled before, and one that is filled is read.
#[test]
fn lists_with_a_loose_end_are_refused() {
    let checked = |settings: &[&str]| {
        let config = try_config(settings).and_then(|config| config.validate_phases());
        config.map_err(|e| e.to_string())
    };
    let learns = ["rl.store=own", "sft.source=buffer:own"];
    for (phases, other, key) in [
        ("collect,sft", vec!["rl.store=own"], "rl.store"),
        ("collect,sft", vec!["sft.source=buffer:own"], "collect"),
        ("sft,collect", learns.to_vec(), "sft.source"),
        ("rl", vec!["rl.store=own"], "rl.store"),
        ("rl", vec!["rl.divert=hard"], "rl.divert"),
        ("rl", vec!["rl.divert=hard", "rl.then=hart >= 3: sft"], "rl.then"),
        ("collect,sft", vec!["rl.store=own", "sft.source=buffer:other"], "sft.source"),
        ("sft,rl", vec!["rl.prompts_of=own"], "rl.prompts_of"),
        ("collect,rl", vec!["rl.store=own", "rl.prompts_of=own"], "rl.prompts_of"),
        ("collect,sft", vec!["rl.replay_window=2", "rl.replay_share=0.5"], "later `rl`"),
        (
            "probe,rl",
            vec![
                "phase.probe.kind=collect",
                "phase.probe.store=own",
                "phase.probe.data.max_prompt_tokens=9",
                "phase.rl.prompts_of=own",
            ],
            "same [data]",
        ),
    ] {
        let all: Vec<String> =
            other.iter().map(|s| s.to_string()).chain([format!("phases={phases}")]).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let error = checked(&all).unwrap_err();
        assert!(error.contains(key), "{all:?}: {error}");
    }
    for phases in ["phases=collect,sft,collect,sft", "phases=rl,sft"] {
        checked(&[&learns[..], &[phases]].concat()).unwrap();
    }
    let probes = ["phases=probe,rl", "phase.probe.kind=collect", "phase.probe.store=own"];
    checked(&[&probes[..], &["phase.rl.prompts_of=own"]].concat()).unwrap();
    checked(&["phases=collect,rl", "rl.replay_window=2", "rl.replay_share=0.5"]).unwrap();
    let hard = "rl.then=hard >= 3: sft";
    checked(&["rl.divert=hard", hard, "sft.source=buffer:hard"]).unwrap();
    let teach = ["rl.divert=hard", "rl.then=hard >= 3: teach", "phase.teach.kind=sft"];
    checked(&[&teach[..], &["phase.teach.source=buffer:hard"]].concat()).unwrap();
    for (own, says) in [
        (vec![], "buffer:hard"),
        (vec!["phase.teach.source=buffer:own"], "buffer:hard"),
        (vec!["phase.teach.source=buffer:hard", "phase.teach.fresh_optimizer=true"], "goes on"),
        (vec!["phase.teach.source=buffer:hard", "phase.teach.batch=0"], "phase.teach.batch"),
    ] {
        let error = checked(&[&teach[..], &own].concat()).unwrap_err();
        assert!(error.contains("teach") && error.contains(says), "{own:?}: {error}");
    }
    let error = checked(&["rl.divert=hard", "rl.then=hard >= 3: reach"]).unwrap_err();
    assert!(error.contains("rl.then") && error.contains("reach"), "{error}");
    let error = checked(&["rl.divert=hard", "rl.then=hard >= 3: quantize"]).unwrap_err();
    assert!(error.contains("rl.then") && error.contains("not sft"), "{error}");
}

/// What a rule keeps is what the update learns from and what the buffer takes in.
#[test]
fn what_is_kept_is_learned_from_and_stored() {
    let scored = |records: &[Record]| records.iter().map(|r| r.scored().count()).sum::<usize>();
    let (_, all, _) = trainer(&[]).collect(0).unwrap();
    let mean = |group: &[Record]| group.iter().map(|r| r.reward).sum::<f32>() / 3.0;
    let above = |group: &[Record]| group.iter().filter(|r| r.reward > mean(group)).count();
    let above = all.chunks(3).map(above).sum::<usize>();
    assert!(above > 4, "{above}");
    for (rule, kept) in [
        ("rl.keep=best", 4),
        ("rl.keep=top", 3),
        ("rl.keep=threshold", 0),
        ("rl.keep=positive", above),
    ] {
        let mut trainer = trainer(&[rule, "rl.store=own", "rl.loss=dr_grpo"]);
        let before = trainer.save_state().unwrap();
        let metrics = step(&mut trainer, 0);
        let own = newest(&trainer, "own");
        assert_eq!(own.len(), kept, "{rule}");
        assert_eq!(value(&metrics, "kept_share"), kept as f64 / 12.0, "{rule}");
        assert_eq!(value(&metrics, "buffer_size"), kept as f64, "{rule}");
        assert!(own.iter().all(|r| r.version == 0 && r.row < 4 && !r.reward.is_nan()), "{rule}");
        let moved = |name: &str| trainer.save_state().unwrap().get(name) != before.get(name);
        assert_eq!(moved("param/lm_head.weight"), kept > 0, "{rule}: nothing kept, nothing moves");
        if rule == "rl.keep=positive" {
            assert_eq!(value(&metrics, "update/tokens"), scored(&own) as f64, "{rule}");
        }
        // The mean reward is that of all completions.
        let mean = all.iter().map(|r| r.reward as f64).sum::<f64>() / 12.0;
        assert_eq!(value(&metrics, "reward"), mean, "{rule}");
    }
}

/// All settings at once: what is stored, diverted, replayed and learned inside is in the state, so a
/// trainer that takes it over at any step goes on to the same bits.
#[test]
fn a_trainer_goes_on_from_a_state_with_full_buffers() {
    let settings = [
        "rl.keep=top",
        "rl.keep_share=0.5",
        "rl.dedupe=true",
        "rl.store=own",
        "rl.replay_window=2",
        "rl.replay_share=0.4",
        "rl.divert=hard",
        "rl.divert_below=0.4",
        "rl.then=hard >= 3: sft",
        "sft.source=buffer:hard",
        "rl.dynamic_sampling=1",
        "rl.learning_rate=3e-2",
    ];
    let mut whole = trainer(&settings);
    let (mut ran, mut diverted) = (0, 0.0);
    for n in 0..6 {
        let state = whole.save_state().unwrap();
        let metrics = step(&mut whole, n);
        let mut other = trainer(&settings);
        other.load_state(&state).unwrap();
        // As text: what is not a number is not equal to itself.
        assert_eq!(format!("{:?}", step(&mut other, n)), format!("{metrics:?}"), "step {n}");
        let (got, want) = (other.save_state().unwrap(), whole.save_state().unwrap());
        assert!(got == want, "step {n}");
        ran += metrics.get("then/records".parse().unwrap()).is_some() as usize;
        diverted += value(&metrics, "diverted");
        assert_eq!(value(&metrics, "ratio_max_abs_dev"), 0.0, "step {n}");
    }
    assert!(ran > 0 && diverted >= 3.0, "the inner phase ran {ran} times, {diverted} diverted");
    let state = whole.save_state().unwrap();
    for part in ["buffer/own/ids", "replay/1/ids", "inner_m/lm_head.weight", "version"] {
        assert!(state.contains_key(part), "no {part} in {:?}", state.keys());
    }
    let plain = trainer(&[]).save_state().unwrap();
    let own = ["version", "buffer/", "replay/", "inner"];
    let kept = |state: &Tensors| state.keys().any(|name| own.iter().any(|o| name.starts_with(o)));
    assert!(kept(&state));
    assert!(!kept(&plain), "a run that keeps no records has none of it in its state");
}

/// The window holds what the last batches were; ages count updates.
#[test]
fn replayed_groups_are_those_of_the_window() {
    let mut trainer =
        trainer(&["rl.replay_window=2", "rl.replay_share=0.5", "rl.updates_per_batch=3"]);
    for n in 0..5 {
        let (_, records, _) = trainer.collect(n).unwrap();
        let tokens = records.iter().map(|r| r.ids.len()).sum::<usize>();
        let metrics = trainer.rl_step(n, records).unwrap();
        let (share, age) = (value(&metrics, "replay/share"), value(&metrics, "replay/age"));
        match n {
            0 => {
                assert!(share == 0.0 && age.is_nan() && value(&metrics, "replay/logp_gap").is_nan())
            }
            1 => assert_eq!((share, age), (0.5, 3.0), "the one batch there is"),
            _ => assert!(share == 0.5 && (3.0..=6.0).contains(&age), "{share} {age}"),
        }
        assert!(n == 0 || value(&metrics, "replay/logp_gap") > 0.0);
        // Metrics of completions are those of the step's own.
        assert_eq!(value(&metrics, "num_tokens"), tokens as f64);
    }
}

/// The ratio of a replayed token is to the policy that sampled it: a step with replay has the bits of a
/// step on all these records at once, each with its sampler's log-probs.
#[test]
fn replayed_tokens_have_the_ratio_to_their_sampler() {
    let plain = ["rl.learning_rate=3e-2", "rl.updates_per_batch=2"];
    let mut one = trainer(&[&plain[..], &["rl.replay_window=1", "rl.replay_share=0.5"]].concat());
    let mut two = trainer(&plain);
    let (_, first, _) = one.collect(0).unwrap();
    one.rl_step(0, first.clone()).unwrap();
    two.rl_step(0, first.clone()).unwrap();
    let (_, fresh, _) = one.collect(1).unwrap();
    let old = first.iter().map(|r| Record { group: r.group + 4, ..r.clone() });
    let all: Vec<Record> = fresh.iter().cloned().chain(old).collect();
    let with = one.rl_step(1, fresh).unwrap();
    let without = two.rl_step(1, all).unwrap();
    assert_eq!(value(&with, "loss"), value(&without, "loss"));
    let params = |of: &Trainer| {
        let state = of.save_state().unwrap();
        state.into_iter().filter(|(name, _)| name.starts_with("param/")).collect::<Tensors>()
    };
    assert!(params(&one) == params(&two));
    assert!(value(&with, "replay/logp_gap") > 0.01);
    assert_eq!(value(&with, "ratio_max_abs_dev"), 0.0, "to the policy before the step");
    assert!(value(&without, "ratio_max_abs_dev") > 0.01, "to the sampler");
}

/// Rejection sampling is cross-entropy on what is kept: the step has the gradient of an SFT step on the
/// records that it stores, at the temperature they were sampled at.
#[test]
fn rejection_sampling_is_sft_on_the_best() {
    let settings = [
        "rl.keep=best",
        "rl.loss=ce",
        "rl.store=own",
        "rl.learning_rate=1e-2",
        "rl.lr_schedule=constant",
        "rl.beta2=0.95",
        "sft.source=buffer:own",
        "sft.learning_rate=1e-2",
        "sft.lr_schedule=constant",
    ];
    let (mut one, mut two) = (trainer(&settings), trainer(&settings));
    let metrics = step(&mut one, 0);
    assert_eq!(value(&metrics, "kept_share"), 4.0 / 12.0);
    two.buffers.named("own").extend(newest(&one, "own"), 100);
    let sft = two.sft_step(0).unwrap();
    let (loss, of_sft) = (value(&metrics, "loss"), value(&sft, "loss"));
    assert!((loss - of_sft).abs() < 1e-6, "{loss} {of_sft}");
    let (norm, of_sft) = (value(&metrics, "grad_norm"), value(&sft, "grad_norm"));
    assert!((norm - of_sft).abs() < 1e-5 * norm, "{norm} {of_sft}");
}

/// Rounds: a collect phase fills a buffer, an SFT phase learns it in one epoch and empties it.
#[test]
fn a_phase_learns_from_a_buffer() {
    let settings = [
        "phases=collect,sft",
        "rl.store=own",
        "rl.keep=best",
        "sft.source=buffer:own",
        "sft.epochs=2",
    ];
    let mut trainer = trainer(&settings);
    let error = trainer.sft_step(0).unwrap_err().to_string();
    assert!(error.contains("buffer:own") && error.contains("empty"), "{error}");
    trainer.collect_step(0, false).unwrap();
    trainer.collect_step(1, false).unwrap();
    let own = newest(&trainer, "own");
    assert_eq!((own.len(), trainer.sft_steps()), (8, 4));
    let mut seen: Vec<Vec<i32>> = Vec::new();
    for n in 0..2 {
        seen.extend(trainer.demonstrations(n).unwrap().into_iter().map(|r| r.ids));
    }
    let mut all: Vec<Vec<i32>> = own.iter().map(|r| r.ids.clone()).collect();
    assert_ne!(seen, all, "shuffled");
    seen.sort();
    all.sort();
    assert_eq!(seen, all, "an epoch has every record once");
    let before = value(&trainer.sft_step(0).unwrap(), "loss");
    (1..4).for_each(|n| drop(trainer.sft_step(n).unwrap()));
    assert!(value(&trainer.sft_step(0).unwrap(), "loss") < before);
    trainer.config.sft.demos = 3;
    assert_eq!(trainer.sft_steps(), 2, "the three newest");
    let ids = |r: &[Record]| r.iter().map(|r| r.ids.clone()).collect::<Vec<_>>();
    let drawn = ids(&trainer.demonstrations(0).unwrap());
    assert!(drawn.iter().all(|one| ids(&own[5..]).contains(one)) && drawn.len() == 3);
}

/// An optimizer that has seen nothing: the first step of the phase is that of a new trainer.
#[test]
fn a_phase_may_begin_with_a_fresh_optimizer() {
    let first = |settings: &[&str]| {
        let mut trainer =
            trainer(&[&["sft.learning_rate=1e-2", "sft.lr_schedule=constant"], settings].concat());
        step(&mut trainer, 0);
        let t = trainer.optimizer.t;
        trainer.sft_step(0).unwrap();
        (t, trainer.optimizer.t)
    };
    assert_eq!(first(&[]), (1, 2));
    assert_eq!(first(&["sft.fresh_optimizer=true"]), (1, 1));
}

/// Prompts that always fail go to the buffer with the demonstration of their own row.
#[test]
fn failed_prompts_are_diverted_with_their_demonstration() {
    let settings = ["rl.divert=hard", "rl.divert_below=0.3"];
    let mut trainer = trainer(&settings);
    let (sampled, records, _) = trainer.collect(0).unwrap();
    let failed: Vec<usize> = (0..4)
        .filter(|g| records[3 * g..3 * g + 3].iter().all(|r| r.reward as f64 <= 0.3))
        .collect();
    assert!(!failed.is_empty() && failed.len() < 4, "{failed:?}");
    let metrics = trainer.rl_step(0, records.clone()).unwrap();
    assert_eq!(value(&metrics, "diverted"), failed.len() as f64);
    let hard = newest(&trainer, "hard");
    assert_eq!(hard.len(), failed.len());
    for (record, g) in hard.iter().zip(&failed) {
        let prompt: Vec<i32> = record.ids[..sampled.prompt_ids[*g].len()].to_vec();
        assert_eq!(prompt, sampled.prompt_ids[*g]);
        let answer = &record.ids[prompt.len()..];
        let text = trainer.task.codec().decode(answer).unwrap();
        let demo = trainer.task.train_demo(*g as u64).unwrap();
        assert_eq!((text, &demo.prompt.text), (demo.answer, &sampled.prompts[*g].text));
        assert!(record.class.iter().skip(prompt.len()).all(|&c| c == TokenClass::Demo));
    }
    // The same rows fail again: they are there already.
    trainer.rl_step(1, records).unwrap();
    assert_eq!(newest(&trainer, "hard").len(), failed.len());
}

/// With dynamic sampling a step samples on until the rewards of enough prompts differ; what is kept
/// are those prompts, and no draw is repeated.
#[test]
fn dynamic_sampling_fills_the_batch() {
    let rare = |input: &RewardInput<'_>| {
        Ok(RewardOutcome::Score(input.completion.starts_with('4') as u8 as f32))
    };
    let build = |extra: &str| -> Trainer {
        let config = try_config(&[extra, "rl.loss=dr_grpo"]).unwrap();
        Trainer::on(config, gradus::Device::Cpu).unwrap().with_reward(rare)
    };
    let (_, plain, _) = build("rl.dynamic_sampling=0").collect(3).unwrap();
    let differs = |group: &[Record]| group.iter().any(|r| r.reward != group[0].reward);
    assert!(plain.chunks(3).filter(|g| differs(g)).count() < 4, "nothing to fill");
    let mut trainer = build("rl.dynamic_sampling=20");
    let (sampled, records, _) = trainer.collect(3).unwrap();
    assert_eq!(records[..12], plain[..], "the first batch is the step's own");
    let spread = records.chunks(3).filter(|g| differs(g)).count();
    assert!(spread >= 4 && records.len() < 3 * 4 * 21, "{spread} of {}", records.len());
    let texts: std::collections::HashSet<_> = sampled.prompts.iter().map(|p| &p.text).collect();
    assert!(texts.len() > 3 * sampled.prompts.len() / 4, "prompts are drawn anew");
    let metrics = trainer.rl_step(3, records.clone()).unwrap();
    assert_eq!(value(&metrics, "kept_share"), 12.0 / records.len() as f64);
    let kept: Vec<&[Record]> = records.chunks(3).filter(|g| differs(g)).take(4).collect();
    let tokens = kept.concat().iter().map(|r| r.scored().count()).sum::<usize>();
    assert_eq!(value(&metrics, "update/tokens"), tokens as f64);
}

/// The longest completions lose reward, before the rewards are dealt out.
#[test]
fn long_completions_lose_reward() {
    let rewards = |settings: &[&str]| {
        let (sampled, _, scores) = trainer(settings).collect(0).unwrap();
        let lengths: Vec<usize> =
            sampled.rollouts.iter().flatten().map(|r| r.tokens.len()).collect();
        (lengths, scores.rewards)
    };
    let (lengths, plain) = rewards(&[]);
    let (_, shaped) = rewards(&["rl.overlong_buffer=2", "rl.overlong_penalty=0.5"]);
    let longest = *lengths.iter().max().unwrap();
    assert_eq!(longest, 6, "an answer of three digits has six tokens");
    for ((n, plain), shaped) in lengths.iter().zip(plain).zip(shaped) {
        let lost = match n {
            6 => 0.5,
            5 => 0.25,
            _ => 0.0,
        };
        assert_eq!(shaped, plain - lost, "{n} tokens");
    }
}

/// Prompts of a buffer are asked alone, each once a round, in an order that changes.
#[test]
fn a_phase_may_ask_the_prompts_of_a_buffer() {
    let settings = ["rl.prompts_of=own", "rl.store=own"];
    let mut asking = trainer(&settings[..1]);
    let error = asking.collect(0).unwrap_err().to_string();
    assert!(error.contains("rl.prompts_of") && error.contains("`own`"), "{error}");
    let (_, records, _) = trainer(&[]).collect(0).unwrap();
    // Three prompts, two of them twice, under the numbers that they were drawn by.
    let of = |group: usize| records[3 * group].clone();
    asking.buffers.named("own").extend([of(2), of(0), of(2), of(3), of(0)], 99);
    let rows = |step: u64| {
        let (sampled, records, _) = asking.collect(step).unwrap();
        assert_eq!((sampled.prompts.len(), records.len()), (4, 12));
        for record in &records {
            let asked = &sampled.prompts[record.group as usize];
            assert_eq!(asked.text, asking.task.train_prompt(record.row).text);
        }
        records.chunks(3).map(|group| group[0].row).collect::<Vec<u64>>()
    };
    let all: Vec<u64> = (0..12).flat_map(rows).collect();
    assert_eq!(all.len(), 48);
    for round in all.chunks(3) {
        let mut sorted = round.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 2, 3], "{all:?}");
    }
    assert!(all.chunks(3).any(|round| round != &all[..3]), "orders change: {all:?}");
    assert_eq!(rows(5), all[20..24], "a function of the step");
}

/// Prompts that fail come more often, by e^(difference of their success / τ); success is what is in the buffer.
#[test]
fn prompts_that_fail_may_be_asked_more_often() {
    let mut asking = trainer(&["rl.prompts_of=own", "rl.store=own", "rl.prompts_tau=0.5"]);
    let (_, records, _) = trainer(&[]).collect(0).unwrap();
    let of = |group: usize, reward: f32| Record { reward, ..records[3 * group].clone() };
    // Successes 0.5, 0, 1, and 0.5 of one that nobody scored.
    let all = [of(0, 1.0), of(1, 0.0), of(0, 0.0), of(2, 1.0), of(3, f32::NAN)];
    asking.buffers.named("own").extend(all, 99);
    let rows = |step: u64| -> Vec<u64> {
        let (_, records, _) = asking.collect(step).unwrap();
        records.chunks(3).map(|group| group[0].row).collect()
    };
    let drawn: Vec<u64> = (0..100).flat_map(rows).collect();
    let weights = [1f64, 1f64.exp(), (-1f64).exp(), 1.0];
    for (row, weight) in weights.iter().enumerate() {
        let want = weight / weights.iter().sum::<f64>();
        let got = drawn.iter().filter(|&&drawn| drawn == row as u64).count() as f64 / 400.0;
        // Four standard deviations of 400 draws.
        assert!(
            (got - want).abs() < 4.0 * (want * (1.0 - want) / 400.0).sqrt(),
            "{row}: {got} {want}"
        );
    }
    assert_eq!(rows(7), drawn[28..32], "a function of the step");
}

/// The reference of a phase that takes its own is the policy as it is then, and goes into a checkpoint.
#[test]
fn a_phase_may_take_a_reference_of_its_own() {
    let learns = ["rl.beta=0.5", "rl.learning_rate=1e-2", "rl.lr_schedule=constant"];
    let kl = |settings: &[&str]| {
        let mut trainer = trainer(&learns);
        (0..2).for_each(|at| drop(step(&mut trainer, at)));
        settings.iter().for_each(|set| trainer.config.apply_set(set).unwrap());
        let first = value(&step(&mut trainer, 0), "kl");
        let saved = trainer.save_state().unwrap();
        (first, value(&step(&mut trainer, 1), "kl"), saved)
    };
    let (first, second, _) = kl(&[]);
    assert!(first > 0.0 && second > 0.0, "{first} {second}");
    let (first, second, saved) = kl(&["rl.fresh_reference=true"]);
    assert_eq!(first, 0.0);
    assert!(second > 0.0, "the reference stays behind the first step");
    assert!(saved.keys().any(|name| name.starts_with("reference/")));
}

/// The entropy at tokens of one's choice is the mean over the step's own.
#[test]
fn tokens_are_watched() {
    let mut trainer = trainer(&["rl.watch=4,7"]);
    let (_, records, _) = trainer.collect(0).unwrap();
    let codec = trainer.task.codec();
    let ids = [codec.encode("4").unwrap()[0], codec.encode("7").unwrap()[0]];
    let at = |r: &Record| -> Vec<f64> {
        let watched = r.scored().filter(|&t| ids.contains(&r.ids[t]));
        watched.map(|t| r.entropy[t] as f64).collect()
    };
    let all: Vec<f64> = records.iter().flat_map(at).collect();
    let tokens: usize = records.iter().map(|r| r.scored().count()).sum();
    assert!(!all.is_empty() && all.len() < tokens);
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let metrics = trainer.rl_step(0, records).unwrap();
    assert!((value(&metrics, "entropy/watched") - mean).abs() < 1e-12);
}

/// Rates fall from block to block, and the lowest blocks stay bit for bit. The first step of AdamW goes as far
/// as its rate.
#[test]
fn low_blocks_move_slowly_or_not_at_all() {
    let base = ["model.layers=3", "sft.learning_rate=1e-2", "sft.lr_schedule=constant"];
    let moved = |settings: &[&str]| {
        let mut trainer = trainer(&[&base[..], settings].concat());
        let values = |trainer: &Trainer| -> Vec<(String, Vec<f32>)> {
            trainer.model.params.iter().map(|p| (p.name.clone(), p.values().unwrap())).collect()
        };
        let before = values(&trainer);
        trainer.sft_step(0).unwrap();
        let mut moved = Vec::new();
        for ((_, before), (name, after)) in before.iter().zip(values(&trainer)) {
            let each = before.iter().zip(&after).map(|(a, b)| (a - b).abs());
            moved.push((name, each.fold(0f32, f32::max)));
        }
        moved
    };
    let place = |name: &str| match name.strip_prefix("model.layers.") {
        Some(rest) => rest[..1].parse::<usize>().unwrap(),
        None if name.starts_with("model.embed") => 4,
        None => 3,
    };
    for (settings, factors) in [
        (&["sft.layer_decay=1"][..], [1.0; 5]),
        (&["sft.layer_decay=0.5"], [0.125, 0.25, 0.5, 1.0, 0.0625]),
        (&["sft.freeze_share=0.34"], [0.0, 1.0, 1.0, 1.0, 0.0]),
        (&["sft.layer_decay=0.5", "sft.freeze_share=0.7"], [0.0, 0.0, 0.5, 1.0, 0.0]),
    ] {
        for (name, far) in moved(settings) {
            let want = 1e-2 * factors[place(&name)];
            let fits = (far - want).abs() <= 0.01 * want;
            assert!(fits, "{settings:?}: {name} moved by {far}, not {want}");
        }
    }
}
