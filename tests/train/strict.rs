//! Keys that somebody sets have an effect, or are refused: the table of readers is true, and what is refused
//! says where the key would be read.

use std::collections::BTreeSet;
use std::path::Path;

use gradus::Device;
use gradus_rft::recipes;
use gradus_rft::toy::{ToyOptions, toy};
use gradus_rft::train::config::{DistillSource, PhasePlan, SourceKey};
use gradus_rft::train::metrics::Metrics;
use gradus_rft::train::phase::Phase;
use gradus_rft::train::{RunConfig, Trainer, explain};

fn keys(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// The recipe, or the defaults where it is empty, with settings, all of which somebody has set.
fn checked(recipe: &str, sets: &[&str]) -> Result<(), String> {
    let mut config = RunConfig::layered(RunConfig::default(), Some(recipe), None).unwrap();
    for set in sets {
        config.apply_set(set).map_err(|e| e.to_string())?;
    }
    let names: Vec<&str> = sets.iter().map(|set| set.split('=').next().unwrap()).collect();
    config.check_plan(&keys(&names)).map_err(|e| e.to_string())
}

const WARM: &str = "phases=sft,quantize,rl";

#[test]
fn a_key_that_nobody_reads_is_refused_and_says_where_it_would_be_read() {
    for (recipe, sets, says) in [
        (
            "dpo",
            &[WARM, "rl.group=4"][..],
            "sft, quantize, rl, and it is read by phases that sample",
        ),
        ("dpo", &[WARM, "rl.top_p=0.9"], "rl with rl.source = rollout"),
        ("raft", &["phases=sft,quantize,2*(draw,tune)", "rl.steps=4"], "read by phases of kind rl"),
        ("raft", &["phases=sft,quantize,2*(draw,tune)", "rl.learning_rate=1e-3"], "kind rl"),
        ("raft", &["phases=sft,quantize,2*(draw,tune)", "rl.keep=top"], "set phase.draw.keep"),
        ("raft", &["phases=sft,quantize,2*(draw,tune)", "rl.prompts=8"], "set phase.draw.prompts"),
        ("raft", &["phases=sft,quantize,rl", "phase.draw.group=4"], "`draw` is not among them"),
        ("", &["phases=sft", "lora.rank=4"], "the phase quantize, where model.adapter is empty"),
        ("", &["phases=sft", "quantize.blocksize=32"], "the phase quantize"),
        ("", &["phases=sft,rl", "value.gamma=0.9"], "rl.advantage = gae"),
        ("", &["phases=sft,rl", "distill.divergence=jsd"], "phases of kind distill"),
        ("", &["phases=sft,rl", "buffer.capacity=9"], "rl.store or rl.divert"),
        ("", &["phases=sft", "eval.every=9"], "phases of kind rl"),
        ("", &["data.heldout_share=0.5"], "prompts of data.path, which is empty"),
        ("", &["data.path=rows.jsonl", "task.digits=4"], "where data.path is empty"),
        ("", &["model.path=somewhere", "model.hidden=64"], "fresh models"),
        ("", &["reward.timeout=3"], "rewards that run a program"),
        (
            "",
            &[
                "phases=sft,mine",
                "phase.mine.kind=rl",
                "phase.mine.source=data",
                "phase.mine.group=2",
            ],
            "`mine` does not read rl.group",
        ),
        (
            "",
            &["phases=sft,mine", "phase.mine.kind=rl", "phase.mine.prompts=3", "rl.prompts=5"],
            "set phase.mine.prompts",
        ),
    ] {
        let key = sets.last().unwrap().split('=').next().unwrap();
        let error = checked(recipe, sets).unwrap_err();
        assert!(error.contains(&format!("`{key}`")) && error.contains("has no effect"), "{error}");
        assert!(error.contains(says), "{sets:?}: {error}");
    }
}

/// What a phase, the end of a run or its evaluations read may be set, also to the value that it has.
#[test]
fn a_key_that_somebody_reads_is_taken() {
    for (recipe, sets) in [
        ("", &["rl.steps=600", "rl.group=8", "sft.epochs=2", "lora.rank=4", "rl.optim=adamw"][..]),
        ("", &["phases=sft", "rl.max_new_tokens=4", "rl.stop=a", "eval.samples=3", "rl.slots=4"]),
        ("", &["phases=sft", "rl.micro_batch=4", "seed=3", "threads=2", "checkpoint.every=5"]),
        ("dpo", &[WARM, "rl.prompts=4", "rl.temperature=0.5", "rl.learning_rate=1e-3"]),
        (
            "raft",
            &["phases=sft,quantize,2*(draw,tune)", "phase.draw.group=4", "rl.temperature=0.7"],
        ),
        (
            "relift",
            &[WARM, "phase.teach.epochs=2", "rl.divert_below=0.5", "sft.reasoning_weight=0.5"],
        ),
        ("gkd", &["phases=sft,distill", "distill.teacher=x", "rl.group=4", "rl.control=zero_lr"]),
        ("wsrl", &["phases=sft,collect,value_fit,rl", "value.gamma=0.9", "value.fit_steps=3"]),
        ("", &["model.path=somewhere", "phases=quantize,rl", "lora.rank=2"]),
        ("", &["reward.functions=cmd:true", "reward.timeout=3", "reward.combine=sum"]),
    ] {
        checked(recipe, sets).unwrap_or_else(|error| panic!("{recipe} {sets:?}: {error}"));
    }
}

/// Every recipe on a model from disk can be run as it is: its own keys are read, or nobody minds.
#[test]
fn a_printed_configuration_is_taken_and_its_changes_are_looked_at() {
    for recipe in recipes::ALL {
        let defaults = RunConfig::pretrained();
        let config = RunConfig::layered(defaults.clone(), Some(recipe.name), None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("printed.toml");
        std::fs::write(&path, config.to_toml()).unwrap();
        let read = RunConfig::layered(defaults.clone(), None, Some(&path)).unwrap();
        let given = RunConfig::keys_of(&path).unwrap();
        assert!(given.len() > 130);
        let changed = read.changed_by(&given, defaults.clone()).unwrap();
        assert!(changed.is_empty(), "{}: {changed:?}", recipe.name);
        let mut other = read.clone();
        other.apply_set("rl.group=3").unwrap();
        assert_eq!(other.changed_by(&given, defaults).unwrap(), keys(&["rl.group"]));
    }
}

#[test]
fn a_fresh_model_is_not_frozen_before_it_has_learned() {
    for (recipe, sets) in [
        ("grpo", &["seed=1"][..]),
        ("", &["phases=quantize,rl"]),
        ("", &["phases=collect,quantize,rl", "rl.store=own"]),
        ("qlora", &["lora.rank=4"]),
    ] {
        let error = checked(recipe, sets).unwrap_err();
        for part in [
            "`phases`",
            "random weights of a fresh model",
            "--model",
            "phases=sft,",
            "model.layers",
        ] {
            assert!(error.contains(part) || sets[0].contains("collect"), "{part}: {error}");
        }
    }
    for (recipe, sets) in [
        ("grpo", &["phases=sft,quantize,rl"][..]),
        ("grpo", &["model.path=somewhere"]),
        ("grpo", &["model.layers=2"]),
        ("", &["phases=rl,quantize,rl"]),
        ("", &["phases=rl"]),
    ] {
        checked(recipe, sets).unwrap_or_else(|error| panic!("{recipe} {sets:?}: {error}"));
    }
}

#[test]
fn a_warm_up_fits_into_its_phase() {
    for (recipe, sets, says) in [
        ("", &["rl.steps=100", "rl.warmup_steps=150"][..], "150 steps, but the phase has 100"),
        ("", &["rl.warmup_steps=1.5"], "1.5 is not a whole number of steps"),
        ("", &["rl.warmup_steps=-1"], "-1 is not a whole number of steps"),
        (
            "raft",
            &["phases=sft,quantize,draw,tune", "phase.tune.warmup_steps=5"],
            "take a share of them",
        ),
    ] {
        let error = checked(recipe, sets).unwrap_err();
        assert!(error.contains("warmup_steps") && error.contains(says), "{error}");
    }
    for sets in
        [&["rl.steps=100", "rl.warmup_steps=100"][..], &["rl.warmup_steps=0.3"], &["rl.steps=2"]]
    {
        checked("", sets).unwrap();
    }
    checked("dpo", &[WARM, "rl.steps=3"]).unwrap();
    let rates = |sets: &[&str]| {
        let mut config = tiny(&["rl.lr_schedule=constant", "rl.learning_rate=1", "phases=sft,rl"]);
        sets.iter().for_each(|set| config.apply_set(set).unwrap());
        let mut trainer: Trainer = Trainer::on(config, Device::Cpu).unwrap();
        let steps = trainer.config.rl.steps as u64;
        let rate = |step| {
            let (_, records, _) = trainer.collect(step).unwrap();
            trainer.rl_step(step, records).unwrap().get("learning_rate".parse().unwrap())
        };
        (0..steps).map(rate).collect::<Vec<_>>()
    };
    let all = |rates: &[f64]| rates.iter().map(|&rate| Some(rate)).collect::<Vec<_>>();
    let learns = "reward.functions=diversity:1";
    let of = |warmup: &str, steps: &str| rates(&[learns, warmup, steps]);
    assert_eq!(of("rl.warmup_steps=2", "rl.steps=4"), all(&[0.5, 1.0, 1.0, 1.0]));
    assert_eq!(of("rl.warmup_steps=0.3", "rl.steps=5"), all(&[0.5, 1.0, 1.0, 1.0, 1.0]));
    assert_eq!(of("rl.warmup_steps=auto", "rl.steps=3"), all(&[1.0; 3]), "a tenth of 3 is none");
    assert_eq!(of("rl.warmup_steps=auto", "rl.steps=10")[0], Some(0.1));
}

fn tiny(sets: &[&str]) -> RunConfig {
    let mut config = RunConfig::default();
    for set in [
        "model.hidden=16",
        "model.layers=1",
        "model.heads=2",
        "model.kv_heads=2",
        "model.head_dim=8",
        "model.ffn=16",
        "sft.demos=8",
        "sft.batch=4",
        "sft.epochs=1",
        "lora.rank=2",
        "rl.steps=2",
        "rl.prompts=2",
        "rl.group=3",
        "rl.max_new_tokens=5",
        "value.collect_steps=2",
        "value.fit_steps=2",
        "eval.max_prompts=2",
        "eval.samples=1",
        "device=cpu",
    ]
    .iter()
    .chain(sets)
    {
        config.apply_set(set).unwrap_or_else(|e| panic!("{set}: {e}"));
    }
    config
}

/// Step `step` of a phase that `next` follows.
fn step_of(
    trainer: &mut Trainer,
    plan: &PhasePlan,
    next: Option<Phase>,
    step: u64,
) -> gradus::Result<Metrics> {
    match plan.kind {
        Phase::Sft => trainer.sft_step(step),
        Phase::Quantize => unreachable!("has no steps"),
        Phase::Collect => trainer.collect_step(step, next == Some(Phase::ValueFit)),
        Phase::ValueFit => trainer.value_fit_step(),
        Phase::Distill => {
            let records = trainer.lessons(step)?;
            trainer.distill_step(step, &records)
        }
        Phase::Rl => {
            let records = match plan.config.rl.source {
                SourceKey::Rollout => trainer.collect(step)?.1,
                SourceKey::Data => trainer.scored_answers(step)?,
            };
            trainer.rl_step(step, records)
        }
    }
}

/// All that the phases of `config` come to, bit by bit: metrics, an evaluation, weights.
fn outcome(config: &RunConfig) -> Result<String, String> {
    let run = || -> gradus::Result<String> {
        config.validate()?;
        config.validate_phases()?;
        let mut trainer: Trainer = Trainer::on(config.clone(), Device::Cpu)?;
        let mut text = String::new();
        let plans = config.plan()?;
        for (i, plan) in plans.iter().enumerate() {
            trainer.enter(plan);
            let next = plans.get(i + 1).map(|plan| plan.kind);
            if plan.kind == Phase::Quantize {
                trainer.quantize()?;
            }
            let steps = match plan.kind {
                Phase::Sft => trainer.sft_steps(),
                Phase::Quantize => 0,
                Phase::Collect => plan.config.value.collect_steps as u64,
                Phase::ValueFit => plan.config.value.fit_steps as u64,
                Phase::Distill if plan.config.distill.source == DistillSource::Demos => {
                    trainer.sft_steps()
                }
                Phase::Rl | Phase::Distill => plan.config.rl.steps as u64,
            };
            for step in 0..steps.min(12) {
                let metrics = step_of(&mut trainer, plan, next, step)?;
                text += &format!("{} {step} {metrics:?}\n", plan.name);
            }
        }
        trainer.enter(&PhasePlan {
            config: config.clone(),
            number: usize::MAX,
            ..plans[0].clone()
        });
        text += &format!("{:?}\n", trainer.evaluate()?);
        for param in trainer.model.params.iter() {
            let mix = |hash: u64, x: &f32| {
                hash.wrapping_mul(0x0100_0000_01b3).wrapping_add(x.to_bits() as u64)
            };
            let bits = param.values().map(|values| values.iter().fold(0, mix));
            text += &format!("{} {:?} {bits:?}\n", param.name, param.shape);
        }
        Ok(text)
    };
    run().map_err(|e| e.to_string())
}

/// Other values that a key may have; in its explanation, choices stand before what they mean.
fn others(config: &RunConfig, key: &str, about: &str) -> Vec<String> {
    let value = |text: &str| format!("{key}={text}");
    let words = about.match_indices(" (").filter_map(|(at, _)| about[..at].split(' ').next_back());
    let named: Vec<String> = words.map(value).collect();
    let numbers =
        ["true", "false", "0", "1", "2", "4", "0.5", "0.25", "7", "64", "1000", "-1", "a", "[0,1]"];
    let all = named.into_iter().chain(numbers.map(value));
    all.filter(|set| {
        let mut other = config.clone();
        other.apply_set(set).is_ok() && other != *config
    })
    .collect()
}

/// The plans that keys are tried on; each with what it reads from the folder.
fn plans(folder: &Path) -> Vec<(&'static str, RunConfig)> {
    let file = |name: &str| {
        let path = folder.join(format!("{name}.jsonl"));
        let options = ToyOptions { rows: 40, ..ToyOptions::default() };
        let rows = toy(name).unwrap().rows(options).unwrap();
        let rows: String = rows.map(|r| serde_json::Value::from(r).to_string() + "\n").collect();
        std::fs::write(&path, rows).unwrap();
        format!("data.path={}", path.display())
    };
    let (pairs, sorted, reasons) = (file("pairs"), file("sort3"), file("reasons"));
    let mut walks = tiny(&["phases=rl", "env.kind=grid", "env.max_turns=3", &file("grid")]);
    // Answers of a policy that knows nothing end in a turn.
    walks.rl.stop = (' '..='~').map(String::from).collect();
    let teacher = format!("distill.teacher={}", super::recipes::teacher(folder));
    let graded = "reward.functions=diversity:1";
    vec![
        ("sft", tiny(&["phases=2*sft", "reward.functions=exact", &reasons])),
        ("demo", tiny(&["phases=sft"])),
        (
            "rl",
            tiny(&[
                "phases=quantize,rl",
                "rl.updates_per_batch=2",
                "rl.beta=0.1",
                "rl.replay_window=1",
                "rl.replay_share=0.5",
                "rl.warmup_steps=0",
                "rl.learning_rate=0.1",
                graded,
            ]),
        ),
        (
            "critic",
            tiny(&[
                "phases=collect,value_fit,rl",
                "rl.loss=reft",
                "rl.updates_per_batch=2",
                "rl.warmup_steps=0",
                "rl.learning_rate=0.1",
                graded,
            ]),
        ),
        ("file", tiny(&["phases=rl", "rl.source=data", "rl.loss=dpo", &pairs])),
        (
            "buffer",
            tiny(&[
                "phases=collect,sft",
                "rl.store=own",
                "rl.keep=best",
                "sft.source=buffer:own",
                "sft.epochs=2",
                &sorted,
                graded,
            ]),
        ),
        ("rollouts", tiny(&["phases=distill", &teacher, &sorted, graded])),
        ("demos", tiny(&["phases=distill", "distill.source=demos", &teacher, &sorted, graded])),
        ("episodes", walks),
    ]
}

/// Keys that are read and leave no trace in a plan above, or in any: why.
const WITHOUT_A_TRACE: &[(&str, &str, &str)] = &[
    ("", "out", "where a run is stored"),
    ("", "name", "where a run is stored"),
    ("", "recipe", "laid under a configuration before there is one"),
    ("", "device", "other devices have tests of their own"),
    ("", "threads", "results do not depend on it"),
    ("", "checkpoint.", "results do not depend on it"),
    ("", "rl.slots", "results do not depend on it"),
    ("", "rl.gradient_checkpointing", "results do not depend on it"),
    ("", "rl.optim", "results do not depend on it"),
    ("", "reward.", "of programs, services and files"),
    ("", "data.", "of folders, templates and chats"),
    ("", "task.name", "has one value"),
    ("", "model.path", "needs a folder"),
    ("", "model.adapter", "needs a folder"),
    ("", "model.dtype", "the trainer here is an f32 one"),
    ("", "eval.every", "asked by a run, not by a trainer"),
    ("", "sft.drain", "asked by a run, not by a trainer"),
    ("", "rl.dedupe", "needs a completion twice: tests/train/kept.rs"),
    ("", "rl.dynamic_sampling", "needs prompts with equal rewards: tests/train/kept.rs"),
    ("", "rl.stop", "needs a text that a tiny model writes: tests/train/completions.rs"),
    ("", "rl.fresh_reference", "needs a reference of an earlier phase: tests/train/kept.rs"),
    ("", "env.history", "needs a chat template: src/rft/train/env/frame.rs"),
    ("critic", "rl.importance_sampling", "weighs 1 what the policy samples itself"),
    ("demo", "sft.fresh_optimizer", "needs an optimizer that has seen something: sft"),
    ("demo", "sft.reasoning_weight", "needs demonstrations with reasoning: sft"),
    ("buffer", "sft.fresh_optimizer", "needs an optimizer that has seen something: sft"),
    ("buffer", "sft.reasoning_weight", "needs demonstrations with reasoning: sft"),
];

/// A key that is said to be read by nobody changes no bit, whatever its value. One that is said to be read
/// changes some, or is refused by name.
#[test]
fn the_table_of_readers_is_true() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (name, config) in plans(folder.path()) {
        let want = outcome(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(outcome(&config).as_ref(), Ok(&want), "{name}");
        let all = explain::explain(&config, &BTreeSet::new()).unwrap();
        for line in all.lines() {
            let (key, rest) = line.split_once(" = ").unwrap();
            // The others are as those of `rl`.
            if name == "episodes" && !key.starts_with("env.") {
                continue;
            }
            let about = rest.split_once("# ").unwrap().1;
            let unread = config.refuse_unread(&keys(&[key])).is_err();
            let here = |(plan, begin, _): &&(&str, &str, &str)| {
                (plan.is_empty() || *plan == name) && key.starts_with(begin)
            };
            let excused = WITHOUT_A_TRACE.iter().any(|excuse| here(&excuse));
            if excused && !unread {
                continue;
            }
            let (mut tried, mut moved) = (0, false);
            for set in others(&config, key, about) {
                let mut other = config.clone();
                other.apply_set(&set).unwrap();
                let Ok(got) = outcome(&other) else {
                    // Refused: nobody is left in the dark.
                    moved |= !unread;
                    continue;
                };
                tried += 1;
                if unread && got != want {
                    wrong.push(format!("{name}: {set} is said to have no effect, and has one"));
                }
                moved |= got != want;
                if moved || tried == 3 {
                    break;
                }
            }
            if !unread && !moved {
                wrong.push(format!("{name}: {key} is said to be read, and changes nothing"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
