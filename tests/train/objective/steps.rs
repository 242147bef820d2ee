//! Steps of the trainer beside the oracle: the loss that is reported and the gradient that moves the
//! head, for every name; and the pairs of names that were one.

use gradus::Device;
use gradus::ops::presets;
use gradus_rft::train::Trainer;
use gradus_rft::train::critic::{Critic, CriticBatch};
use gradus_rft::train::record::{Record, ScoredTokens};
use gradus_rft::train::step::{Scoring, score_records};

use super::oracle::{self, Advantage, Sequence, Token};
use super::{records, sharpen, trainer, value};

/// The records as the oracle sees them.
pub(super) fn sequences(
    trainer: &Trainer,
    records: &[Record],
    reference: &[Vec<f32>],
) -> Vec<Sequence> {
    let scored = ScoredTokens::of(records);
    let batch = scored.packed.place(&trainer.model.allocator).unwrap();
    let hidden = trainer.model.forward(&batch, true, None, None).unwrap().to_host().unwrap();
    let d = trainer.model.config.hidden;
    let row = |n: usize| {
        let at = scored.rows[n] as usize * d;
        hidden[at..at + d].iter().map(|&x| x as f64).collect::<Vec<f64>>()
    };
    let mut n = 0..;
    let each = |(record, reference): (&Record, &Vec<f32>)| Sequence {
        group: record.group as usize,
        reward: record.reward as f64,
        tokens: record
            .scored()
            .map(|t| Token {
                target: record.ids[t] as usize,
                hidden: row(n.next().unwrap()),
                old: record.sampler_logp[t] as f64,
                reference: reference[t] as f64,
                turn: 0.0,
            })
            .collect(),
    };
    records.iter().zip(reference).map(each).collect()
}

/// Everything of an objective that the oracle asks for.
pub struct Objective<'a> {
    pub name: &'a str,
    pub advantage: Advantage,
    /// β of a KL in the loss, and of one in the reward.
    pub beta: (f64, f64),
    pub entropy: f64,
    pub longest: f64,
    pub temperature: f64,
}

impl Objective<'_> {
    /// What name and β stand for.
    fn of<'a>(name: &'a str, beta: f64, trainer: &Trainer) -> Objective<'a> {
        let advantage = match name {
            "reft" => Advantage::Gae(0.95),
            "trl/rloo" => Advantage::Others,
            "ce" => Advantage::One,
            "dr_grpo" | "relift" | "prefix_rft" => Advantage::Group(None),
            name if name.starts_with("verl/") => Advantage::Group(Some(1e-6)),
            _ => Advantage::Group(Some(1e-4)),
        };
        let paid = matches!(name, "reft" | "trl/rloo");
        // Six tokens: what an answer of three digits needs.
        let (longest, temperature) = (6.0, trainer.config.rl.temperature);
        let beta = if paid { (0.0, beta) } else { (beta, 0.0) };
        let entropy = if matches!(name, "relift" | "prefix_rft") { 1e-3 } else { 0.0 };
        Objective { name, advantage, beta, entropy, longest, temperature }
    }

    /// The loss under `head`, with the constants of the losses taken at `held`; `weight` multiplies
    /// the surrogate of each token, `penalty` says where KL-Cov's applies.
    fn loss(&self, batch: &[Sequence], head: &[f64], held: &[f64], marks: &Marks) -> f64 {
        let scores = |head: &[f64]| -> Vec<Vec<(f64, f64)>> {
            batch.iter().map(|s| oracle::scores(s, head, self.temperature)).collect()
        };
        self.loss_of(batch, &scores(head), &scores(held), marks)
    }

    /// The same from log-probs and entropies of the tokens, and from those at which constants are held.
    pub fn loss_of(
        &self,
        batch: &[Sequence],
        now: &[Vec<(f64, f64)>],
        held: &[Vec<(f64, f64)>],
        marks: &Marks,
    ) -> f64 {
        let lengths: Vec<usize> = batch.iter().map(|s| s.tokens.len()).collect();
        let weights = oracle::weights(self.name, &lengths, self.longest);
        let advantages = oracle::advantages(self.advantage, self.beta.1, batch);
        let (mut total, mut n) = (0.0, 0);
        let each = batch.iter().zip(&advantages).zip(weights).zip(now.iter().zip(held));
        for (((s, a), w), (now, held)) in each {
            let logp: Vec<f64> = now.iter().map(|x| x.0).collect();
            let fixed: Vec<f64> = held.iter().map(|x| x.0).collect();
            let surrogate = oracle::surrogate(self.name, &logp, &fixed, s, a);
            let log_ratio = |t: usize| logp[t] - s.tokens[t].old;
            let sequence = (0..logp.len()).map(log_ratio).sum::<f64>() / logp.len() as f64;
            for (t, value) in surrogate.iter().enumerate() {
                let ratio = if self.name == "trl/luspo" { sequence } else { log_ratio(t) }.exp();
                let kl = oracle::kl(self.name, logp[t], ratio, s.tokens[t].reference);
                let kept = if marks.without.contains(&n) { 0.0 } else { *value };
                let penalty = if marks.penalized == Some(n) { log_ratio(t).abs() } else { 0.0 };
                total += w * (kept + self.beta.0 * kl + penalty - self.entropy * now[t].1);
                n += 1;
            }
        }
        total
    }
}

/// The tokens that Clip-Cov, KL-Cov and Prefix-RFT single out.
#[derive(Default)]
pub struct Marks {
    /// Those that have no surrogate.
    pub without: Vec<usize>,
    pub penalized: Option<usize>,
}

/// Loss and gradient of the head, as a step of the trainer has them: AdamW's first moment after its
/// first update is a tenth of the gradient.
pub(super) fn step(trainer: &mut Trainer, records: Vec<Record>) -> (f64, Vec<f64>) {
    let values = trainer.rl_step(0, records).unwrap();
    let trained = trainer.model.params.iter().filter(|p| p.trainable);
    let index = trained.map(|p| &p.name).position(|name| name == "lm_head.weight").unwrap();
    let [m, _] = trainer.optimizer.moments(index).unwrap();
    (value(&values, "loss"), m.iter().map(|&m| m as f64 / 0.1).collect())
}

pub(super) fn head(trainer: &Trainer) -> Vec<f64> {
    let head = trainer.model.params.iter().find(|p| p.name == "lm_head.weight").unwrap();
    head.values().unwrap().into_iter().map(f64::from).collect()
}

/// Largest difference in units of the largest element.
pub(super) fn apart(got: &[f64], want: &[f64]) -> f64 {
    let size = want.iter().fold(0f64, |m, x| m.max(x.abs()));
    got.iter().zip(want).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / size
}

/// A policy that has moved away from its reference, records of a sampler `off` the policy, and the
/// reference's log-probs of them.
pub(super) fn moved(settings: &[&str], off: f32) -> (Trainer, Vec<Record>, Vec<Vec<f32>>) {
    let mut trainer = trainer(settings);
    sharpen(&mut trainer, 6.0);
    trainer.hold_reference().unwrap();
    let records = records(&trainer, 0.0);
    let t = trainer.config.rl.temperature;
    let reference = score_records(&trainer.model, &records, true, Scoring::at(t, 64)).unwrap();
    sharpen(&mut trainer, 1.25);
    let records = super::records(&trainer, off);
    (trainer, records, reference)
}

/// One step of every name, with the KL that goes with it and with one of a run's own: the loss, and
/// the gradient of the head, are those of the paper.
#[test]
fn a_step_of_every_name_is_the_oracles() {
    let trl = presets::TRL.iter().map(|n| format!("trl/{n}"));
    let verl = presets::VERL.iter().map(|n| format!("verl/{n}"));
    let names = presets::NAMES.iter().map(|n| n.to_string()).chain(trl).chain(verl);
    let mut different = std::collections::BTreeMap::new();
    for name in names {
        for beta in [None, Some(0.3)] {
            let mut settings = vec![format!("rl.loss={name}"), "rl.temperature=0.8".into()];
            settings.extend(beta.map(|beta| format!("rl.beta={beta}")));
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            let (mut trainer, records, reference) = moved(&settings, 1.0);
            let own = match &*name {
                "deepseekmath_grpo" | "remix" => 0.04,
                "reft" | "trl/rloo" => 0.05,
                _ => 0.0,
            };
            let objective = Objective::of(&name, beta.unwrap_or(own), &trainer);
            let (batch, at) = (sequences(&trainer, &records, &reference), head(&trainer));
            let candidates = candidates(&objective, &batch, &at);
            let (loss, slope) = step(&mut trainer, records);
            let off = |marks: &&Marks| (objective.loss(&batch, &at, &at, marks) - loss).abs();
            let marks = candidates.iter().min_by(|a, b| off(a).total_cmp(&off(b))).unwrap();
            let want = objective.loss(&batch, &at, &at, marks);
            assert!(
                (loss - want).abs() <= 2e-5 * want.abs().max(0.1),
                "{name} {beta:?}: {loss} {want}"
            );
            let want = oracle::gradient(&at, |head| objective.loss(&batch, head, &at, marks));
            let off = apart(&slope, &want);
            assert!(off <= 2e-4, "{name} {beta:?}: the gradient is off by {off:e} of its largest");
            if beta.is_none() {
                different.insert(name.clone(), (loss.to_bits(), slope));
            }
        }
    }
    // What was one and the same.
    for (a, b) in [("dapo", "trl/bnpo"), ("relift", "dr_grpo"), ("gspo", "grpo"), ("reft", "grpo")]
    {
        let off = apart(&different[a].1, &different[b].1);
        assert!(off > 1e-3, "{a} and {b} are {off:e} apart");
    }
}

/// Which tokens may be singled out: none, but for Clip-Cov (any that is neither clipped nor outside
/// its bounds) and KL-Cov (the one of the largest covariance).
fn candidates(objective: &Objective<'_>, batch: &[Sequence], head: &[f64]) -> Vec<Marks> {
    let advantages = oracle::advantages(objective.advantage, objective.beta.1, batch).concat();
    let score = |s| oracle::scores(s, head, objective.temperature);
    let logp: Vec<f64> = batch.iter().flat_map(score).map(|x| x.0).collect();
    let old: Vec<f64> = batch.iter().flat_map(|s| s.tokens.iter().map(|t| t.old)).collect();
    let n = logp.len();
    let mean = |x: &[f64]| x.iter().sum::<f64>() / n as f64;
    let cov: Vec<f64> =
        (0..n).map(|t| (advantages[t] - mean(&advantages)) * (logp[t] - mean(&logp))).collect();
    match objective.name {
        "verl/clip_cov" => {
            let clipped = |&t: &usize| {
                let (r, a) = ((logp[t] - old[t]).exp(), advantages[t]);
                (a > 0.0 && r > 1.2) || (a < 0.0 && r < 0.8)
            };
            let found = (0..n).filter(|&t| cov[t] > 1.0 && cov[t] < 5.0).filter(|t| !clipped(t));
            let marks: Vec<Marks> =
                found.map(|t| Marks { without: vec![t], ..Marks::default() }).collect();
            assert!(marks.len() > 1, "several tokens to draw from: {cov:?}");
            marks
        }
        "verl/kl_cov" => {
            let largest = (0..n).max_by(|&a, &b| cov[a].total_cmp(&cov[b]));
            vec![Marks { penalized: largest, ..Marks::default() }]
        }
        _ => vec![Marks::default()],
    }
}

/// Final states of as many updates of two trainers on the same records.
fn states_differ(a: &[&str], b: &[&str]) -> bool {
    let state = |settings: &[&str]| {
        let mut trainer = trainer(settings);
        sharpen(&mut trainer, 6.0);
        for s in 0..2 {
            let records = records(&trainer, 1.0);
            trainer.rl_step(s, records).unwrap();
        }
        let state = trainer.save_state().unwrap();
        state.into_iter().filter(|(name, _)| name.starts_with("param/")).collect::<Vec<_>>()
    };
    state(a) != state(b)
}

/// The pairs that ended in the same bits, with the settings that they were found at.
#[test]
fn names_that_were_one_and_the_same_differ() {
    let four = "rl.updates_per_batch=4";
    let rate = "rl.learning_rate=0.02";
    assert!(states_differ(&["rl.loss=dapo", four, rate], &["rl.loss=trl/bnpo", four, rate]));
    assert!(states_differ(&["rl.loss=relift", four], &["rl.loss=dr_grpo", four]));
    assert!(states_differ(
        &["rl.loss=gspo", four],
        &["rl.loss=gspo", four, "rl.clip_low=0.2", "rl.clip_high=0.2"]
    ));
    assert!(states_differ(&["rl.beta=10"], &["rl.beta=0"]), "a KL without adapters");
    assert!(!states_differ(&["rl.beta=0"], &["rl.beta=0"]), "the same twice");
}

/// The bonus alone, with 4-bit weights, adapters and a frozen head: along its gradient the entropy
/// changes by the gradient's norm.
#[test]
fn the_entropy_bonus_moves_adapters() {
    let mut trainer = trainer(&["rl.micro_batch=64"]);
    sharpen(&mut trainer, 6.0);
    trainer.quantize().unwrap();
    // Adapters that have moved: with B = 0 only B has a gradient.
    let names: Vec<(String, Vec<usize>, Vec<f32>)> = trainer
        .model
        .params
        .iter()
        .filter(|p| p.trainable)
        .map(|p| (p.name.clone(), p.shape.clone(), p.values().unwrap()))
        .collect();
    for (i, (name, shape, values)) in names.iter().enumerate() {
        let wave = |(j, v): (usize, &f32)| v + 0.1 * ((3 * j + i) as f32).sin();
        let values: Vec<f32> = values.iter().enumerate().map(wave).collect();
        trainer.model.params.set(name, shape, &values).unwrap();
    }
    let records = records(&trainer, 0.0);
    let settings = gradus::ops::PolicySettings {
        loss: gradus::ops::Loss::Reinforce,
        entropy_coef: 1.0,
        ..Default::default()
    };
    let (advantage, weight) = (vec![0.0; records.len()], vec![1.0; records.len()]);
    let pass = |trainer: &Trainer| {
        let advantage = gradus::ops::Advantage::PerSequence((&advantage).into());
        let objective = trainer.rl_objective(&settings);
        trainer.forward_backward(&records, advantage, &weight, objective).unwrap()
    };
    let backward = pass(&trainer);
    let entropy = backward.figures.stats.sum_entropy;
    assert!((backward.figures.loss + entropy).abs() <= 1e-9 * entropy, "loss = −H");
    let gradients: Vec<(String, Vec<f32>)> = backward
        .gradients
        .iter()
        .map(|(id, g)| (trainer.model.params.get(id).name.clone(), g.to_host().unwrap()))
        .collect();
    let norm = gradients.iter().flat_map(|g| &g.1).map(|&g| (g as f64).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 1e-2, "{norm}");
    let mut at = |step: f64| {
        for (name, gradient) in &gradients {
            let p = trainer.model.params.iter().find(|p| &p.name == name).unwrap();
            let (shape, mut values) = (p.shape.clone(), p.values().unwrap());
            let along = |(v, g): (&mut f32, &f32)| *v += (step * *g as f64 / norm) as f32;
            values.iter_mut().zip(gradient).for_each(along);
            trainer.model.params.set(name, &shape, &values).unwrap();
        }
        pass(&trainer).figures.loss
    };
    const STEP: f64 = 1e-3;
    let above = at(STEP);
    let below = at(-2.0 * STEP);
    let slope = (above - below) / (2.0 * STEP);
    assert!((slope - norm).abs() <= 1e-2 * norm, "slope {slope}, norm of the gradient {norm}");
}

/// The reward itself and 1 as advantages: weighted and plain likelihood.
#[test]
fn the_reward_may_be_the_advantage() {
    for (key, advantage) in [("reward", Advantage::Raw), ("one", Advantage::One)] {
        let settings = ["rl.loss=verl/gpg", &format!("rl.advantage={key}")];
        let (mut trainer, records, reference) = moved(&settings, 1.0);
        let objective = Objective { advantage, ..Objective::of("verl/gpg", 0.0, &trainer) };
        let (batch, at) = (sequences(&trainer, &records, &reference), head(&trainer));
        let (loss, slope) = step(&mut trainer, records);
        let objective = |head: &[f64]| objective.loss(&batch, head, &at, &Marks::default());
        let want = objective(&at);
        assert!((loss - want).abs() <= 2e-5 * want.abs().max(0.1), "{key}: {loss} {want}");
        let off = apart(&slope, &oracle::gradient(&at, objective));
        assert!(off <= 2e-4, "{key}: the gradient is off by {off:e} of its largest");
    }
}

/// A reward that abstained has no part in a step with a critic: advantages, returns and the critic
/// itself are those of the other records, as under a group.
#[test]
fn a_critic_learns_nothing_from_an_abstained_reward() {
    let settings = ["rl.loss=grpo", "rl.advantage=gae", "value.lambda=0.9"];
    let step = |reward: f32| {
        let mut trainer = trainer(&settings);
        sharpen(&mut trainer, 6.0);
        let mut records = records(&trainer, 1.0);
        records[1].reward = reward;
        let t = trainer.config.rl.temperature;
        let reference = score_records(&trainer.model, &records, true, Scoring::at(t, 64)).unwrap();
        let (batch, at) = (sequences(&trainer, &records, &reference), head(&trainer));
        let (loss, slope) = self::step(&mut trainer, records.clone());
        let objective = Objective {
            name: "grpo",
            advantage: Advantage::Gae(0.9),
            beta: (0.0, 0.0),
            entropy: 0.0,
            longest: 6.0,
            temperature: t,
        };
        let none = Marks::default();
        let want = objective.loss(&batch, &at, &at, &none);
        assert!((loss - want).abs() <= 2e-5 * want.abs().max(0.1), "{reward}: {loss} {want}");
        let want = oracle::gradient(&at, |head| objective.loss(&batch, head, &at, &none));
        assert!(apart(&slope, &want) <= 2e-4, "{reward}");
        (slope, trainer.critic.unwrap())
    };
    let (without, critic) = step(f32::NAN);
    let (with, counted) = step(0.0);
    assert!(apart(&without, &with) > 1e-2, "an abstained reward is not a reward of 0");
    assert_ne!(critic, counted);
    // The critic's first step is down the gradient of ½·mean (V − R)² over the others: AdamW's first
    // moment is a tenth of it, and V was 0.
    let trainer = trainer(&settings);
    let mut shared = trainer;
    sharpen(&mut shared, 6.0);
    let mut records = records(&shared, 1.0);
    records[1].reward = f32::NAN;
    let reference = vec![vec![0f32; 16]; records.len()];
    let batch = sequences(&shared, &records, &reference);
    let known: Vec<&Sequence> = batch.iter().filter(|s| !s.reward.is_nan()).collect();
    let tokens: usize = known.iter().map(|s| s.tokens.len()).sum();
    let mut want = vec![0.0; critic.m.len()];
    for s in &known {
        for (t, token) in s.tokens.iter().enumerate() {
            // λ-return of a critic that says 0: 0.9^(tokens left)·R.
            let target = 0.9f64.powi((s.tokens.len() - 1 - t) as i32) * s.reward;
            let inputs = token.hidden.iter().cloned().chain([1.0]);
            want.iter_mut().zip(inputs).for_each(|(g, x)| *g -= target * x / tokens as f64);
        }
    }
    let got: Vec<f64> = critic.m.iter().map(|&m| m as f64 / 0.1).collect();
    assert!(apart(&got, &want) < 1e-4, "{got:?} {want:?}");
}

/// The critic's clip holds the second update of a batch: where V has left the window around what it
/// was and the clipped error is the larger one, a state has no gradient (PPO's code base).
#[test]
fn the_critic_is_clipped_around_what_it_was() {
    let states = CriticBatch {
        hidden: vec![1.0, 0.0, 0.0, 1.0],
        returns: vec![1.0, 0.002],
        value: vec![0.0; 2],
    };
    let rate = 0.01;
    for clip in [f64::INFINITY, 0.005] {
        let mut critic = Critic::new(2);
        let loss = |critic: &mut Critic| {
            critic.update(&Device::Cpu, &states, rate, clip).unwrap().unwrap().loss
        };
        let first = loss(&mut critic);
        assert!((first - 0.25 * (1.0 + 0.002f64.powi(2))).abs() < 1e-7, "½·mean (0 − R)²: {first}");
        // AdamW's first step is the rate in every weight: V = 0.02 on both states.
        let v = 0.02;
        let held = |r: f64| 0.5 * (v - r).powi(2).max((clip.min(v) - r).powi(2));
        let want = (held(1.0) + held(0.002)) / 2.0;
        let before = critic.m.clone();
        let second = loss(&mut critic);
        assert!((second - want).abs() < 1e-5 * want, "{clip}: {second} {want}");
        let free =
            |r: f64| if (v - r).abs() >= (clip.min(v) - r).abs() { (v - r) / 2.0 } else { 0.0 };
        for (i, slope) in [free(1.0), free(0.002), free(1.0) + free(0.002)].into_iter().enumerate()
        {
            let got = (critic.m[i] as f64 - 0.9 * before[i] as f64) / 0.1;
            assert!((got - slope).abs() < 1e-5, "{clip}: gradient {i} is {got}, not {slope}");
        }
    }
    let critic = |settings: &[&str]| {
        let mut trainer = trainer(settings);
        sharpen(&mut trainer, 6.0);
        let records = records(&trainer, 0.0);
        trainer.rl_step(0, records).unwrap();
        trainer.critic.unwrap()
    };
    let twice =
        ["rl.loss=reft", "rl.updates_per_batch=2", "value.learning_rate=0.1", "value.clip=inf"];
    let free = critic(&twice);
    assert_eq!(free.t, 2, "an update of the critic beside each of the policy's");
    assert_ne!(critic(&twice[..3]), free, "reft clips at 0.2 unless told otherwise");
}

/// Cross-entropy is taken on the model's own distribution, whatever rollouts are sampled at.
#[test]
fn sft_does_not_know_the_sampling_temperature() {
    let step = |temperature: &str| {
        let mut trainer = trainer(&[&format!("rl.temperature={temperature}")]);
        sharpen(&mut trainer, 6.0);
        let records = trainer.demonstrations(0).unwrap();
        let reference: Vec<Vec<f32>> = records.iter().map(|r| vec![0.0; r.ids.len()]).collect();
        let (batch, at) = (sequences(&trainer, &records, &reference), head(&trainer));
        let tokens: usize = batch.iter().map(|s| s.tokens.len()).sum();
        let all = batch.iter().flat_map(|s| oracle::scores(s, &at, 1.0));
        let want = -all.map(|x| x.0).sum::<f64>() / tokens as f64;
        let loss = value(&trainer.sft_step(0).unwrap(), "loss");
        assert!((loss - want).abs() <= 1e-6 * want, "{temperature}: {loss} {want}");
        (loss.to_bits(), trainer.save_state().unwrap())
    };
    assert_eq!(step("1.0"), step("0.5"));
}

/// Equal rewards: nothing to learn, and nothing is said that was not measured. Entropy and clips are
/// of all completions, a KL nobody asked for has no value.
#[test]
fn a_step_without_a_gradient_is_reported_as_one() {
    let mut trainer = trainer(&[]);
    sharpen(&mut trainer, 6.0);
    let (_, mut records, _) = trainer.collect(0).unwrap();
    let reference: Vec<Vec<f32>> = records.iter().map(|r| vec![0.0; r.ids.len()]).collect();
    let batch = sequences(&trainer, &records, &reference);
    let all: Vec<(f64, f64)> =
        batch.iter().flat_map(|s| oracle::scores(s, &head(&trainer), 1.0)).collect();
    let entropy = all.iter().map(|x| x.1).sum::<f64>() / all.len() as f64;
    let own = ScoredTokens::of(&records).gather(&records, |r| &r.entropy);
    for (own, (_, want)) in own.iter().zip(&all) {
        assert!((*own as f64 - want).abs() < 1e-4, "the sampler's entropy {own}, {want}");
    }
    records.iter_mut().for_each(|r| r.reward = 1.0);
    let values = trainer.rl_step(0, records.clone()).unwrap();
    let deviation = value(&values, "ratio_max_abs_dev");
    let got = value(&values, "entropy");
    assert!((got - entropy).abs() < 1e-4, "{got} {entropy}");
    assert_eq!(value(&values, "clip_ratio/region_mean"), 0.0);
    assert_eq!((value(&values, "update/tokens"), deviation), (0.0, 0.0));
    for key in ["kl", "update/kl", "update/entropy", "update/clip_ratio"] {
        assert!(value(&values, key).is_nan(), "{key}: nothing was measured");
    }
    // One record in six moves: TRL's means are over all, the update's over its own.
    records[0].reward = 2.0;
    records[1..3].iter_mut().for_each(|r| r.reward = 1.0);
    let values = trainer.rl_step(0, records.clone()).unwrap();
    let tokens = |r: &[Record]| r.iter().map(|r| r.scored().count()).sum::<usize>() as f64;
    assert_eq!(value(&values, "update/tokens"), tokens(&records[..3]), "its group of three");
    assert!((value(&values, "entropy") - entropy).abs() < 1e-4);
    let moved = value(&values, "update/entropy");
    assert!((moved - value(&values, "entropy")).abs() > 1e-6 && moved.is_finite());
}

/// The reference is what the first step found, also after a resume in between.
#[test]
fn a_reference_survives_a_resume() {
    for settings in [vec!["rl.beta=0.5"], vec!["rl.beta=0.5", "rl.kl=reward", "rl.loss=reft"]] {
        for quantized in [false, true] {
            let fresh = || {
                let mut trainer = trainer(&settings);
                if quantized {
                    trainer.quantize().unwrap();
                }
                trainer
            };
            let mut whole = fresh();
            let batch = records(&whole, 0.0);
            whole.rl_step(0, batch.clone()).unwrap();
            let saved = whole.save_state().unwrap();
            let kl = |t: &mut Trainer| value(&t.rl_step(1, batch.clone()).unwrap(), "kl");
            let mut again = trainer(&settings);
            again.load_state(&saved).unwrap();
            assert_eq!(again.save_state().unwrap(), saved);
            let (a, b) = (kl(&mut whole), kl(&mut again));
            assert_eq!(a.to_bits(), b.to_bits(), "{settings:?} {quantized}");
            let held = saved.keys().any(|name| name.starts_with("reference/"));
            assert_eq!(held, !quantized, "adapters that nobody moved need no copy");
            assert_eq!(whole.save_state().unwrap(), again.save_state().unwrap());
        }
    }
}
