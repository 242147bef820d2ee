//! The phase `distill`: loss and gradient beside an f64 oracle, the teacher that is the policy itself,
//! what is learned, and teachers that do not fit.

use std::path::Path;

use gradus::Device;
use gradus_rft::model::Decoder;
use gradus_rft::train::record::{Record, ScoredTokens, TokenClass};
use gradus_rft::train::{RunConfig, Trainer};
use tempfile::TempDir;

use super::objective::{gradient, value};
use super::tiny::shape;
use crate::common::devices::executors;

/// A Llama of bytes with a head that makes distributions spread.
fn model(hidden: usize, vocab: usize, seed: u64) -> Decoder {
    let mut model = Decoder::random(&shape(hidden, vocab, 32), Device::Cpu, seed).unwrap();
    let head = model.params.iter().find(|p| p.name == "lm_head.weight").unwrap();
    let (name, shape) = (head.name.clone(), head.shape.clone());
    let values: Vec<f32> = head.values().unwrap().iter().map(|w| 2.0 * w).collect();
    model.params.set(&name, &shape, &values).unwrap();
    model
}

/// Folders of a model, of a teacher of another width, and of one whose sequences end otherwise.
fn folders() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    model(16, 256, 0).save_fresh(&at("model"), &[2]).unwrap();
    model(24, 256, 1).save_fresh(&at("teacher"), &[2]).unwrap();
    model(16, 256, 1).save_fresh(&at("other end"), &[3]).unwrap();
    folder
}

/// The model, all of it trained, or what `settings` say.
fn config(folders: &Path, teacher: &str, settings: &[&str]) -> RunConfig {
    let mut config = RunConfig::pretrained();
    let (model, teacher) = (folders.join("model"), folders.join(teacher));
    config.model.path = model.to_string_lossy().into_owned();
    config.distill.teacher = teacher.to_string_lossy().into_owned();
    let small = [
        "phases=distill",
        "rl.prompts=2",
        "rl.group=2",
        "rl.max_new_tokens=5",
        "rl.grad_clip=inf",
        "rl.warmup_steps=1",
        "sft.demos=4",
        "sft.batch=4",
        "sft.grad_clip=inf",
        "quantize.blocksize=32",
        "lora.rank=4",
        "eval.max_prompts=2",
        "threads=1",
    ];
    small.iter().chain(settings).for_each(|setting| config.apply_set(setting).unwrap());
    config
}

fn trainer(folders: &Path, teacher: &str, settings: &[&str], device: Device) -> Trainer {
    Trainer::on(config(folders, teacher, settings), device).unwrap()
}

/// Three sequences of one to four learned tokens.
fn records() -> Vec<Record> {
    let record = |i: usize| {
        let mut record = Record::default();
        let ids = |from: usize, n: usize| -> Vec<i32> {
            (0..n).map(|t| ((from + 31 * t + 7 * i) % 256) as i32).collect()
        };
        record.push(&ids(5, 3), TokenClass::Prompt, &[]);
        record.push(&ids(90, [2, 4, 1][i]), TokenClass::Gen, &[]);
        record
    };
    (0..3).map(record).collect()
}

fn log_softmax(z: &[f64]) -> Vec<f64> {
    let top = z.iter().fold(f64::MIN, |m, &x| m.max(x));
    let lse = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
    z.iter().map(|z| z - lse).collect()
}

fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// Which tokens a divergence is over: all, or the teacher's k likeliest without or with the others as one.
#[derive(Clone, Copy)]
enum Over {
    All,
    Drop(usize),
    Bucket(usize),
}

impl Over {
    fn of(self, z: &[f64], teacher: &[f64]) -> Vec<f64> {
        let whole = log_softmax(z);
        let (Over::Drop(k) | Over::Bucket(k)) = self else { return whole };
        let mut order: Vec<usize> = (0..z.len()).collect();
        order.sort_by(|&a, &b| teacher[b].total_cmp(&teacher[a]));
        let likeliest: Vec<f64> = order[..k].iter().map(|&v| whole[v]).collect();
        let others: f64 = order[k..].iter().map(|&v| whole[v].exp()).sum();
        match self {
            Over::Bucket(_) => [likeliest, vec![others.ln()]].concat(),
            Over::All | Over::Drop(_) => log_softmax(&likeliest),
        }
    }
}

/// The divergence of the policy's logits `q` from the teacher's `p`, as the papers write it.
fn divergence(name: &str, over: Over, q: &[f64], p: &[f64]) -> f64 {
    let (q, p) = (over.of(q, p), over.of(p, p));
    match name {
        "reverse_kl" => kl(&q, &p),
        "forward_kl" => kl(&p, &q),
        "jsd" => {
            let beta: f64 = 0.3;
            let mix = |(p, q): (&f64, &f64)| (beta * p.exp() + (1.0 - beta) * q.exp()).ln();
            let m: Vec<f64> = p.iter().zip(&q).map(mix).collect();
            beta * kl(&p, &m) + (1.0 - beta) * kl(&q, &m)
        }
        other => panic!("no oracle for {other}"),
    }
}

/// Hidden states before the scored tokens, and a head `[vocab, hidden]`.
struct Rows {
    hidden: Vec<Vec<f64>>,
    head: Vec<f64>,
}

impl Rows {
    fn of(model: &Decoder, records: &[Record]) -> Rows {
        let scored = ScoredTokens::of(records);
        let batch = scored.packed.place(&model.allocator).unwrap();
        let hidden = model.forward(&batch, true, None, None).unwrap().to_host().unwrap();
        let d = model.config.hidden;
        let row = |&at: &i32| {
            let at = at as usize * d;
            hidden[at..at + d].iter().map(|&x| x as f64).collect()
        };
        let mut params = model.params.iter();
        let head = params.find(|p| p.name == "lm_head.weight").unwrap().values().unwrap();
        let head = head.into_iter().map(f64::from).collect();
        Rows { hidden: scored.rows.iter().map(row).collect(), head }
    }

    fn logits(&self, t: usize, temperature: f64) -> Vec<f64> {
        let h = &self.hidden[t];
        let dot = |w: &[f64]| w.iter().zip(h).map(|(w, h)| w * h).sum::<f64>() / temperature;
        self.head.chunks(h.len()).map(dot).collect()
    }
}

/// Loss, the gradient of the head, and that of the last norm's gain.
fn oracle(
    (name, over): (&str, Over),
    own: &Rows,
    its: &Rows,
    gain: &[f64],
    t: f64,
) -> (f64, [Vec<f64>; 2]) {
    let (n, d) = (own.hidden.len(), gain.len());
    let (mut loss, mut head, mut norm) = (0.0, vec![0.0; own.head.len()], vec![0.0; d]);
    for token in 0..n {
        let (q, p) = (own.logits(token, t), its.logits(token, t));
        loss += divergence(name, over, &q, &p) / n as f64;
        let slope = gradient(&q, |q| divergence(name, over, q, &p) / n as f64);
        for (v, slope) in slope.iter().enumerate() {
            for j in 0..d {
                head[v * d + j] += slope / t * own.hidden[token][j];
                norm[j] += slope / t * own.head[v * d + j] * own.hidden[token][j] / gain[j];
            }
        }
    }
    (loss, [head, norm])
}

/// The gradient of a parameter, from AdamW's first moment after its first update.
fn moved(trainer: &Trainer, name: &str) -> Vec<f64> {
    let mut trained = trainer.model.params.iter().filter(|p| p.trainable);
    let index = trained.position(|p| p.name == name).unwrap();
    let [m, _] = trainer.optimizer.moments(index).unwrap();
    m.iter().map(|&m| m as f64 / 0.1).collect()
}

fn values(trainer: &Trainer, name: &str) -> Vec<f64> {
    let found = trainer.model.params.iter().find(|p| p.name == name).unwrap();
    found.values().unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn loss_and_gradient_are_the_oracles() {
    let folders = folders();
    let its = Rows::of(&model(24, 256, 1), &records());
    for executor in executors() {
        for (name, cut, over) in [
            ("reverse_kl", 1, Over::All),
            ("forward_kl", 2, Over::All),
            ("jsd", 4, Over::All),
            ("reverse_kl", 2, Over::Drop(7)),
            ("forward_kl", 1, Over::Drop(40)),
            ("jsd", 4, Over::Drop(256)),
            ("reverse_kl", 4, Over::Bucket(1)),
            ("forward_kl", 2, Over::Bucket(7)),
            ("jsd", 1, Over::Bucket(40)),
        ] {
            let (k, rest) = match over {
                Over::All => (0, "drop"),
                Over::Drop(k) => (k, "drop"),
                Over::Bucket(k) => (k, "bucket"),
            };
            let likeliest = [format!("distill.top_k={k}"), format!("distill.rest={rest}")];
            let divergence = format!("distill.divergence={name}");
            let cut = format!("rl.micro_batch={cut}");
            let mut settings = vec![&*divergence, &cut, "rl.temperature=0.8"];
            settings.extend(likeliest.iter().map(String::as_str));
            settings.extend((name == "jsd").then_some("distill.beta=0.3"));
            let device = executor.device.clone();
            let mut trainer = trainer(folders.path(), "teacher", &settings, device);
            let own = Rows::of(&trainer.model, &records());
            let gain = values(&trainer, "model.norm.weight");
            let (loss, [head, norm]) = oracle((name, over), &own, &its, &gain, 0.8);
            let got = value(&trainer.distill_step(0, &records()).unwrap(), "loss");
            let at = format!("{} {name} {k} {rest}", executor.name);
            assert!((got - loss).abs() <= 2e-5 * loss && loss > 1e-3, "{at}: {got} {loss}");
            for (part, want) in [("lm_head.weight", head), ("model.norm.weight", norm)] {
                let got = moved(&trainer, part);
                let size = want.iter().fold(0f64, |m, x| m.max(x.abs()));
                let off = got.iter().zip(&want).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
                assert!(off <= 2e-4 * size, "{at} {part}: off by {:e}", off / size);
            }
        }
    }
}

/// Who is its own teacher learns nothing: loss and gradient are exactly 0, and nothing moves.
#[test]
fn the_policy_as_its_teacher_teaches_nothing() {
    let folders = folders();
    for executor in executors() {
        for (source, name, k, rest) in [
            ("rollout", "reverse_kl", 0, "drop"),
            ("rollout", "forward_kl", 0, "drop"),
            ("demos", "reverse_kl", 0, "drop"),
            ("demos", "reverse_kl", 9, "bucket"),
            ("rollout", "forward_kl", 9, "drop"),
        ] {
            let settings = [
                format!("distill.source={source}"),
                format!("distill.divergence={name}"),
                format!("distill.top_k={k}"),
                format!("distill.rest={rest}"),
            ];
            let settings = settings.each_ref().map(String::as_str);
            let device = executor.device.clone();
            let mut trainer = trainer(folders.path(), "model", &settings, device);
            let weights = |trainer: &Trainer| -> Vec<Vec<f32>> {
                trainer.model.params.iter().map(|p| p.values().unwrap()).collect()
            };
            let before = weights(&trainer);
            let records = trainer.lessons(0).unwrap();
            let metrics = trainer.distill_step(0, &records).unwrap();
            let at = format!("{} {source} {name}", executor.name);
            assert_eq!(value(&metrics, "loss"), 0.0, "{at}");
            assert_eq!(value(&metrics, "grad_norm"), 0.0, "{at}");
            assert!(value(&metrics, "num_tokens") >= 4.0, "{at}");
            assert!(weights(&trainer) == before, "{at}");
        }
    }
}

/// A 4-bit policy with adapters comes nearer to another model, on what it writes and on demonstrations.
#[test]
fn adapters_learn_a_teacher() {
    let folders = folders();
    for source in ["rollout", "demos"] {
        let source = format!("distill.source={source}");
        let rates = ["rl.learning_rate=1e-2", "sft.learning_rate=1e-2", "sft.epochs=40"];
        let settings = [&["phases=quantize,distill", "rl.steps=40", &source], &rates[..]].concat();
        let mut trainer = trainer(folders.path(), "teacher", &settings, Device::Cpu);
        trainer.quantize().unwrap();
        let losses: Vec<f64> = (0..40)
            .map(|step| {
                let records = trainer.lessons(step).unwrap();
                value(&trainer.distill_step(step, &records).unwrap(), "loss")
            })
            .collect();
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..5]), mean(&losses[35..]));
        assert!(last < 0.8 * first, "{source}: {losses:?}");
    }
}

#[test]
fn teachers_that_do_not_fit_are_refused() {
    let folders = folders();
    model(16, 255, 1).save_fresh(&folders.path().join("few"), &[2]).unwrap();
    let refused = |config: RunConfig, says: &str| {
        let mut trainer = Trainer::<f32>::on(config, Device::Cpu).unwrap();
        let error = trainer.distill_step(0, &records()).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    };
    let with = |teacher: &str, settings: &[&str]| config(folders.path(), teacher, settings);
    refused(with("other end", &[]), "sequences end with [3] and not with [2]");
    refused(with("few", &[]), "no tokenizer.json");
    // The demo has a vocabulary of its own.
    refused(with("teacher", &["model.path="]), "256 tokens and not");
    for (setting, says) in [
        ("phases=sft", "which `phases` does not have"),
        ("distill.teacher=", "name the teacher's folder"),
        ("distill.beta=0.5", "is the weight in jsd"),
        ("distill.rest=bucket", "no token is left out"),
    ] {
        let error = with("teacher", &[setting]).validate_phases().unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    for (setting, source, says) in [
        ("distill.top_k=4", "rollout", "distill.top_k"),
        ("sft.prompt_weight=1", "demos", "sft.prompt_weight"),
    ] {
        let source = format!("distill.source={source}");
        let settings = ["distill.guidance=2", setting, &source];
        let error = with("teacher", &settings).validate_phases().unwrap_err().to_string();
        assert!(error.contains("`distill.guidance`") && error.contains(says), "{error}");
    }
}

/// A guided teacher reads twice: with γ = 0 what stands before the last token of a prompt does not count, with γ = 1 it
/// alone does, and more is not less. Rows of other sequences change no bit.
#[test]
fn a_guided_teacher_leaves_the_prompt_out() {
    let folders = folders();
    let loss = |gamma: &str, others: i32| {
        let settings = [format!("distill.guidance={gamma}"), "rl.learning_rate=0".into()];
        let settings = settings.each_ref().map(String::as_str);
        let mut trainer = trainer(folders.path(), "model", &settings, Device::Cpu);
        let mut records = records();
        // The policy is its own teacher: they differ by what one of them leaves out.
        records.iter_mut().for_each(|record| record.ids[0] += others);
        value(&trainer.distill_step(0, &records).unwrap(), "loss")
    };
    assert_eq!(loss("1", 0), 0.0);
    let (none, other) = (loss("0", 0), loss("0", 40));
    assert!(none > 1e-4 && other > 1e-4 && none != other, "{none} {other}");
    assert!(loss("3", 0) > none, "twice as far, on the other side");
}
