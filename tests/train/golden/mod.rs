//! The first step of every phase of every recipe: the settings are the paper's, and loss, gradient of the
//! adapters and moved weights are those of an f64 oracle that knows the formulas and nothing of the crate.

mod decoder;
mod objectives;
mod papers;

use std::collections::BTreeMap;
use std::path::Path;

use gradus::Device;
use gradus_rft::reward::{RewardInput, RewardOutcome};
use gradus_rft::train::config::PhasePlan;
use gradus_rft::train::metrics::Metrics;
use gradus_rft::train::phase::Phase as Kind;
use gradus_rft::train::{RunConfig, Trainer};

use decoder::{Tensors, tensors};
use objectives::{demonstrated, fitted, rewarded, taught};
use papers::{Learns, Paper, Phase, papers};

use crate::objective::value;
use crate::recipes::tried;
use gradus_rft::recipes;

/// Decays, largest norm and weight decay of AdamW.
#[derive(Clone, Copy)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub clip: f64,
    pub decay: f64,
    /// What the rate of the only block is multiplied by; that of the embedding, by its square.
    pub layer: f64,
    /// Whether the embedding stays.
    pub frozen: bool,
}

impl AdamW {
    /// Those of a recipe's phase: torch's, and QLoRA's clip for texts; ReLIFT clips at 0.7, SAMI's
    /// RMSprop has no first moment, and MOTIF has its own.
    fn of(paper: &Paper, phase: &Phase) -> AdamW {
        let clip = match (phase.learns, paper.recipe) {
            (Learns::Texts, _) => 0.3,
            (_, "relift") => 0.7,
            (_, "alol_free") => 0.3,
            (_, "motif") => 0.1,
            _ => 1.0,
        };
        let beta1 = if paper.recipe == "sami" { 0.0 } else { 0.9 };
        let (beta2, decay) = if paper.recipe == "motif" { (0.99, 0.1) } else { (0.999, 0.0) };
        let (layer, frozen) = if paper.recipe == "groups" { (0.9, true) } else { (1.0, false) };
        AdamW { beta1, beta2, clip, decay, layer, frozen }
    }

    /// What the rate of a parameter is multiplied by.
    fn factor(&self, name: &str) -> f64 {
        match name.split('.').nth(1) {
            Some("embed_tokens") if self.frozen => 0.0,
            Some("embed_tokens") => self.layer * self.layer,
            Some("layers") => self.layer,
            Some(_) | None => 1.0,
        }
    }
}

/// The recipe with batches of a few completions, and one update each.
fn small(paper: &Paper, folder: &Path) -> RunConfig {
    let recipe = recipes::find(paper.recipe).unwrap();
    let mut config = tried(&recipe, RunConfig::pretrained(), folder);
    let mut set = |key: &str, value: &str| config.apply_set(&format!("{key}={value}")).unwrap();
    let plans = recipe_plans(paper);
    for plan in plans.iter().filter(|plan| [Kind::Rl, Kind::Distill].contains(&plan.kind)) {
        // As long as the paper's, of which a warm-up may be a share.
        set(&format!("phase.{}.steps", plan.name), "2500");
    }
    for plan in plans
        .iter()
        .filter(|plan| plan.kind == Kind::Sft && ["sft", "first"].contains(&plan.name.as_str()))
    {
        set(&format!("phase.{}.epochs", plan.name), "40");
        // That of a model from disk.
        set(&format!("phase.{}.warmup_steps", plan.name), "10");
    }
    for plan in plans.iter().filter(|plan| plan.kind == Kind::Rl) {
        set(&format!("phase.{}.group", plan.name), "3");
        set(&format!("phase.{}.updates_per_batch", plan.name), "1");
        if paper.recipe == "remix" && plan.config.rl.replay_window > 0 {
            // All that there is, so that the oracle need not know what is drawn.
            set(&format!("phase.{}.replay_share", plan.name), "0.9");
        }
        if paper.recipe == "vla_rl" {
            // That of the oracle's policy.
            set(&format!("phase.{}.temperature", plan.name), "1");
        }
        if paper.recipe == "copg" {
            // Most answers of the bandit are the same.
            set(&format!("phase.{}.prompts", plan.name), "6");
        }
    }
    config
}

/// The phases of the recipe as a model from disk has them.
fn recipe_plans(paper: &Paper) -> Vec<PhasePlan> {
    let mut config = RunConfig::layered(RunConfig::pretrained(), Some(paper.recipe), None).unwrap();
    config.distill.teacher = "teacher".into();
    config.plan().unwrap()
}

#[test]
fn settings_are_those_of_the_papers() {
    assert!(papers().map(|p| p.recipe).eq(recipes::ALL.iter().map(|recipe| recipe.name)));
    for paper in papers() {
        let plans = recipe_plans(paper);
        let mut names: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
        names.retain(|name| *name != "quantize");
        let mut firsts: Vec<&str> = Vec::new();
        names.iter().for_each(|name| {
            if !firsts.contains(name) {
                firsts.push(name)
            }
        });
        let known: Vec<&str> = paper.phases.iter().map(|phase| phase.name).collect();
        assert_eq!(firsts, known, "{}", paper.recipe);
        for phase in paper.phases {
            let plan = plans.iter().find(|plan| plan.name == phase.name).unwrap();
            let has = toml::Table::try_from(&plan.config).unwrap();
            for (key, want) in phase.settings {
                let want: toml::Table = format!("v = {want}").parse().unwrap();
                let (section, key) = key.split_once('.').unwrap();
                let at = format!("{}, {}: {section}.{key}", paper.recipe, phase.name);
                assert_eq!(has[section].get(key), want.get("v"), "{at}");
            }
        }
    }
}

#[test]
fn the_first_step_of_every_phase_of_every_recipe_is_the_oracles() {
    let folder = tempfile::tempdir().unwrap();
    for paper in papers() {
        first_steps(paper, &[], folder.path());
    }
}

/// Objectives on whole completions and a teacher's distributions are those of a policy that drops inputs;
/// reference and teacher drop nothing, and the ratio is 1.
#[test]
fn a_step_under_dropout_is_the_oracles() {
    let folder = tempfile::tempdir().unwrap();
    for paper in papers().filter(|p| ["dpo", "kto", "sami", "gkd"].contains(&p.recipe)) {
        first_steps(paper, &["lora.dropout=0.4"], folder.path());
    }
}

fn first_steps(paper: &Paper, settings: &[&str], folder: &Path) {
    let mut config = small(paper, folder);
    settings.iter().for_each(|setting| config.apply_set(setting).unwrap());
    let trainer: Trainer = Trainer::on(config.clone(), Device::Cpu).unwrap();
    // Graded by bytes, where a phase has no rewards of its own.
    let mut trainer = trainer.with_reward(|input: &RewardInput<'_>| {
        let sum: u32 = input.completion.bytes().map(u32::from).sum();
        Ok(RewardOutcome::Score((sum % 7) as f32 / 6.0))
    });
    let (mut seen, mut reference): (Vec<String>, _) = (Vec::new(), None);
    for plan in config.plan().unwrap() {
        trainer.enter(&plan);
        if plan.kind == Kind::Quantize {
            trainer.quantize().unwrap();
        } else if !seen.contains(&plan.name) {
            let phase = paper.phases.iter().find(|phase| phase.name == plan.name).unwrap();
            take(&mut trainer, paper, phase, seen.len(), &mut reference);
            seen.push(plan.name);
        }
    }
    assert_eq!(seen.len(), paper.phases.len(), "{}", paper.recipe);
}

/// The first step of a phase, from a policy that has moved.
fn take(
    trainer: &mut Trainer,
    paper: &Paper,
    phase: &Phase,
    number: usize,
    reference: &mut Option<Tensors>,
) {
    let at = format!("{}, {}", paper.recipe, phase.name);
    let adamw = AdamW::of(paper, phase);
    let took = match phase.learns {
        Learns::Nothing => {
            let critic = ["vla_rl", "wsrl"].contains(&paper.recipe);
            trainer.collect_step(0, critic).unwrap();
            return;
        }
        Learns::Returns => return fitted(trainer, &at),
        Learns::Texts => {
            disturb(trainer, number);
            demonstrated(trainer, adamw, &at)
        }
        learns @ (Learns::Teacher(_) | Learns::Guided(_)) => {
            disturb(trainer, number);
            taught(trainer, adamw, learns, &at)
        }
        learns @ (Learns::Tokens(..) | Learns::Completions(..) | Learns::Contexts) => {
            // A run has one reference, which its first phase of RL takes.
            trainer.hold_reference().unwrap();
            let reference = reference.get_or_insert_with(|| tensors(&trainer.model));
            disturb(trainer, number);
            let mut own = None;
            let reference = match trainer.config.rl.fresh_reference {
                true => own.insert(tensors(&trainer.model)),
                false => reference,
            };
            // The oracle's critic says 0 everywhere.
            trainer.critic = None;
            let metrics = rewarded(trainer, adamw, learns, reference, &at);
            assert_eq!(value(&metrics, "ratio_max_abs_dev"), 0.0, "{at}: on-policy");
            metrics
        }
    };
    let rate = value(&took, "learning_rate");
    assert!((rate / phase.rate - 1.0).abs() < 1e-12, "{at}: {rate}, not {}", phase.rate);
}

/// Moves everything that trains, each time elsewhere, so that no adapter is 0 and no policy its
/// reference.
pub fn disturb(trainer: &mut Trainer, number: usize) {
    let trained = trainer.model.params.iter().filter(|p| p.trainable);
    let all: Vec<_> =
        trained.map(|p| (p.name.clone(), p.shape.clone(), p.values().unwrap())).collect();
    for (i, (name, shape, mut values)) in all.into_iter().enumerate() {
        let wave = |j: usize| 0.1 * ((3 * j + 5 * i + 11 * number) as f32).sin();
        values.iter_mut().enumerate().for_each(|(j, v)| *v += wave(j));
        trainer.model.params.set(&name, &shape, &values).unwrap();
    }
}

/// First and second moments and values of everything that trains, by name.
type Moments = BTreeMap<String, [Vec<f64>; 3]>;

fn moments(trainer: &Trainer) -> Moments {
    let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<f64>>();
    let trained = trainer.model.params.iter().filter(|p| p.trainable).enumerate();
    let of = |(i, p): (usize, &gradus_rft::model::Parameter<f32>)| {
        let [m, v] = trainer.optimizer.moments(i).unwrap();
        (p.name.clone(), [wide(m), wide(v), wide(p.values().unwrap())])
    };
    trained.map(of).collect()
}

/// Takes `step` and compares it with `loss` around `w`, the weights as they are: what is reported, the
/// slope of each parameter along some directions, and what AdamW makes of it.
pub fn compare(
    trainer: &mut Trainer,
    adamw: AdamW,
    at: &str,
    loss: impl Fn(&Tensors) -> f64,
    step: impl FnOnce(&mut Trainer) -> Metrics,
) -> Metrics {
    let (w, mut before) = (tensors(&trainer.model), moments(trainer));
    let metrics = step(trainer);
    let after = moments(trainer);
    before.retain(|name, held| {
        let moves = adamw.factor(name) > 0.0;
        assert!(moves || after[name] == *held, "{at}: {name} does not move");
        moves
    });
    let (got, want) = (value(&metrics, "loss"), loss(&w));
    assert!((got - want).abs() <= 2e-5 * want.abs().max(0.1), "{at}: loss {got}, not {want}");
    let norm = value(&metrics, "grad_norm");
    let cut = (adamw.clip / (norm + 1e-6)).min(1.0);
    let b1 = adamw.beta1;
    let gradient = |name: &str| -> Vec<f64> {
        let ([old, ..], [new, ..]) = (&before[name], &after[name]);
        old.iter().zip(new).map(|(old, new)| (new - b1 * old) / (1.0 - b1) / cut).collect()
    };
    let all: BTreeMap<String, Vec<f64>> =
        before.keys().map(|name| (name.clone(), gradient(name))).collect();
    let length = |g: &[f64]| g.iter().map(|g| g * g).sum::<f64>().sqrt();
    let total = length(&all.values().map(|g| length(g)).collect::<Vec<f64>>());
    assert!((total - norm).abs() <= 1e-4 * norm && norm > 1e-6, "{at}: norm {norm}, not {total}");
    for (i, (name, g)) in all.iter().enumerate() {
        for turn in 0..3 {
            let sign = |j: usize| {
                if (((j + 1) * (2 * i + 7 * turn + 3)) as f64).sin() > 0.0 { 1.0 } else { -1.0 }
            };
            let want = slope(&w, name, sign, &loss);
            let got: f64 = g.iter().enumerate().map(|(j, g)| sign(j) * g).sum();
            let off = (got - want).abs() / (length(g) + 1e-3 * total);
            assert!(off <= SLOPE, "{at}: {name} rises by {got}, not {want}: {off:e}");
        }
    }
    let rate = value(&metrics, "learning_rate");
    let t = trainer.optimizer.t as i32;
    for (name, [old_m, old_v, old]) in &before {
        let ([m, v, new], rate) = (&after[name], rate * adamw.factor(name));
        for j in 0..old.len() {
            let g = cut * all[name][j];
            let want_v = adamw.beta2 * old_v[j] + (1.0 - adamw.beta2) * g * g;
            let want_m = b1 * old_m[j] + (1.0 - b1) * g;
            let (m_hat, v_hat) =
                (want_m / (1.0 - b1.powi(t)), want_v / (1.0 - adamw.beta2.powi(t)));
            let kept = old[j] * (1.0 - rate * adamw.decay);
            let want = kept - rate * m_hat / (v_hat.sqrt() + 1e-8);
            let fits = (new[j] - want).abs() <= 1e-6 * old[j].abs() + 1e-2 * rate;
            assert!(fits, "{at}: {name}[{j}] {} went to {}, not {want}", old[j], new[j]);
            assert!((v[j] - want_v).abs() <= 1e-4 * want_v + 1e-30, "{at}: {name}[{j}] {}", m[j]);
        }
    }
    metrics
}

/// Largest difference of a slope in units of the parameter's gradient; 3.1e-5 was the largest measured.
const SLOPE: f64 = 1e-4;

/// How `loss` rises when every element of a parameter moves by its sign.
fn slope(
    w: &Tensors,
    name: &str,
    sign: impl Fn(usize) -> f64,
    loss: impl Fn(&Tensors) -> f64,
) -> f64 {
    const STEP: f64 = 1e-5;
    let moved = |step: f64| {
        let mut w = w.clone();
        let values = w.get_mut(name).unwrap();
        values.iter_mut().enumerate().for_each(|(j, v)| *v += step * sign(j));
        loss(&w)
    };
    (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
}
