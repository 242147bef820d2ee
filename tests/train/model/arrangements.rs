//! Batch invariance through the model: a token's log-prob has the same bits however its sequence is
//! packed with others, cut into calls, prefilled, decoded from the cache, scored by the trainer or
//! reported by the sampler's op.

use std::ops::Range;

use crate::common::devices::gpus;
use crate::common::normals;
use gradus::Device;
use gradus::dtype::{Float, bf16};
use gradus::ops::{LogProb, logprob};
use gradus::quant::Nf4Options;
use gradus::rng::{Purpose, Rng};
use gradus_rft::model::{
    Decoder, KvCache, LoraOptions, ModelConfig, Packed, RopeScaling, ScoreUse,
};

/// Grouped heads, a 4-bit trunk with adapters that are not zero, a width that is no power of two.
fn model<T: Float>(device: &Device, head_dim: usize) -> Decoder<T> {
    let config = ModelConfig {
        vocab: 23,
        hidden: 48,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim,
        ffn: 72,
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_positions: 64,
        qkv_bias: false,
        qk_norm: true,
        tie_embeddings: false,
        language_part: false,
    };
    let mut model = Decoder::<T>::random(&config, device.clone(), 3).unwrap();
    model.quantize(&Nf4Options { blocksize: 32, ..Nf4Options::default() }).unwrap();
    let options = LoraOptions { rank: 4, alpha: 8.0, targets: "all-linear".into(), rslora: false };
    model.attach_lora(&options, 1).unwrap();
    let named: Vec<_> = model.params.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
    for (i, (name, shape)) in named.iter().enumerate().filter(|(_, (n, _))| n.contains("lora_B")) {
        let values = normals(i as u64, shape.iter().product(), 0.05);
        let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
        model.params.set(name, shape, &values).unwrap();
    }
    model
}

/// Sequences on both sides of a page, a tile and a block of keys.
fn sequences() -> Vec<Vec<i32>> {
    let mut rng = Rng::new(11, Purpose::User, [0; 3]);
    let lengths = [2, 5, 16, 17, 33, 40, 3, 29];
    lengths.map(|n| (0..n).map(|_| rng.below(23) as i32).collect()).to_vec()
}

/// Log-probs of the token behind each row of `hidden`: the trainer's, checked against the op that
/// the sampler shares.
fn scored<T: Float>(model: &Decoder<T>, hidden: Vec<T>, targets: &[i32]) -> Vec<f32> {
    let allocator = &model.allocator;
    let (hidden, placed) =
        (allocator.copy_of(&hidden).unwrap(), allocator.copy_of(targets).unwrap());
    let scores = model
        .score(allocator, &hidden, &placed, 0.7, ScoreUse::LogProbs)
        .unwrap()
        .logp
        .to_host()
        .unwrap();
    let logits = model.logits(allocator, &hidden).unwrap();
    let mut logp = allocator.alloc::<f32>(targets.len()).unwrap();
    let vocab = model.config.vocab;
    let mut args = LogProb::new(logits.rows(vocab).unwrap(), placed.all(), logp.all_mut());
    args.transform.temperature = 0.7;
    logprob(&model.device, args).unwrap();
    assert_eq!(bits(&logp.to_host().unwrap()), bits(&scores), "sampler and trainer");
    scores
}

/// A call's rows for the log-probs they give: those that have a next token.
struct Rows {
    sequence: usize,
    tokens: Range<usize>,
}

/// Log-probs of tokens 1.. of each sequence, from one call's hidden states.
fn collect<T: Float>(
    model: &Decoder<T>,
    hidden: &[T],
    rows: &[Rows],
    all: &[Vec<i32>],
    out: &mut [Vec<f32>],
) {
    let d = model.config.hidden;
    let (mut picked, mut targets, mut at) = (Vec::new(), Vec::new(), 0);
    for r in rows {
        for t in r.tokens.clone() {
            if let Some(&next) = all[r.sequence].get(t + 1) {
                picked.extend_from_slice(&hidden[at * d..(at + 1) * d]);
                targets.push(next);
            }
            at += 1;
        }
    }
    if targets.is_empty() {
        return;
    }
    let mut logp = scored(model, picked, &targets).into_iter();
    for r in rows {
        let count = r.tokens.clone().filter(|&t| t + 1 < all[r.sequence].len()).count();
        out[r.sequence].extend(logp.by_ref().take(count));
    }
}

/// Whole sequences in one packed call, in this order.
fn whole<T: Float>(model: &Decoder<T>, all: &[Vec<i32>], order: &[usize]) -> Vec<Vec<f32>> {
    let packed = Packed::of(order.iter().map(|&i| all[i].as_slice()));
    let batch = packed.place(&model.allocator).unwrap();
    let hidden = model.forward(&batch, true, None, None).unwrap().to_host().unwrap();
    let rows: Vec<Rows> =
        order.iter().map(|&i| Rows { sequence: i, tokens: 0..all[i].len() }).collect();
    let mut out = vec![Vec::new(); all.len()];
    collect(model, &hidden, &rows, all, &mut out);
    out
}

/// Random pieces of random sequences in each call, against a cache whose pages are handed out in
/// another order every time; half of the time a sequence goes on from a fork of its prefix.
fn pieces<T: Float>(
    model: &Decoder<T>,
    all: &[Vec<i32>],
    order: &[usize],
    rng: &mut Rng,
) -> Vec<Vec<f32>> {
    let slots = 2 * all.len();
    let mut cache = KvCache::<T>::new(&model.config, &model.device, slots, 48).unwrap();
    let (mut done, mut slot) = (vec![0; all.len()], (0..all.len()).collect::<Vec<_>>());
    let mut out = vec![Vec::new(); all.len()];
    while order.iter().any(|&i| done[i] < all[i].len()) {
        let (mut packed, mut slots, mut rows) = (Packed::new(), Vec::new(), Vec::new());
        for &i in order {
            let left = all[i].len() - done[i];
            if left == 0 || rng.below(4) == 0 {
                continue;
            }
            if done[i] > 0 && slot[i] == i && rng.below(8) == 0 {
                cache.fork(&model.allocator, &[(all.len() + i, i)]).unwrap();
                cache.clear(i);
                slot[i] = all.len() + i;
            }
            let most = [1, 1, 3, 48][rng.below(4)];
            let count = 1 + rng.below(left.min(most));
            packed.push(&all[i][done[i]..done[i] + count], done[i]);
            slots.push(slot[i]);
            rows.push(Rows { sequence: i, tokens: done[i]..done[i] + count });
            done[i] += count;
        }
        if rows.is_empty() {
            continue;
        }
        let batch = cache.batch(&model.allocator, &packed, &slots).unwrap();
        let hidden = model.forward(&batch, true, Some(&mut cache), None).unwrap();
        collect(model, &hidden.to_host().unwrap(), &rows, all, &mut out);
    }
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn check<T: Float>(device: &Device, name: &str, arrangements: usize, head_dim: usize) {
    let (model, all) = (model::<T>(device, head_dim), sequences());
    let alone: Vec<Vec<f32>> =
        (0..all.len()).map(|i| whole(&model, &all, &[i]).swap_remove(i)).collect();
    assert!(alone.iter().zip(&all).all(|(logp, ids)| logp.len() + 1 == ids.len()));
    for case in 0..arrangements {
        let mut rng = Rng::new(5, Purpose::User, [case as u32, 0, 0]);
        let mut order: Vec<usize> = (0..all.len()).collect();
        rng.shuffle(&mut order);
        order.truncate(1 + rng.below(all.len()));
        let got = match case % 3 {
            0 => whole(&model, &all, &order),
            _ => pieces(&model, &all, &order, &mut rng),
        };
        for &i in &order {
            assert_eq!(bits(&got[i]), bits(&alone[i]), "{name}: arrangement {case}, sequence {i}");
        }
    }
}

#[test]
fn a_thousand_arrangements_give_the_same_log_probs() {
    check::<f32>(&Device::Cpu, "cpu f32", 700, 12);
    check::<bf16>(&Device::Cpu, "cpu bf16", 300, 12);
}

#[test]
fn arrangements_give_the_same_log_probs_on_a_gpu() {
    for executor in gpus() {
        check::<f32>(&executor.device, &format!("{} f32", executor.name), 5, 12);
        check::<bf16>(&executor.device, &format!("{} bf16", executor.name), 5, 64);
    }
}

/// What a cache refuses leaves it as it was.
#[test]
fn a_cache_refuses_what_it_cannot_hold() {
    let model = model::<f32>(&Device::Cpu, 12);
    let mut cache = KvCache::<f32>::with_pages(&model.config, &Device::Cpu, 3, 40, 3).unwrap();
    let mut extend = |slots: &[usize], lens: &[usize]| {
        let mut packed = Packed::new();
        slots.iter().zip(lens).for_each(|(&s, &n)| packed.push(&vec![1; n], cache.len(s)));
        let done = cache.batch(&model.allocator, &packed, slots).map(|_| ());
        (done.map_err(|e| e.to_string()), [0, 1, 2].map(|slot| cache.len(slot)))
    };
    assert_eq!(extend(&[0, 1], &[17, 3]), (Ok(()), [17, 3, 0]));
    for (slots, lens, text) in [
        (&[0usize, 0][..], &[1usize, 1][..], "slot 0 twice"),
        (&[3], &[1], "slot 3"),
        (&[0], &[24], "at most 40 tokens"),
        (&[2], &[1], "at most the 0 free pages"),
        (&[0, 1], &[16, 1], "at most the 0 free pages"),
    ] {
        let (done, lens) = extend(slots, lens);
        let message = done.unwrap_err();
        assert!(message.contains(text), "{message}");
        assert_eq!(lens, [17, 3, 0], "{text}");
    }
    let fork = |cache: &mut KvCache<f32>, slot, from| {
        cache.fork(&model.allocator, &[(slot, from)]).map_err(|e| e.to_string())
    };
    assert!(fork(&mut cache, 1, 0).unwrap_err().contains("not in use"));
    assert!(fork(&mut cache, 2, 7).unwrap_err().contains("slots below 3"));
    assert!(fork(&mut cache, 2, 0).unwrap_err().contains("free pages"), "the partial page");
    cache.clear(1);
    fork(&mut cache, 2, 0).unwrap();
    assert_eq!([0, 1, 2].map(|slot| cache.len(slot)), [17, 0, 17]);
    cache.clear(9);
}
