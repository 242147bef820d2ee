//! AdamW with 32-bit and with 8-bit state.

use crate::common::devices::{executors, on_all};
use crate::common::{bits, in_pool, max_rel, normals_f32, refused};
use gradus::ops::*;
use gradus::quant::dynamic_map;
use gradus::{Device, View, ViewMut, bf16};

const CPU: Device = Device::Cpu;

/// One parameter with 32-bit state.
#[derive(Clone, Debug, PartialEq)]
struct State {
    param: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
}

impl State {
    fn new(param: Vec<f32>) -> State {
        let n = param.len();
        State { param, m: vec![0.0; n], v: vec![0.0; n] }
    }

    fn tensor<'a>(&'a mut self, grad: &'a [f32], mask: Option<&'a [u8]>) -> AdamWTensor<'a> {
        AdamWTensor {
            param: (&mut self.param).into(),
            grad: grad.into(),
            m: (&mut self.m).into(),
            v: (&mut self.v).into(),
            mask: mask.map(View::from),
        }
    }

    /// On every executor, all with the same bits.
    fn step(&mut self, grad: &[f32], mask: Option<&[u8]>, settings: AdamWSettings) -> AdamWOutcome {
        let on = |device: &Device| {
            let (mut state, mut outcome) = (self.clone(), AdamWOutcome::default());
            let tensors = vec![state.tensor(grad, mask)];
            adamw(device, AdamW { tensors, settings, outcome: &mut outcome }).unwrap();
            (state, outcome)
        };
        let (state, outcome) = on_all(on, |name, cpu, gpu| {
            assert!(cpu == gpu, "{name}: {:?} against {:?}", gpu.1, cpu.1);
        });
        *self = state;
        outcome
    }
}

fn settings(step: u64) -> AdamWSettings {
    AdamWSettings { lr: 3e-3, weight_decay: 0.05, step, ..AdamWSettings::default() }
}

/// The documented arithmetic, written out for one element; constants from f64.
fn reference(s: &AdamWSettings, p: f32, grad: f32, m: f32, v: f32) -> (f32, f32, f32) {
    let (mut b1, mut b2) = (1.0, 1.0);
    for _ in 0..s.step {
        b1 *= s.beta1;
        b2 *= s.beta2;
    }
    let (step, decay) = ((s.lr / (1.0 - b1)) as f32, (s.lr * s.weight_decay) as f32);
    let root = (1.0 / f64::sqrt(1.0 - b2)) as f32;
    let g = s.grad_scale as f32 * grad;
    let m = f32::mul_add(s.beta1 as f32, m, (1.0 - s.beta1) as f32 * g);
    let v = f32::mul_add(s.beta2 as f32, v, ((1.0 - s.beta2) as f32 * g) * g);
    let q = m / f32::mul_add(v.sqrt(), root, s.eps as f32);
    let decayed = match s.decay {
        DecayOrder::Before => p,
        DecayOrder::After => f32::mul_add(-step, q, p),
    };
    let p = p - f32::mul_add(step, q, decay * decayed);
    (p, m, v)
}

#[test]
fn adamw_is_the_documented_arithmetic_bit_for_bit() {
    for decay in [DecayOrder::Before, DecayOrder::After] {
        let mut state = State::new(normals_f32(1, 5000, 1.0));
        // Up to step 4 repeated multiplication and squaring give the same power.
        for step in 1..4 {
            let grad = normals_f32(10 + step, 5000, 0.3);
            let s = AdamWSettings { decay, grad_scale: 0.37, ..settings(step) };
            let before = state.clone();
            let outcome = state.step(&grad, None, s);
            assert_eq!(outcome.updated, 5000);
            for (i, &g) in grad.iter().enumerate() {
                let want = reference(&s, before.param[i], g, before.m[i], before.v[i]);
                assert_eq!((state.param[i], state.m[i], state.v[i]), want, "element {i}");
            }
        }
    }
}

/// torch's AdamW in f64 over 50 steps.
#[test]
fn adamw_follows_the_f64_formula_for_50_steps() {
    for decay in [DecayOrder::Before, DecayOrder::After] {
        let n = 700;
        let mut state = State::new(normals_f32(2, n, 1.0));
        let mut p: Vec<f64> = state.param.iter().map(|&x| x as f64).collect();
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        for t in 1..=50 {
            let grad = normals_f32(100 + t, n, 1.0);
            let s = AdamWSettings { decay, ..settings(t) };
            state.step(&grad, None, s);
            let keep = 1.0 - s.lr * s.weight_decay;
            for i in 0..n {
                let g = grad[i] as f64;
                m[i] = s.beta1 * m[i] + (1.0 - s.beta1) * g;
                v[i] = s.beta2 * v[i] + (1.0 - s.beta2) * g * g;
                let m_hat = m[i] / (1.0 - s.beta1.powi(t as i32));
                let v_hat = v[i] / (1.0 - s.beta2.powi(t as i32));
                let update = s.lr * m_hat / (v_hat.sqrt() + s.eps);
                p[i] = match decay {
                    DecayOrder::Before => p[i] * keep - update,
                    DecayOrder::After => (p[i] - update) * keep,
                };
            }
        }
        let got: Vec<f64> = state.param.iter().map(|&x| x as f64).collect();
        let worst = max_rel(&got, &p, 1.0);
        assert!(worst < 1e-6, "{decay:?}: {worst}");
        let m32: Vec<f64> = state.m.iter().map(|&x| x as f64).collect();
        assert!(max_rel(&m32, &m, 1e-2) < 1e-5);
    }
}

#[test]
fn adamw_writes_nothing_if_a_gradient_is_not_finite() {
    let (good, mut bad) = (normals_f32(3, 300, 1.0), normals_f32(4, 9000, 1.0));
    for (value, at) in [(f32::NAN, 8999), (f32::INFINITY, 0), (f32::NEG_INFINITY, 4096)] {
        bad.copy_from_slice(&normals_f32(4, 9000, 1.0));
        bad[at] = value;
        for executor in executors() {
            let mut a = State::new(vec![1.0; 300]);
            let mut b = State::new(normals_f32(5, 9000, 1.0));
            let before = (a.clone(), b.clone());
            let mut outcome = AdamWOutcome::default();
            let tensors = vec![a.tensor(&good, None), b.tensor(&bad, None)];
            let args = AdamW { tensors, settings: settings(1), outcome: &mut outcome };
            adamw(&executor.device, args).unwrap();
            assert_eq!(outcome.non_finite, Some((1, at)), "{}", executor.name);
            assert_eq!(outcome.updated, 0);
            assert_eq!((a, b), before);
        }
    }
    // A finite gradient whose square is not finite in f32 would stop its element for good.
    let mut state = State::new(vec![1.0]);
    assert_eq!(state.step(&[1e30], None, settings(1)).non_finite, Some((0, 0)));
    assert_eq!(state, State::new(vec![1.0]));
}

/// Masked elements keep every bit even where their gradient is NaN; the others do not notice.
#[test]
fn adamw_skips_masked_elements() {
    let n = 4500;
    let mask: Vec<u8> = (0..n).map(|i| (i % 3 != 0) as u8 * 7).collect();
    let mut grad = normals_f32(6, n, 1.0);
    let mut free = State::new(normals_f32(7, n, 1.0));
    let mut masked = free.clone();
    let start = free.clone();
    free.step(&grad, None, settings(1));
    grad[0] = f32::NAN;
    let outcome = masked.step(&grad, Some(&mask), settings(1));
    assert_eq!((outcome.non_finite, outcome.updated), (None, 3000));
    for (i, &on) in mask.iter().enumerate() {
        let want = if on != 0 { &free } else { &start };
        assert_eq!(
            (masked.param[i], masked.m[i], masked.v[i]),
            (want.param[i], want.m[i], want.v[i])
        );
    }
}

#[test]
fn adamw_counts_unchanged_and_absorbed_updates() {
    // |Δ| = lr on the first step: a bf16 weight surely absorbs it above 512·lr, never below 256·lr.
    let lr = 2f64.powi(-10);
    let mut state = State::new(vec![0.625, -0.625, 0.125, -0.125, 1e9, 0.0]);
    let s = AdamWSettings { lr, weight_decay: 0.0, ..settings(1) };
    let outcome = state.step(&[1.0, -1.0, 1.0, -1.0, 1.0, 0.0], None, s);
    let counts = (outcome.updated, outcome.unchanged, outcome.absorbed_bf16);
    assert_eq!(counts, (6, 2, 2));

    let before = normals_f32(8, 3000, 0.3);
    let mut state = State::new(before.clone());
    let outcome = state.step(&normals_f32(9, 3000, 1.0), None, settings(1));
    let pairs = || before.iter().zip(&state.param);
    let absorbed =
        pairs().filter(|(a, b)| a != b && bf16::from_f32(**a) == bf16::from_f32(**b)).count();
    assert_eq!(outcome.unchanged, pairs().filter(|(a, b)| a == b).count() as u64);
    assert_eq!(outcome.absorbed_bf16, absorbed as u64);
    assert!(absorbed > 0);
}

/// One call over many tensors is the same as a call each, on any number of threads.
#[test]
fn adamw_does_not_depend_on_company_or_threads() {
    let sizes = [1, 4095, 4096, 4097, 0, 20_000];
    let grads: Vec<Vec<f32>> = sizes.iter().map(|&n| normals_f32(n as u64 + 1, n, 1.0)).collect();
    let start: Vec<State> =
        sizes.iter().map(|&n| State::new(normals_f32(n as u64 + 50, n, 1.0))).collect();
    let together = |threads| {
        in_pool(threads, || {
            let on = |device: &Device| {
                let (mut states, mut outcome) = (start.clone(), AdamWOutcome::default());
                let pairs = states.iter_mut().zip(&grads);
                let tensors = pairs.map(|(s, g)| s.tensor(g, None)).collect();
                let args = AdamW { tensors, settings: settings(3), outcome: &mut outcome };
                adamw(device, args).unwrap();
                (states, outcome)
            };
            on_all(on, |name, cpu, gpu| assert!(cpu == gpu, "{name}"))
        })
    };
    let (mut alone, mut total) = (start.clone(), AdamWOutcome::default());
    for (state, grad) in alone.iter_mut().zip(&grads) {
        let outcome = state.step(grad, None, settings(3));
        total.updated += outcome.updated;
        total.unchanged += outcome.unchanged;
        total.absorbed_bf16 += outcome.absorbed_bf16;
    }
    assert_eq!(total.updated, sizes.iter().sum::<usize>() as u64);
    for threads in [1, 2, 4, 7] {
        assert_eq!(together(threads), (alone.clone(), total), "{threads} threads");
    }
}

#[test]
fn adamw_refuses_bad_arguments() {
    let base = AdamWSettings::default();
    let call = |s: AdamWSettings, arg: &str| {
        let (mut state, mut outcome) = (State::new(vec![1.0; 4]), AdamWOutcome::default());
        let tensors = vec![state.tensor(&[1.0; 4], None)];
        refused(adamw(&CPU, AdamW { tensors, settings: s, outcome: &mut outcome }), arg);
        assert_eq!(state, State::new(vec![1.0; 4]));
        let tensors = vec![];
        refused(adamw_8bit(&CPU, AdamW8bit { tensors, settings: s, outcome: &mut outcome }), arg);
    };
    for bad in [f64::NAN, f64::INFINITY, -1.0] {
        call(AdamWSettings { lr: bad, ..base }, "lr");
        call(AdamWSettings { beta1: bad, ..base }, "beta1");
        call(AdamWSettings { beta2: bad, ..base }, "beta2");
        call(AdamWSettings { eps: bad, ..base }, "eps");
        call(AdamWSettings { weight_decay: bad, ..base }, "weight_decay");
        call(AdamWSettings { grad_scale: bad, ..base }, "grad_scale");
    }
    call(AdamWSettings { lr: 1e300, ..base }, "lr");
    call(AdamWSettings { beta1: 1.0, ..base }, "beta1");
    call(AdamWSettings { beta2: 1.0, ..base }, "beta2");
    call(AdamWSettings { eps: 0.0, ..base }, "eps");
    call(AdamWSettings { eps: 1e-60, ..base }, "eps");
    call(AdamWSettings { weight_decay: 1e60, ..base }, "weight_decay");
    call(AdamWSettings { grad_scale: 1e39, ..base }, "grad_scale");
    call(AdamWSettings { step: 0, ..base }, "step");

    let (ok, short) = (vec![1f32; 4], vec![1f32; 3]);
    let call = |grad: &[f32], m: usize, v: usize, mask: usize, arg: &str| {
        let (mut p, mut m, mut v) = (vec![1f32; 4], vec![0f32; m], vec![0f32; v]);
        let (mask, mut outcome) = (vec![1u8; mask], AdamWOutcome::default());
        let tensor = AdamWTensor {
            param: (&mut p).into(),
            grad: grad.into(),
            m: (&mut m).into(),
            v: (&mut v).into(),
            mask: Some((&mask).into()),
        };
        let args = AdamW { tensors: vec![tensor], settings: base, outcome: &mut outcome };
        refused(adamw(&CPU, args), arg);
        assert_eq!(p, vec![1f32; 4]);
    };
    call(&short, 4, 4, 4, "tensors[0].grad");
    call(&ok, 3, 4, 4, "tensors[0].m");
    call(&ok, 4, 5, 4, "tensors[0].v");
    call(&ok, 4, 4, 3, "tensors[0].mask");
    let mut gaps = vec![1f32; 7];
    let mut state = State::new(vec![1.0; 4]);
    let mut outcome = AdamWOutcome::default();
    let mut tensor = state.tensor(&ok, None);
    tensor.param = ViewMut::strided(&mut gaps, &[4], &[2]).unwrap();
    let args = AdamW { tensors: vec![tensor], settings: base, outcome: &mut outcome };
    refused(adamw(&CPU, args), "tensors[0].param");
}

/// One parameter with 8-bit state.
#[derive(Clone, Debug, PartialEq)]
struct State8 {
    param: Vec<f32>,
    m: Vec<u8>,
    v: Vec<u8>,
    m_absmax: Vec<f32>,
    v_absmax: Vec<f32>,
}

impl State8 {
    fn new(param: Vec<f32>) -> State8 {
        let (n, blocks) = (param.len(), param.len().div_ceil(256));
        let (m, m_absmax) = (vec![0; n], vec![0.0; blocks]);
        State8 { param, v: m.clone(), v_absmax: m_absmax.clone(), m, m_absmax }
    }

    fn tensor<'a>(&'a mut self, grad: &'a [f32], mask: Option<&'a [u8]>) -> AdamW8bitTensor<'a> {
        AdamW8bitTensor {
            param: (&mut self.param).into(),
            grad: grad.into(),
            m: (&mut self.m).into(),
            v: (&mut self.v).into(),
            m_absmax: (&mut self.m_absmax).into(),
            v_absmax: (&mut self.v_absmax).into(),
            mask: mask.map(View::from),
        }
    }

    /// On every executor, all with the same bits.
    fn step(&mut self, grad: &[f32], mask: Option<&[u8]>, settings: AdamWSettings) -> AdamWOutcome {
        let on = |device: &Device| {
            let (mut state, mut outcome) = (self.clone(), AdamWOutcome::default());
            let tensors = vec![state.tensor(grad, mask)];
            adamw_8bit(device, AdamW8bit { tensors, settings, outcome: &mut outcome }).unwrap();
            (state, outcome)
        };
        let (state, outcome) = on_all(on, |name, cpu, gpu| {
            assert!(cpu == gpu, "{name}: {:?} against {:?}", gpu.1, cpu.1);
        });
        *self = state;
        outcome
    }

    fn decoded(&self) -> State {
        let decode = |codes: &[u8], absmax: &[f32], signed| {
            let value = |(i, &c): (usize, &u8)| dynamic_map(signed)[c as usize] * absmax[i / 256];
            codes.iter().enumerate().map(value).collect()
        };
        State {
            param: self.param.clone(),
            m: decode(&self.m, &self.m_absmax, true),
            v: decode(&self.v, &self.v_absmax, false),
        }
    }
}

/// Each step is the 32-bit step on the decoded state, and the new state is the nearest code, found
/// here by search over the whole map.
#[test]
fn adamw_8bit_is_adamw_on_decoded_state() {
    let n = 1000;
    let mut state = State8::new(normals_f32(20, n, 1.0));
    for t in 1..=8 {
        let mut grad = normals_f32(30 + t, n, 0.1);
        // Far below the smallest entry of the map: zero is nearest, whatever the sign.
        grad.iter_mut().step_by(50).for_each(|g| *g *= 1e-9);
        let mut wide = state.decoded();
        let outcome = state.step(&grad, None, settings(t));
        assert_eq!(wide.step(&grad, None, settings(t)), outcome);
        assert_eq!(bits(&state.param), bits(&wide.param));
        for (values, codes, absmax, signed) in [
            (&wide.m, &state.m, &state.m_absmax, true),
            (&wide.v, &state.v, &state.v_absmax, false),
        ] {
            for (block, values) in values.chunks(256).enumerate() {
                let max = values.iter().fold(0f32, |m, x| m.max(x.abs()));
                assert_eq!(absmax[block], max);
                for (i, &x) in values.iter().enumerate() {
                    let code = codes[block * 256 + i];
                    check_code(x, x as f64 / max as f64, code, dynamic_map(signed));
                }
            }
        }
    }
}

fn check_code(x: f32, scaled: f64, code: u8, map: &[f32; 256]) {
    let distance = |c: f32| (scaled - c as f64).abs();
    let chosen = map[code as usize];
    if x < 0.0 && chosen < 0.0 && map[code as usize + 1] == 0.0 {
        return; // kept its sign: zero may be nearer
    }
    let best = map.iter().map(|&c| distance(c)).fold(f64::INFINITY, f64::min);
    assert!(distance(chosen) <= best + 1e-7 * scaled.abs(), "{scaled} got {chosen}");
    assert!(x >= 0.0 || chosen < 0.0, "{x} lost its sign");
}

/// 8-bit state reaches the minimum of a quadratic as 32-bit state does.
#[test]
fn adamw_8bit_optimizes_like_adamw() {
    let target = normals_f32(40, 600, 1.0);
    let (mut narrow, mut wide) = (State8::new(vec![0.0; 600]), State::new(vec![0.0; 600]));
    let gradient = |p: &[f32]| -> Vec<f32> { p.iter().zip(&target).map(|(a, b)| a - b).collect() };
    let loss = |p: &[f32]| gradient(p).iter().map(|d| (d * d) as f64).sum::<f64>();
    for t in 1..=400 {
        let s = AdamWSettings { lr: 0.02, weight_decay: 0.0, step: t, ..AdamWSettings::default() };
        let (a, b) = (gradient(&narrow.param), gradient(&wide.param));
        narrow.step(&a, None, s);
        wide.step(&b, None, s);
    }
    let (start, narrow, wide) = (loss(&[0.0; 600]), loss(&narrow.param), loss(&wide.param));
    assert!(narrow < 1e-3 * start && wide < 1e-3 * start, "{start} -> {narrow}, {wide}");
}

#[test]
fn adamw_8bit_masks_stops_and_is_thread_invariant() {
    let (n, start) = (5000, State8::new(normals_f32(41, 5000, 1.0)));
    let mut grad = normals_f32(42, n, 1.0);
    let run = |threads| {
        in_pool(threads, || {
            let mut state = start.clone();
            state.step(&grad, None, settings(1));
            state.step(&grad, None, settings(2));
            state
        })
    };
    let one = run(1);
    for threads in [2, 4, 7] {
        assert_eq!(one, run(threads), "{threads} threads");
    }
    let mask: Vec<u8> = (0..n).map(|i| (i % 2) as u8).collect();
    let mut masked = start.clone();
    grad[4000] = f32::NAN;
    assert_eq!(masked.step(&grad, Some(&mask), settings(1)).updated, 2500);
    let kept = (0..n).step_by(2).all(|i| masked.param[i] == start.param[i]);
    assert!(kept && masked.param[1] != start.param[1]);
    let before = masked.clone();
    assert_eq!(masked.step(&grad, None, settings(2)).non_finite, Some((0, 4000)));
    assert_eq!(masked, before);
}

#[test]
fn adamw_8bit_refuses_bad_shapes() {
    let call = |lens: [usize; 6], arg: &str| {
        let [grad, m, v, m_absmax, v_absmax, mask] = lens;
        let (mut p, grad, mut outcome) = (vec![1f32; 300], vec![1f32; grad], Default::default());
        let (mut m, mut v, mask) = (vec![0u8; m], vec![0u8; v], vec![1u8; mask]);
        let (mut m_absmax, mut v_absmax) = (vec![0f32; m_absmax], vec![0f32; v_absmax]);
        let tensors = vec![AdamW8bitTensor {
            param: (&mut p).into(),
            grad: (&grad).into(),
            m: (&mut m).into(),
            v: (&mut v).into(),
            m_absmax: (&mut m_absmax).into(),
            v_absmax: (&mut v_absmax).into(),
            mask: Some((&mask).into()),
        }];
        let args = AdamW8bit { tensors, settings: settings(1), outcome: &mut outcome };
        refused(adamw_8bit(&CPU, args), arg);
        assert_eq!(p, vec![1f32; 300]);
    };
    call([299, 300, 300, 2, 2, 300], "tensors[0].grad");
    call([300, 299, 300, 2, 2, 300], "tensors[0].m");
    call([300, 300, 301, 2, 2, 300], "tensors[0].v");
    call([300, 300, 300, 1, 2, 300], "tensors[0].m_absmax");
    call([300, 300, 300, 2, 3, 300], "tensors[0].v_absmax");
    call([300, 300, 300, 2, 2, 1], "tensors[0].mask");
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        for field in ["m_absmax", "v_absmax"] {
            let mut state = State8::new(vec![1.0; 300]);
            let maxima =
                if field == "m_absmax" { &mut state.m_absmax } else { &mut state.v_absmax };
            maxima[1] = bad;
            let before = bits(&state.param);
            let (mut outcome, grad) = (AdamWOutcome::default(), vec![1f32; 300]);
            let tensors = vec![state.tensor(&grad, None)];
            let args = AdamW8bit { tensors, settings: settings(1), outcome: &mut outcome };
            refused(adamw_8bit(&CPU, args), &format!("tensors[0].{field}"));
            assert_eq!(bits(&state.param), before);
        }
    }
}
