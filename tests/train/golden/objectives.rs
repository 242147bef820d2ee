//! What each kind of phase makes small, from its records.

use std::cell::RefCell;
use std::collections::BTreeMap;

use gradus::rng::{Purpose, Rng, fold, philox};
use gradus_rft::train::Trainer;
use gradus_rft::train::config::{KeepKey, SourceKey};
use gradus_rft::train::metrics::Metrics;
use gradus_rft::train::phase::Phase as Kind;
use gradus_rft::train::record::{Record, TokenClass};

use super::decoder::{Mask, Shape, Tensors, tensors};
use super::papers::Learns;
use super::{AdamW, compare};
use crate::objective::{Advantage, Compared, Marks, Objective, Sequence, Token, advantages, value};
use crate::tiny;

/// Of a linear map that drops nothing.
pub fn nothing(_: &str, _: usize, _: usize) -> f64 {
    1.0
}

/// The masks of a phase's step, for sequence `stream` of it: 1/(1 − p) where an input stays.
pub fn masks(
    trainer: &Trainer,
    kind: Kind,
    step: u64,
    stream: usize,
) -> impl Fn(&str, usize, usize) -> f64 + use<> {
    let (p, before) = (trainer.config.lora.dropout, trainer.before);
    let words = [kind as u64, before.steps, before.epochs, step, trainer.optimizer.t];
    let key = fold(Rng::key(trainer.config.seed, Purpose::Dropout), &words);
    let keys: RefCell<BTreeMap<String, u64>> = RefCell::default();
    let of = move |name: &str| {
        let words: Vec<u64> = name.bytes().map(u64::from).collect();
        *keys.borrow_mut().entry(name.into()).or_insert_with(|| fold(key, &words))
    };
    move |name: &str, position: usize, column: usize| {
        if p == 0.0 {
            return 1.0;
        }
        let key = of(name);
        let counter = [(column / 4) as u32, position as u32, stream as u32, 0];
        let word = philox(counter, [key as u32, (key >> 32) as u32])[column % 4];
        if (word as f64) < (p * 4_294_967_296.0).floor() { 0.0 } else { 1.0 / (1.0 - p) }
    }
}

fn log_softmax(z: &[f64]) -> Vec<f64> {
    let top = z.iter().fold(f64::MIN, |m, &x| m.max(x));
    let lse = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
    z.iter().map(|z| z - lse).collect()
}

/// The distribution before each scored token, in logs.
fn distributions(shape: &Shape, w: &Tensors, record: &Record, mask: Mask<'_>) -> Vec<Vec<f64>> {
    let logits = shape.logits(w, &record.ids[..record.ids.len() - 1], mask);
    record.scored().map(|t| log_softmax(&logits[t - 1])).collect()
}

/// Log-prob of each scored token, and the entropy of its distribution.
pub fn scores(shape: &Shape, w: &Tensors, record: &Record, mask: Mask<'_>) -> Vec<(f64, f64)> {
    let each = distributions(shape, w, record, mask);
    let of = |(t, p): (usize, &Vec<f64>)| {
        (p[record.ids[t] as usize], -p.iter().map(|p| p.exp() * p).sum::<f64>())
    };
    record.scored().zip(&each).map(of).collect()
}

/// alpha / rank.
fn shape(trainer: &Trainer) -> Shape {
    let lora = &trainer.config.lora;
    Shape::of(&trainer.model, lora.alpha / lora.rank as f64)
}

/// Cross-entropy, a mean over the tokens of the batch.
pub(super) fn demonstrated(trainer: &mut Trainer, adamw: AdamW, at: &str) -> Metrics {
    let (shape, records) = (shape(trainer), trainer.demonstrations(0).unwrap());
    if !trainer.config.sft.template.is_empty() {
        for record in &records {
            assert!([b'+', b'-'].contains(&(record.ids[0] as u8)), "{at}: no mark");
            assert_eq!(record.scored().count(), record.ids.len() - 1, "{at}: all of it is learned");
        }
    }
    let tokens: usize = records.iter().map(|record| record.scored().count()).sum();
    let of = |i: usize| masks(trainer, Kind::Sft, 0, i);
    let masks: Vec<_> = (0..records.len()).map(of).collect();
    let loss = |w: &Tensors| {
        let each = records.iter().zip(&masks).flat_map(|(r, mask)| scores(&shape, w, r, mask));
        -each.map(|(logp, _)| logp).sum::<f64>() / tokens as f64
    };
    compare(trainer, adamw, at, loss, |trainer| trainer.sft_step(0).unwrap())
}

/// What follows the prompt of a record, behind the last token of that.
fn unasked(record: &Record) -> Record {
    let asked = record.class.iter().take_while(|class| **class == TokenClass::Prompt).count();
    let mut other = Record::default();
    other.push(&record.ids[asked - 1..asked], TokenClass::Prompt, &[]);
    other.push(&record.ids[asked..], TokenClass::Gen, &[]);
    other
}

/// A mean over tokens, of teacher p and policy q: β·KL(p‖m) + (1 − β)·KL(q‖m) with m = β·p + (1 − β)·q, or KL(q‖p) of
/// a guided p, whose log-probs are those of u + γ·(c − u).
pub(super) fn taught(trainer: &mut Trainer, adamw: AdamW, learns: Learns, at: &str) -> Metrics {
    let (shape, teacher) = (shape(trainer), tiny::teacher());
    let (its, known) = (Shape::of(&teacher, 0.0), tensors(&teacher));
    let records = trainer.lessons(0).unwrap();
    let tokens: usize = records.iter().map(|record| record.scored().count()).sum();
    let masks: Vec<_> = (0..records.len()).map(|i| masks(trainer, Kind::Distill, 0, i)).collect();
    let says = |r: &Record| distributions(&its, &known, r, &nothing);
    let guided = |r: &Record| -> Vec<Vec<f64>> {
        let Learns::Guided(gamma) = learns else { return says(r) };
        let each = says(r).into_iter().zip(says(&unasked(r)));
        let row = |(c, u): (Vec<f64>, Vec<f64>)| {
            log_softmax(&c.iter().zip(&u).map(|(c, u)| u + gamma * (c - u)).collect::<Vec<f64>>())
        };
        each.map(row).collect()
    };
    let taught: Vec<Vec<Vec<f64>>> = records.iter().map(guided).collect();
    let divergence = |(p, q): (&Vec<f64>, &Vec<f64>)| -> f64 {
        let term = |(p, q): (&f64, &f64)| {
            let (a, b) = (p.exp(), q.exp());
            let Learns::Teacher(beta) = learns else { return b * (q - p) };
            let m = (beta * a + (1.0 - beta) * b).ln();
            beta * a * (p - m) + (1.0 - beta) * b * (q - m)
        };
        p.iter().zip(q).map(term).sum()
    };
    let loss = |w: &Tensors| {
        let of = |i: usize| {
            let q = distributions(&shape, w, &records[i], &masks[i]);
            taught[i].iter().zip(&q).map(divergence).sum::<f64>()
        };
        (0..records.len()).map(of).sum::<f64>() / tokens as f64
    };
    let lessons = records.clone();
    compare(trainer, adamw, at, loss, |trainer| trainer.distill_step(0, &lessons).unwrap())
}

/// The critic's first step is down the gradient of ½·mean (V − R)², and V was 0.
pub(super) fn fitted(trainer: &mut Trainer, at: &str) {
    let batch = trainer.collected.clone().unwrap();
    let n = batch.returns.len() as f64;
    let mean = batch.returns.iter().map(|&r| (r as f64).powi(2)).sum::<f64>() / n;
    let metrics = trainer.value_fit_step().unwrap();
    let loss = value(&metrics, "value_loss");
    assert!((loss - 0.5 * mean).abs() <= 1e-6 * mean && mean > 0.01, "{at}: {loss}");
    let critic = trainer.critic.as_ref().unwrap();
    let width = critic.m.len() - 1;
    for (j, &m) in critic.m.iter().enumerate() {
        let input = |i: usize| if j < width { batch.hidden[i * width + j] as f64 } else { 1.0 };
        let each = batch.returns.iter().enumerate().map(|(i, &r)| -(r as f64) * input(i) / n);
        let want: f64 = each.sum();
        assert!((m as f64 / 0.1 - want).abs() <= 1e-5, "{at}: {m} {want}");
    }
}

/// Rewards without ties in a group.
const REWARDS: [f32; 6] = [1.0, 0.0, 0.25, 0.5, 2.0, -1.0];

/// `records`, and what is replayed with them.
fn with_replayed(trainer: &Trainer, records: &[Record], at: &str) -> Vec<Record> {
    let mut learned = records.to_vec();
    if trainer.config.rl.replay_window > 0 {
        // All that was collected fits the share.
        let (mut rng, first) = (Rng::new(0, Purpose::User, [0; 3]), records[5].group + 1);
        let mut old = trainer.buffers.replayed(usize::MAX, first, &mut rng);
        // What was collected is two groups of two; earlier phases leave up to two batches of six.
        let sizes: &[usize] = if at.starts_with("remix, mix") { &[0, 6, 12] } else { &[4] };
        assert!(sizes.contains(&old.len()), "{at}: {}", old.len());
        learned.append(&mut old);
    }
    learned
}

/// A step of RL.
pub(super) fn rewarded(
    trainer: &mut Trainer,
    adamw: AdamW,
    learns: Learns,
    reference: &Tensors,
    at: &str,
) -> Metrics {
    let mut shape = shape(trainer);
    shape.temperature = trainer.config.rl.temperature;
    let records = drawn(trainer);
    let learned = with_replayed(trainer, &records, at);
    let each = |r: &Record| Sequence {
        group: r.group as usize,
        reward: r.reward as f64,
        tokens: tokens(r, &scores(&shape, reference, r, &nothing)),
    };
    let batch: Vec<Sequence> = learned.iter().map(each).collect();
    let (batch, learned, learns) = as_learned(trainer, batch, learned, learns);
    let of = |i: usize| masks(trainer, Kind::Rl, 0, i);
    let masks: Vec<_> = numbers(learns, &learned).into_iter().map(of).collect();
    let now = |w: &Tensors| -> Vec<Vec<(f64, f64)>> {
        learned.iter().zip(&masks).map(|(r, mask)| scores(&shape, w, r, mask)).collect()
    };
    let held = now(&tensors(&trainer.model));
    let step = |trainer: &mut Trainer| trainer.rl_step(0, records).unwrap();
    match learns {
        Learns::Tokens(name, advantage, beta, entropy) => {
            let objective =
                Objective { name, advantage, beta, entropy, longest: 6.0, temperature: 1.0 };
            let marks = Marks { without: sure(trainer, &learned, &held), ..Marks::default() };
            let loss = |w: &Tensors| objective.loss_of(&batch, &now(w), &held, &marks);
            compare(trainer, adamw, at, loss, step)
        }
        Learns::Completions(name, beta) => {
            let kl = match name {
                "kto" => zero(&shape, &tensors(&trainer.model), reference, &learned),
                _ => 0.0,
            };
            let loss = |w: &Tensors| {
                let alone = |s: Vec<(f64, f64)>| s.into_iter().map(|s| s.0).collect();
                let logp = now(w).into_iter().map(alone).collect();
                Compared { batch: &batch, logp, beta, kl }.loss(name)
            };
            compare(trainer, adamw, at, loss, step)
        }
        Learns::Contexts => {
            let samples = trainer.config.rl.group;
            let masks: Vec<_> = (0..24).map(|i| self::masks(trainer, Kind::Rl, 0, i)).collect();
            let mask = |i: usize| -> Mask<'_> { &masks[i] };
            let loss = |w: &Tensors| information(&shape, w, &learned, samples, &mask);
            compare(trainer, adamw, at, loss, step)
        }
        Learns::Nothing
        | Learns::Texts
        | Learns::Returns
        | Learns::Teacher(_)
        | Learns::Guided(_) => panic!("{at}: not of RL"),
    }
}

/// Numbers of the tokens of beginnings whose entropy is not among the largest fifth of the batch's; none where
/// completions do not begin as demonstrations do.
fn sure(trainer: &Trainer, records: &[Record], held: &[Vec<(f64, f64)>]) -> Vec<usize> {
    if trainer.config.rl.prefix_samples == 0 {
        return Vec::new();
    }
    let classes = records.iter().flat_map(|r| r.scored().map(|t| r.class[t]));
    let entropies = held.iter().flatten().map(|of| of.1);
    let demo = |(_, (class, _)): &(usize, (TokenClass, f64))| *class == TokenClass::Demo;
    let all = classes.zip(entropies).enumerate().filter(demo);
    let mut all: Vec<(usize, f64)> = all.map(|(i, (_, entropy))| (i, entropy)).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    // Two groups, each with the first 7 of 8 tokens of a demonstration, cut to 5 of a completion of 6.
    assert_eq!(all.len(), 10);
    assert!(all[1].1 - all[2].1 > 1e-5, "no tie");
    all[2..].iter().map(|(i, _)| *i).collect()
}

/// What a step may learn from, with rewards without ties.
fn drawn(trainer: &Trainer) -> Vec<Record> {
    let mut records = match trainer.config.rl.source {
        SourceKey::Rollout => trainer.collect(0).unwrap().1,
        SourceKey::Data => trainer.scored_answers(0).unwrap(),
    };
    let rewards = records.iter_mut().zip(REWARDS.iter().cycle());
    rewards.for_each(|(record, &reward)| record.reward = reward);
    records
}

/// What is left to learn from: under `rl.keep = positive` the records with advantages above 0, which are
/// their rewards from then on. What is replayed is clipped around the policy, not around its sampler.
fn as_learned(
    trainer: &Trainer,
    batch: Vec<Sequence>,
    records: Vec<Record>,
    learns: Learns,
) -> (Vec<Sequence>, Vec<Record>, Learns) {
    let rl = &trainer.config.rl;
    match learns {
        Learns::Tokens("remix", advantage, beta, entropy) if rl.replay_window > 0 => {
            (batch, records, Learns::Tokens("remix/stale", advantage, beta, entropy))
        }
        Learns::Tokens(name, advantage, beta, entropy) if rl.keep == KeepKey::Positive => {
            let worth = advantages(advantage, beta.1, &batch);
            let all = batch.into_iter().zip(records).zip(worth);
            let kept = all.filter(|(_, a)| a[0] > 0.0);
            let (batch, records) =
                kept.map(|((s, r), a)| (Sequence { reward: a[0], ..s }, r)).unzip();
            (batch, records, Learns::Tokens(name, Advantage::Raw, beta, entropy))
        }
        Learns::Tokens(name, advantage, beta, entropy) if rl.keep == KeepKey::Top => {
            let mut all: Vec<(Sequence, Record)> = batch.into_iter().zip(records).collect();
            let order = |s: &(Sequence, Record)| -s.0.reward;
            let mut rewards: Vec<f64> = all.iter().map(order).collect();
            rewards.sort_by(f64::total_cmp);
            // A tenth of eight is the best one.
            assert!(rewards.len() == 8 && rewards[0] < rewards[1]);
            all.retain(|s| order(s) <= rewards[0]);
            let (batch, records): (Vec<Sequence>, Vec<Record>) = all.into_iter().unzip();
            (batch, records, Learns::Tokens(name, advantage, beta, entropy))
        }
        learns => (batch, records, learns),
    }
}

/// The number of each record among those that the update learns from; a preference leaves all but the best
/// and the worst of a group out, whose numbers mean nothing.
fn numbers(learns: Learns, records: &[Record]) -> Vec<usize> {
    let Learns::Completions("dpo", _) = learns else { return (0..records.len()).collect() };
    let mut next = 0;
    let number = |record: &Record| {
        let group = || records.iter().filter(|r| r.group == record.group).map(|r| r.reward);
        let ends = [group().fold(f32::MIN, f32::max), group().fold(f32::MAX, f32::min)];
        next += ends.contains(&record.reward) as usize;
        next.saturating_sub(1)
    };
    records.iter().map(number).collect()
}

/// The scored tokens of a record; ratios are to who sampled, or to the policy where nobody did.
fn tokens(record: &Record, reference: &[(f64, f64)]) -> Vec<Token> {
    let old = |t: usize| match record.class[t] {
        TokenClass::Gen => record.sampler_logp[t],
        TokenClass::Prompt | TokenClass::Demo | TokenClass::Reasoning | TokenClass::Context => {
            record.old_logp()[t]
        }
    };
    let of = |(t, its): (usize, &(f64, f64))| Token {
        target: record.ids[t] as usize,
        hidden: Vec::new(),
        old: old(t) as f64,
        reference: its.0,
        // The last turn ends where the sequence does.
        turn: record
            .turns
            .iter()
            .filter(|(end, _)| *end == t + 1 && *end < record.ids.len())
            .map(|(_, reward)| *reward as f64)
            .sum(),
    };
    record.scored().zip(reference).map(of).collect()
}

/// The completion of one record behind the prompt of another.
fn crossed(prompt: &Record, completion: &Record) -> Record {
    let mut record = Record::default();
    let asked = prompt.class.iter().take_while(|class| **class == TokenClass::Prompt).count();
    record.push(&prompt.ids[..asked], TokenClass::Prompt, &[]);
    let answer: Vec<i32> = completion.scored().map(|t| completion.ids[t]).collect();
    record.push(&answer, TokenClass::Demo, &[]);
    record
}

/// KTO's zero: how much likelier the policy finds answers than the reference, under prompts that they
/// were not written for; at least 0.
fn zero(shape: &Shape, w: &Tensors, reference: &Tensors, records: &[Record]) -> f64 {
    let n = records.len();
    let sum = |w: &Tensors, r: &Record| -> f64 {
        scores(shape, w, r, &nothing).iter().map(|score| score.0).sum()
    };
    let gap = |i: usize| {
        let record = crossed(&records[i], &records[(i + 1) % n]);
        sum(w, &record) - sum(reference, &record)
    };
    ((0..n).map(gap).sum::<f64>() / n as f64).max(0.0)
}

/// SAMI's objective, a mean over rows and samples: −½ the mean log-share of the right completion among
/// those of a context and of the right context among those of a completion, of log-probs per token.
fn information<'a>(
    shape: &Shape,
    w: &Tensors,
    records: &[Record],
    samples: usize,
    mask: &dyn Fn(usize) -> Mask<'a>,
) -> f64 {
    const CONTEXTS: usize = 2;
    let (mut total, mut matrices) = (0.0, 0);
    for row in records.chunks(CONTEXTS * samples) {
        for sample in 0..samples {
            let own: Vec<&Record> = row.iter().skip(sample).step_by(samples).collect();
            let mean = |i: usize, j: usize| {
                let number = CONTEXTS * CONTEXTS * matrices + CONTEXTS * i + j;
                let each = scores(shape, w, &crossed(own[i], own[j]), mask(number));
                each.iter().map(|score| score.0).sum::<f64>() / each.len() as f64
            };
            let table = [[mean(0, 0), mean(0, 1)], [mean(1, 0), mean(1, 1)]];
            for i in 0..CONTEXTS {
                let of_context = log_softmax(&table[i])[i];
                let of_completion = log_softmax(&[table[0][i], table[1][i]])[i];
                total -= (of_context + of_completion) / (2 * CONTEXTS) as f64;
            }
            matrices += 1;
        }
    }
    total / matrices as f64
}
