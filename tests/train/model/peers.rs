//! The decoder against transformers and PEFT (logits and adapter gradients of Llama, Qwen2 and
//! Qwen3), and its promises: the same bits however a sequence is cut and packed, and a frozen
//! base that an untrained adapter does not move.

use std::path::PathBuf;

use crate::common::{Golden, golden_folder, normals};
use gradus::Device;
use gradus::dtype::Float;
use gradus::quant::Nf4Options;
use gradus_rft::model::{
    Decoder, Gradients, KvCache, LoraOptions, ModelConfig, Packed, ScoreGradients, ScoreUse, Tape,
    Weight,
};
use gradus_rft::pretrained::{Adapter, AdapterConfig, HfConfig, LoadOptions, Pretrained};
use gradus_rft::train::record::{Record, TokenClass};
use gradus_rft::train::step::{Scoring, score_records};

fn golden(path: &str) -> Golden {
    Golden::open(&golden_folder().join("models").join(path))
}

fn path(name: &str) -> PathBuf {
    golden_folder().join("models").join(name)
}

fn load<T: Float>(name: &str, options: &LoadOptions) -> Decoder<T> {
    Pretrained::open(&path(name)).unwrap().load(Device::Cpu, options).unwrap()
}

fn config(name: &str) -> ModelConfig {
    HfConfig::load(&path(name)).unwrap().model
}

/// The sequences of a golden batch.
fn batch(file: &Golden) -> Packed {
    let ids: Vec<i32> = file.get::<i64>("input_ids").into_iter().map(|id| id as i32).collect();
    Packed::of(ids.chunks(file.shape("input_ids")[1]))
}

/// Largest difference relative to the largest logit.
fn logit_error(model: &Decoder, file: &Golden) -> f64 {
    let batch = batch(file).place(&model.allocator).unwrap();
    let hidden = model.forward(&batch, true, None, None).unwrap();
    let logits = model.logits(&model.allocator, &hidden).unwrap().to_host().unwrap();
    let want = file.f64("logits");
    let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    logits.iter().zip(&want).map(|(&a, &b)| (a as f64 - b).abs() / scale).fold(0.0, f64::max)
}

const FAMILIES: [&str; 3] = ["llama", "qwen2", "qwen3"];

#[test]
fn logits_are_those_of_transformers() {
    for name in [&FAMILIES[..], &["llama3-sharded", "qwen2_5_vl"]].concat() {
        let model = load(name, &LoadOptions::default());
        let error = logit_error(&model, &golden(&format!("{name}/golden_logits.safetensors")));
        assert!(error < 1e-5, "{name}: {error:e} of the logit scale");
    }
}

/// Against f32 products of the weights that bitsandbytes dequantizes; its own CPU pass is in bf16.
#[test]
fn logits_of_bitsandbytes_checkpoints_are_those_of_their_weights() {
    for name in FAMILIES.map(|name| format!("{name}-bnb-4bit")) {
        let model = load(&name, &LoadOptions::default());
        assert!(model.linears().all(|l| matches!(l.weight, Weight::Nf4(_))), "{name}");
        let error = logit_error(&model, &golden(&format!("{name}/golden_logits_f32.safetensors")));
        assert!(error < 1e-5, "{name}: {error:e} of the logit scale");
        let theirs = logit_error(&model, &golden(&format!("{name}/golden_logits.safetensors")));
        assert!(theirs < 3e-2, "{name}: {theirs:e} of bitsandbytes' own bf16 logits");
    }
}

#[test]
fn adapter_logits_and_gradients_are_those_of_peft() {
    for name in FAMILIES {
        let mut model = load::<f32>(name, &LoadOptions::default());
        Adapter::load(&path(name).join("adapter")).unwrap().attach(&mut model).unwrap();
        assert_eq!(model.params.iter().filter(|p| p.trainable).count(), 28, "{name}");
        let file = golden(&format!("{name}/golden_adapter.safetensors"));
        let error = logit_error(&model, &file);
        assert!(error < 1e-5, "{name}: adapted logits {error:e}");

        let packed = batch(&file);
        let (rows, targets): (Vec<usize>, Vec<i32>) =
            (0..48).filter(|t| t % 24 != 23).map(|t| (t, packed.ids[t + 1])).unzip();
        let gradients =
            gradients(&model, &packed, &rows, &targets, 1.0 / targets.len() as f32, 1.0);
        for (id, got) in gradients.iter() {
            let name = &model.params.get(id).name;
            let want = file.f64(&format!("base_model.model.{name}"));
            let norm = want.iter().map(|x| x * x).sum::<f64>().sqrt();
            let got = got.to_host().unwrap();
            let off =
                got.iter().zip(&want).map(|(&a, b)| (a as f64 - b).powi(2)).sum::<f64>().sqrt();
            assert!(norm > 0.0 && off <= 1e-4 * norm, "{name}: {off:e} of {norm:e}");
        }
    }
}

/// Rank-stabilized scale, rank and alpha patterns, targets by regular expression, a whole head.
#[test]
fn an_adapter_with_patterns_is_that_of_peft() {
    let folder = path("llama/adapter-patterns");
    let mut model = load::<f32>("llama", &LoadOptions::default());
    let adapter = Adapter::load(&folder).unwrap();
    adapter.attach(&mut model).unwrap();
    let ranks: Vec<usize> = model.linears().filter_map(|l| Some(l.lora?.r)).collect();
    assert_eq!(ranks, [8, 4, 4, 4, 4, 4]);
    let error = logit_error(&model, &golden("llama/adapter-patterns/golden_logits.safetensors"));
    assert!(error < 1e-5, "{error:e}");
    let again = Adapter::of(&model, &adapter.config).unwrap();
    assert_eq!(again.tensors(), adapter.tensors());
}

/// Of a model of pictures the language part; its adapter is PEFT's by name and values, and one made here
/// targets no map of the tower.
#[test]
fn the_language_part_of_a_model_of_pictures_is_that_of_transformers() {
    let folder = path("qwen2_5_vl/adapter");
    let mut model = load::<f32>("qwen2_5_vl", &LoadOptions::default());
    Adapter::load(&folder).unwrap().attach(&mut model).unwrap();
    let error = logit_error(&model, &Golden::open(&folder.join("golden_logits.safetensors")));
    assert!(error < 1e-5, "{error:e}");
    let flat = load::<f32>("qwen2_5_vl-flat", &LoadOptions::default());
    let plain = load::<f32>("qwen2_5_vl", &LoadOptions::default());
    assert_eq!(flat.config, plain.config);
    for (a, b) in flat.params.iter().zip(plain.params.iter()) {
        assert_eq!((&a.name, a.values().unwrap()), (&b.name, b.values().unwrap()));
    }
    let options =
        LoraOptions { rank: 4, alpha: 8.0, targets: "q_proj,gate_proj".into(), rslora: false };
    let config = AdapterConfig::new(&options, &plain.config, "base").unwrap();
    let targets = |module: &str| config.targets(module, false).unwrap();
    assert!(targets("model.language_model.layers.0.mlp.gate_proj"));
    assert!(!targets("model.language_model.layers.0.mlp.up_proj"));
    assert!(!targets("model.visual.blocks.0.mlp.gate_proj"));
}

/// Adapters of a model with a tied head that hold embedding, head or both whole: PEFT's logits, and the
/// base model's log-probs without them.
#[test]
fn a_tied_head_that_an_adapter_does_not_hold_stays_the_base_models() {
    const NAME: &str = "llama3-sharded";
    let scores = |model: &Decoder, adapt| {
        let mut record = Record::default();
        record.push(&[3, 1, 4, 1, 5], TokenClass::Prompt, &[]);
        record.push(&[9, 2, 6, 5, 3, 5, 8, 9, 7, 9], TokenClass::Gen, &[0.0; 10]);
        score_records(model, &[record], adapt, Scoring::at(0.9, 1)).unwrap().concat()
    };
    let base = scores(&load(NAME, &LoadOptions::default()), true);
    for which in ["embed", "head", "both"] {
        let folder = format!("{NAME}/adapter-{which}");
        let mut model = load::<f32>(NAME, &LoadOptions::default());
        Adapter::load(&path(&folder)).unwrap().attach(&mut model).unwrap();
        let error = logit_error(&model, &golden(&format!("{folder}/golden_logits.safetensors")));
        assert!(error < 1e-5, "{which}: {error:e}");
        assert_eq!(scores(&model, false), base, "{which}: the reference policy");
        assert_ne!(scores(&model, true), base, "{which}");
        let trained = model.params.iter().filter(|p| p.trainable).count();
        assert_eq!(trained, if which == "both" { 6 } else { 5 }, "{which}");
    }
}

/// Gradients of weight · Σ log-prob of `targets`, which rows `rows` predict.
fn gradients(
    model: &Decoder,
    packed: &Packed,
    rows: &[usize],
    targets: &[i32],
    weight: f32,
    temperature: f64,
) -> Gradients {
    let (allocator, d) = (&model.allocator, model.config.hidden);
    let batch = packed.place(allocator).unwrap();
    let mut tape = Tape::new(false);
    let hidden = model.forward(&batch, true, None, Some(&mut tape)).unwrap().to_host().unwrap();
    let scored: Vec<f32> =
        rows.iter().flat_map(|&r| &hidden[r * d..(r + 1) * d]).copied().collect();
    let (scored, targets) =
        (allocator.copy_of(&scored).unwrap(), allocator.copy_of(targets).unwrap());
    let scores = model.score(allocator, &scored, &targets, temperature, ScoreUse::LogProbs);
    let scores = scores.unwrap();
    let logp = allocator.copy_of(&vec![weight; targets.len()]).unwrap();
    let slopes = ScoreGradients { logp, entropy: None };
    let mut gradients = Gradients::zeros(&model.params, allocator).unwrap();
    let drows = model
        .score_backward(allocator, &scored, &targets, &scores, &slopes, &mut gradients)
        .unwrap()
        .to_host()
        .unwrap();
    let mut dhidden = vec![0f32; hidden.len()];
    for (i, &r) in rows.iter().enumerate() {
        dhidden[r * d..(r + 1) * d].copy_from_slice(&drows[i * d..(i + 1) * d]);
    }
    let dhidden = allocator.copy_of(&dhidden).unwrap();
    model.backward(&batch, tape, dhidden, &mut gradients).unwrap();
    gradients
}

fn small(seed: u64) -> Decoder {
    let config = ModelConfig {
        vocab: 19,
        hidden: 32,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 48,
        ..config("llama")
    };
    let mut model = Decoder::random(&config, Device::Cpu, seed).unwrap();
    model.quantize(&Nf4Options { blocksize: 32, ..Nf4Options::default() }).unwrap();
    model
        .attach_lora(
            &LoraOptions { rank: 4, alpha: 8.0, targets: "all-linear".into(), rslora: false },
            1,
        )
        .unwrap();
    // Untrained adapters are zero; give them something to add.
    set_lora_b(&mut model, |i, n| normals(i as u64, n, 0.05).iter().map(|&x| x as f32).collect());
    model
}

/// Replaces the values of every B.
fn set_lora_b(model: &mut Decoder, values: impl Fn(usize, usize) -> Vec<f32>) {
    let named: Vec<(String, Vec<usize>)> =
        model.params.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
    let lora_b = named.iter().filter(|(name, _)| name.contains("lora_B"));
    for (i, (name, shape)) in lora_b.enumerate() {
        let values = values(i, shape.iter().product());
        model.params.set(name, shape, &values).unwrap();
    }
}

/// Final hidden states of whole sequences.
fn hidden_states(model: &Decoder, packed: &Packed, adapt: bool) -> Vec<f32> {
    let batch = packed.place(&model.allocator).unwrap();
    model.forward(&batch, adapt, None, None).unwrap().to_host().unwrap()
}

fn sequences(seed: u64, count: usize) -> Vec<Vec<i32>> {
    let mut rng = gradus::rng::Rng::new(seed, gradus::rng::Purpose::User, [0; 3]);
    (0..count).map(|_| (0..1 + rng.below(23)).map(|_| rng.below(19) as i32).collect()).collect()
}

/// Each sequence alone, all packed in two orders, decoded token by token, and prefilled in chunks
/// beside others: the hidden states have the same bits.
#[test]
fn hidden_states_do_not_depend_on_packing_chunking_or_batch() {
    let model = small(3);
    let d = model.config.hidden;
    let sequences = sequences(7, 12);
    let alone: Vec<Vec<f32>> = sequences
        .iter()
        .map(|s| hidden_states(&model, &Packed::of([s.as_slice()]), true))
        .collect();
    for reverse in [false, true] {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        if reverse {
            order.reverse();
        }
        let packed = Packed::of(order.iter().map(|&i| sequences[i].as_slice()));
        let hidden = hidden_states(&model, &packed, true);
        for (slot, &i) in order.iter().enumerate() {
            let rows =
                packed.cu_seqlens[slot] as usize * d..packed.cu_seqlens[slot + 1] as usize * d;
            assert_eq!(hidden[rows], alone[i], "sequence {i}, reverse {reverse}");
        }
    }
    for chunk in [1, 2, 5, 17] {
        let mut cache = KvCache::new(&model.config, &model.device, sequences.len(), 24).unwrap();
        let mut got: Vec<Vec<f32>> = vec![Vec::new(); sequences.len()];
        while got.iter().zip(&sequences).any(|(g, s)| g.len() < s.len() * d) {
            let (mut packed, mut slots) = (Packed::new(), Vec::new());
            for (i, s) in sequences.iter().enumerate() {
                let done = cache.len(i);
                if done < s.len() {
                    packed.push(&s[done..s.len().min(done + chunk)], done);
                    slots.push(i);
                }
            }
            let batch = cache.batch(&model.allocator, &packed, &slots).unwrap();
            let hidden = model.forward(&batch, true, Some(&mut cache), None).unwrap();
            let hidden = hidden.to_host().unwrap();
            for (at, &i) in slots.iter().enumerate() {
                let rows =
                    packed.cu_seqlens[at] as usize * d..packed.cu_seqlens[at + 1] as usize * d;
                got[i].extend_from_slice(&hidden[rows]);
            }
        }
        assert_eq!(got, alone, "chunks of {chunk}");
    }
}

#[test]
fn an_untrained_adapter_changes_no_bit() {
    let mut model = small(4);
    set_lora_b(&mut model, |_, n| vec![0.0; n]);
    let packed = Packed::of(sequences(1, 5).iter().map(Vec::as_slice));
    assert_eq!(hidden_states(&model, &packed, true), hidden_states(&model, &packed, false));
}

/// The whole backward of a dense, fully trainable model against central differences along random
/// directions, parameter by parameter.
#[test]
fn dense_gradients_match_central_differences() {
    for name in ["llama", "qwen2", "qwen3"] {
        let small = ModelConfig { hidden: 32, head_dim: 8, ffn: 48, vocab: 19, ..config(name) };
        let mut model = Decoder::random(&small, Device::Cpu, 5).unwrap();
        let packed = Packed::of(sequences(2, 4).iter().map(Vec::as_slice));
        let targets: Vec<i32> = packed.ids.iter().map(|id| (id * 7 + 3) % 19).collect();
        let objective = |model: &Decoder| -> f64 {
            let allocator = &model.allocator;
            let batch = packed.place(allocator).unwrap();
            let hidden = model.forward(&batch, true, None, None).unwrap();
            let targets = allocator.copy_of(&targets).unwrap();
            let scores = model.score(allocator, &hidden, &targets, 0.8, ScoreUse::Values).unwrap();
            scores.logp.to_host().unwrap().iter().map(|&l| l as f64).sum()
        };
        let rows: Vec<usize> = (0..packed.tokens()).collect();
        let gradients = gradients(&model, &packed, &rows, &targets, 1.0, 0.8);
        for (id, gradient) in gradients.iter() {
            let gradient = gradient.to_host().unwrap();
            // Along the gradient itself the slope is its norm: the best signal f32 can give.
            let norm = gradient.iter().map(|&g| (g as f64).powi(2)).sum::<f64>().sqrt();
            let at = model.params.get(id).values().unwrap();
            let h =
                2e-3 / (gradient.iter().fold(0f32, |m, g| m.max(g.abs())) as f64 / norm).max(0.05);
            let mut along = |sign: f64| {
                let moved = at.iter().zip(&gradient);
                let moved: Vec<f32> =
                    moved.map(|(&w, &g)| (w as f64 + sign * h * g as f64 / norm) as f32).collect();
                model.params.put(id, &moved).unwrap();
                objective(&model)
            };
            let slope = (along(1.0) - along(-1.0)) / (2.0 * h);
            model.params.put(id, &at).unwrap();
            let parameter = &model.params.get(id).name;
            let error = (slope - norm).abs() / norm;
            assert!(error < 2e-3, "{name} {parameter}: slope {slope}, gradient norm {norm}");
        }
    }
}
