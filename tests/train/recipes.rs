//! Every recipe: it reads, explains, has the phases that a committed text says, and takes two steps on
//! its toy on the CPU and on the emulated GPU.

use std::collections::BTreeSet;
use std::fmt::Write;

use gradus::Device;
use gradus::device::KernelSet;
use gradus_rft::recipes::{self, RecipeFile};
use gradus_rft::toy::{ToyOptions, toys};
use gradus_rft::train::config::{KeepKey, SourceKey};
use gradus_rft::train::metrics::{Metric, Metrics};
use gradus_rft::train::phase::Phase;
use gradus_rft::train::{RunConfig, Trainer, explain};

use super::tiny;
use crate::common::devices::emulated;
use crate::common::root;

/// The recipe on the defaults of a model from disk, or on those of the demo.
fn laid(recipe: &RecipeFile, defaults: RunConfig) -> RunConfig {
    RunConfig::layered(defaults, Some(recipe.name), None)
        .unwrap_or_else(|e| panic!("{}: {e}", recipe.name))
}

fn learns_from_a_teacher(config: &RunConfig) -> bool {
    config.plan().unwrap().iter().any(|plan| plan.kind == Phase::Distill)
}

/// The folder of a teacher.
pub fn teacher(folder: &std::path::Path) -> String {
    let path = folder.join("teacher");
    if !path.exists() {
        tiny::teacher().save_fresh(&path, &[255]).unwrap();
    }
    path.display().to_string()
}

fn is_toy(name: &str) -> bool {
    name == "countdown" || toys().any(|toy| toy.name == name)
}

#[test]
fn every_file_is_a_recipe() {
    let folder = root().join("src/rft/recipes");
    let files = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path());
    let files = files.filter(|f| f.extension().is_some_and(|e| e == "toml"));
    let files: BTreeSet<String> =
        files.map(|f| f.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    assert!(recipes::ALL.iter().map(|recipe| recipe.name).eq(files), "src/rft/recipes/mod.rs");
    let said = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(said.contains(&format!("There are {}:", recipes::ALL.len())), "README.md");
    let listed = recipes::list().unwrap();
    for recipe in recipes::ALL {
        let name = recipe.name;
        let about = recipe.about().unwrap();
        for text in [&about.paper, &about.claim, &about.needs, &about.differs] {
            assert!(text.len() > 10 && listed.contains(text.as_str()), "{name}: {about:?}");
        }
        assert!(is_toy(&about.toy), "{name}: there is no toy `{}`", about.toy);
        let keys = recipe.settings().unwrap();
        assert!(keys.contains_key("phases") && !keys.contains_key("recipe"), "{name}");
        for defaults in [RunConfig::default(), RunConfig::pretrained()] {
            let mut config = laid(recipe, defaults);
            let (model, data) = (&config.model.path, &config.data.path);
            let files = [model, data, &config.distill.teacher];
            assert!(files.iter().all(|file| file.is_empty()), "{name}: files are the user's");
            if learns_from_a_teacher(&config) {
                config.distill.teacher = "teacher".into();
            }
            let checked = config.validate().and_then(|()| config.validate_phases());
            checked.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(config.recipe, name);
        }
    }
}

#[test]
fn every_key_of_a_recipe_is_explained_as_its_own() {
    fn count(table: &toml::Table) -> usize {
        table.values().map(|value| value.as_table().map_or(1, count)).sum()
    }
    for recipe in recipes::ALL {
        let config = laid(recipe, RunConfig::default());
        let all = explain::explain(&config, &BTreeSet::new()).unwrap();
        let end = format!("[recipe {}]", recipe.name);
        let own = all.lines().filter(|line| line.ends_with(&end)).count();
        assert_eq!(own, count(&recipe.settings().unwrap()), "{}: {all}", recipe.name);
    }
}

/// The phases of all recipes on a model from disk, with what is drawn before each and what it does.
fn schedule() -> String {
    let mut text = String::new();
    for recipe in recipes::ALL {
        writeln!(text, "{}", recipe.name).unwrap();
        for plan in laid(recipe, RunConfig::pretrained()).plan().unwrap() {
            let (config, rl) = (&plan.config, &plan.config.rl);
            let rollouts = |steps| format!("{steps} steps of {} x {}", rl.prompts, rl.group);
            let does = match plan.kind {
                Phase::Sft => format!("{} epochs, batch {}", config.sft.epochs, config.sft.batch),
                Phase::Quantize => config.quantize.r#type.name().to_string(),
                Phase::Collect => rollouts(config.value.collect_steps),
                Phase::ValueFit => format!("{} steps", config.value.fit_steps),
                Phase::Rl => format!("{}, {}", rollouts(rl.steps), rl.loss),
                Phase::Distill => {
                    let distill = &config.distill;
                    format!("{} on {}", distill.divergence.name(), distill.source.name())
                }
            };
            let (name, kind, before) = (&plan.name, plan.kind.name(), plan.before);
            let before = (before.steps, before.prompts, before.epochs);
            writeln!(text, "    {} {name} ({kind}): {does}; before {before:?}", plan.number)
                .unwrap();
        }
    }
    text
}

#[test]
fn the_phases_of_recipes_are_those_that_were_looked_at() {
    let path = root().join("tests/train/recipes.txt");
    let now = schedule();
    if std::env::var_os("GRADUS_WRITE").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let before = std::fs::read_to_string(&path).unwrap();
    assert!(now == before, "tests/train/recipes.txt has\n{before}now it is\n{now}");
}

/// The recipe on its toy, small enough for a test.
pub fn tried(recipe: &RecipeFile, defaults: RunConfig, folder: &std::path::Path) -> RunConfig {
    let mut config = laid(recipe, defaults);
    let mut set = |key: &str, value: &str| {
        config.apply_set(&format!("{key}={value}")).unwrap_or_else(|e| panic!("{e}"));
    };
    for (key, value) in [
        ("model.hidden", "16"),
        ("model.layers", "1"),
        ("model.heads", "2"),
        ("model.kv_heads", "1"),
        ("model.head_dim", "8"),
        ("model.ffn", "24"),
        ("lora.rank", "2"),
        ("rl.micro_batch", "4"),
        ("rl.max_new_tokens", "6"),
        ("eval.max_prompts", "2"),
        ("eval.samples", "1"),
    ] {
        set(key, value);
    }
    if learns_from_a_teacher(&laid(recipe, RunConfig::default())) {
        set("distill.teacher", &teacher(folder));
    }
    let toy = recipe.about().unwrap().toy;
    if let Some(toy) = toys().find(|known| known.name == toy) {
        let path = folder.join(format!("{}.jsonl", toy.name));
        let options = ToyOptions { rows: 60, ..ToyOptions::default() };
        let rows = toy.rows(options).unwrap();
        let mut rows: Vec<_> = rows.collect();
        // Those that take the least time.
        rows.sort_by_key(|row| row.get("prompt").map(|prompt| prompt.to_string().len()));
        let lines = rows.into_iter().take(20);
        let rows: String =
            lines.map(|row| serde_json::Value::from(row).to_string() + "\n").collect();
        std::fs::write(&path, rows).unwrap();
        set("data.path", &path.display().to_string());
        config.reward.functions = toy.rewards.iter().map(|reward| reward.to_string()).collect();
    }
    for plan in config.plan().unwrap() {
        let sizes: &[(&str, &str)] = match plan.kind {
            Phase::Sft => &[("epochs", "2"), ("demos", "4"), ("batch", "4")],
            Phase::Quantize => &[],
            Phase::Collect => &[("steps", "2"), ("prompts", "2"), ("group", "2")],
            Phase::ValueFit => &[("steps", "2")],
            Phase::Rl => &[("steps", "2"), ("prompts", "2"), ("group", "2")],
            Phase::Distill => &[("steps", "2"), ("rl.prompts", "2"), ("rl.group", "2")],
        };
        let mut set = |key: &str, value: &str| {
            config.apply_set(&format!("phase.{}.{key}={value}", plan.name)).unwrap();
        };
        sizes.iter().for_each(|(key, value)| set(key, value));
        // What a policy that knows nothing writes is kept, too.
        if plan.config.rl.keep == KeepKey::Threshold {
            set("keep_threshold", "0");
        }
    }
    config
}

/// `config` with as little to compute as there can be: few prompts, two tokens a completion, two updates a
/// batch.
fn shortened(mut config: RunConfig) -> RunConfig {
    config.apply_set("rl.max_new_tokens=2").unwrap();
    for plan in config.plan().unwrap() {
        let rl = &plan.config.rl;
        // KTO reads answers of other prompts.
        let prompts = if rl.loss == "kto" { 2 } else { 1 };
        let sizes = match plan.kind {
            Phase::Sft => vec!["batch=2".into(), "demos=2".into()],
            Phase::Quantize | Phase::ValueFit => vec![],
            Phase::Collect => vec![format!("prompts={prompts}")],
            Phase::Rl => {
                let updates = rl.updates_per_batch.min(2);
                vec![format!("prompts={prompts}"), format!("updates_per_batch={updates}")]
            }
            Phase::Distill => vec![format!("rl.prompts={prompts}")],
        };
        for size in sizes {
            config.apply_set(&format!("phase.{}.{size}", plan.name)).unwrap();
        }
    }
    config
}

/// All phases of `config` on a device, two steps each; of repetitions, the first.
fn steps(config: &RunConfig, device: Device) -> Vec<(String, Metrics)> {
    let mut trainer: Trainer = Trainer::on(config.clone(), device).unwrap();
    let mut rows = Vec::new();
    let plans = config.plan().unwrap();
    for plan in &plans {
        if plans[..plan.number].iter().filter(|earlier| earlier.name == plan.name).count() == 1 {
            continue;
        }
        trainer.enter(plan);
        if plan.kind == Phase::Quantize {
            trainer.quantize().unwrap();
            continue;
        }
        for step in 0..2 {
            let metrics = match plan.kind {
                Phase::Sft => trainer.sft_step(step),
                Phase::Quantize => unreachable!("has no steps"),
                Phase::Collect => trainer.collect_step(step, true),
                Phase::ValueFit => trainer.value_fit_step(),
                Phase::Distill => {
                    trainer.lessons(step).and_then(|records| trainer.distill_step(step, &records))
                }
                Phase::Rl => {
                    let records = match plan.config.rl.source {
                        SourceKey::Rollout => trainer.collect(step).map(|(_, records, _)| records),
                        SourceKey::Data => trainer.scored_answers(step),
                    };
                    records.and_then(|records| trainer.rl_step(step, records))
                }
            };
            let metrics = metrics.unwrap_or_else(|e| panic!("{} step {step}: {e}", plan.name));
            rows.push((plan.name.clone(), metrics));
        }
    }
    rows
}

/// The emulated GPU takes the steps of the CPU: the same metrics, and a supervised loss within the rounding
/// of the steps before it. First ratios are exactly 1 on both.
#[test]
fn every_recipe_takes_steps_on_the_cpu_and_on_the_emulated_gpu() {
    let folder = tempfile::tempdir().unwrap();
    // One device: kernels are read once.
    let device = emulated(KernelSet::Sm80, 0);
    for recipe in recipes::ALL {
        let name = recipe.name;
        let config = shortened(tried(recipe, RunConfig::default(), folder.path()));
        let cpu = steps(&config, Device::Cpu);
        let gpu = steps(&config, device.clone());
        assert!(!cpu.is_empty() && cpu.len() == gpu.len(), "{name}");
        for ((phase, cpu), (_, gpu)) in cpu.iter().zip(&gpu) {
            let of = |metrics: &Metrics| metrics.iter().map(|(m, _)| m.name()).collect::<Vec<_>>();
            assert_eq!(of(cpu), of(gpu), "{name}, {phase}");
            let both = |metric| Some((cpu.get(metric)?, gpu.get(metric)?));
            if let Some(deviation) = both(Metric::RatioMaxAbsDev) {
                assert_eq!(deviation, (0.0, 0.0), "{name}, {phase}: the first ratio is 1");
            }
            // Where rollouts are drawn, a rounding may have drawn others.
            let drawn = cpu.get(Metric::MeanLength).is_some();
            if let Some((a, b)) = both(Metric::Loss).filter(|_| !drawn) {
                assert!((a - b).abs() <= 1e-3 * a.abs().max(1.0), "{name}, {phase}: {a}, {b}");
            }
        }
    }
}
