//! The fused head beside the product and the log-prob that it is made of, and what it costs on tensor cores: products,
//! launches and memory.

use std::sync::Arc;

use super::logprob::oracle::{oracle, stats};
use crate::common::devices::on_all;
use crate::common::{bits_of, max_rel, normals};
use crate::products::support::random;
use gradus::device::{Call, DeviceBuffer, EmuDriver, Gpu, KernelSet, RecordingDriver};
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Device, View, ViewMut, bf16, f16};
use gradus_emu::Counters;

/// Tokens, hidden size, vocabulary: whole tiles, so that no product multiplies padding.
const T: usize = 256;
const H: usize = 128;
const V: usize = 512;

/// Which calls to make.
#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Forward,
    Score,
    Backward,
    Trained,
}

/// Operands in device memory.
struct Operands {
    hidden: DeviceBuffer<bf16>,
    head: DeviceBuffer<bf16>,
    targets: DeviceBuffer<i32>,
    dlogp: DeviceBuffer<f32>,
    logp: DeviceBuffer<f32>,
    dhidden: DeviceBuffer<bf16>,
    dweight: DeviceBuffer<f32>,
}

impl Operands {
    fn new(gpu: &Arc<Gpu>) -> Operands {
        let half = |seed, n| {
            let narrow = |&x: &f64| bf16::from_f32(x as f32);
            let x: Vec<bf16> = normals(seed, n, 0.3).iter().map(narrow).collect();
            DeviceBuffer::from_host(gpu, &x).unwrap()
        };
        let targets: Vec<i32> = (0..T).map(|t| (t * 37 % V) as i32).collect();
        Operands {
            hidden: half(1, T * H),
            head: half(2, V * H),
            targets: DeviceBuffer::from_host(gpu, &targets).unwrap(),
            dlogp: DeviceBuffer::from_host(gpu, &[1f32; T]).unwrap(),
            logp: DeviceBuffer::new(gpu, T).unwrap(),
            dhidden: DeviceBuffer::new(gpu, T * H).unwrap(),
            dweight: DeviceBuffer::from_host(gpu, &vec![0f32; V * H]).unwrap(),
        }
    }

    fn run(&mut self, gpu: &Arc<Gpu>, pass: Pass) {
        let device = Device::Gpu(gpu.clone());
        let (rows, width, shape) = ([T as i64], [T as i64, H as i64], [V as i64, H as i64]);
        let head = Head::Dense(self.head.view(&shape).unwrap());
        let hidden = self.hidden.view(&width).unwrap();
        let targets = self.targets.view(&rows).unwrap();
        let dhidden = self.dhidden.view_mut(&width).unwrap();
        if matches!(pass, Pass::Forward | Pass::Score) {
            let score = (pass == Pass::Score).then_some(dhidden);
            let logp = self.logp.view_mut(&rows).unwrap();
            let args = LinearLogProb { score, ..LinearLogProb::new(hidden, head, targets, logp) };
            return linear_logprob(&device, args).unwrap();
        }
        let dweight = (pass == Pass::Trained).then(|| self.dweight.view_mut(&shape).unwrap());
        let args = LinearLogProbBwd {
            hidden,
            head,
            lora: &[],
            targets,
            vocab: V as i64,
            transform: LogitTransform::default(),
            dlogp: self.dlogp.view(&rows).unwrap(),
            dentropy: None,
            dhidden,
            dweight,
        };
        linear_logprob_bwd(&device, args).unwrap();
    }
}

fn counted(set: KernelSet, pass: Pass) -> Counters {
    let driver = Arc::new(EmuDriver::new());
    let gpu = Arc::new(Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap());
    let mut operands = Operands::new(&gpu);
    operands.run(&gpu, pass);
    let mut total = Counters::default();
    driver.take_launches().iter().for_each(|(_, counters)| total.add(counters));
    total
}

/// With the score vectors kept, a frozen head costs 4·T·H·V flops and its backward pass none; two
/// multiply-adds a flop pair, all of them on tensor cores.
#[test]
fn a_score_costs_four_flops_a_weight_and_token() {
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        for (pass, flops) in
            [(Pass::Forward, 2), (Pass::Score, 4), (Pass::Backward, 4), (Pass::Trained, 6)]
        {
            let macs = counted(set, pass).mma_macs as usize;
            assert_eq!(2 * macs, flops * T * H * V, "{set:?} {flops}");
        }
    }
}

/// What the query says is what a call takes: reserved beforehand, a call allocates nothing as large.
#[test]
fn the_workspace_is_known_beforehand() {
    for (pass, gradients) in
        [(Pass::Forward, false), (Pass::Score, true), (Pass::Backward, true), (Pass::Trained, true)]
    {
        let bytes = linear_logprob_workspace::<bf16>(T, V, gradients);
        assert_eq!(bytes, 2 * T * V * if gradients { 2 } else { 1 });
        for reserved in [false, true] {
            let driver = Arc::new(RecordingDriver::new(Arc::new(EmuDriver::new())));
            let gpu = Arc::new(Gpu::new(driver.clone()).unwrap());
            let mut operands = Operands::new(&gpu);
            if reserved {
                gpu.reserve_workspace(bytes).unwrap();
            }
            driver.take();
            operands.run(&gpu, pass);
            let large = |call: &Call| matches!(call, Call::Alloc(n) if *n >= bytes);
            assert_eq!(driver.take().iter().any(large), !reserved, "{gradients} {reserved}");
        }
    }
}

/// An element of the head's gradient by its definition in f64: dW[v] = Σ_t g_t (1[v = y] − q_v)/τ · h_t, with the
/// element's column of the hidden states.
fn weight_gradient(
    logits: &[f32],
    targets: &[i32],
    g: &[f32],
    hidden: &[f32],
    temperature: f64,
    token: usize,
) -> f64 {
    let term = |(i, row): (usize, &[f32])| {
        let z: Vec<f64> = row.iter().map(|&x| x as f64 / temperature).collect();
        let (logp, _, _) = oracle(&z, token);
        let hit = (targets[i] == token as i32) as u8 as f64;
        g[i] as f64 * (hit - logp.exp()) / temperature * hidden[i] as f64
    };
    logits.chunks_exact(logits.len() / targets.len()).enumerate().map(term).sum()
}

/// The fused head equals the product followed by the log-prob bit for bit; its score vector is the
/// gradient, and scaling it gives the backward pass.
#[test]
fn linear_logprob_is_matmul_then_logprob() {
    let (n, h, v) = (37, 24, 301);
    let f = |seed, len, scale| -> Vec<f32> {
        normals(seed, len, scale).iter().map(|&x| x as f32).collect()
    };
    let (hidden, w, g) = (f(1, n * h, 1.0), f(2, v * h, 0.3), f(3, n, 1.0));
    let targets: Vec<i32> = (0..n as i32).map(|i| (i * 31) % v as i32).collect();
    let (x, head) = (View::rows_of(&hidden, h).unwrap(), View::rows_of(&w, h).unwrap());
    let mut logits = vec![0f32; n * v];
    let y = ViewMut::rows_of(&mut logits, v).unwrap();
    let product =
        Matmul { x, w: head, bias: None, lora: &[], adapter: None, s: None, residual: None, y };
    matmul(&Device::Cpu, product).unwrap();
    let t = LogitTransform { temperature: 0.8, ..Default::default() };
    let want = stats(&logits, v, &targets, t);
    let (mut logp, mut score) = (vec![0f32; n], vec![0f32; n * h]);
    let args = LinearLogProb {
        transform: t,
        score: Some(ViewMut::rows_of(&mut score, h).unwrap()),
        ..LinearLogProb::new(x, Head::Dense(head), (&targets).into(), (&mut logp).into())
    };
    linear_logprob(&Device::Cpu, args).unwrap();
    assert_eq!(logp, want.logp);
    let (mut dhidden, mut dweight) = (vec![0f32; n * h], vec![0f32; v * h]);
    let args = LinearLogProbBwd {
        hidden: x,
        head: Head::Dense(head),
        lora: &[],
        targets: (&targets).into(),
        vocab: v as i64,
        transform: t,
        dlogp: (&g).into(),
        dentropy: None,
        dhidden: ViewMut::rows_of(&mut dhidden, h).unwrap(),
        dweight: Some(ViewMut::rows_of(&mut dweight, h).unwrap()),
    };
    linear_logprob_bwd(&Device::Cpu, args).unwrap();
    let mut scaled = vec![0f32; n * h];
    let args = ScoreScale {
        score: View::rows_of(&score, h).unwrap(),
        dlogp: (&g).into(),
        dhidden: ViewMut::rows_of(&mut scaled, h).unwrap(),
    };
    score_scale(&Device::Cpu, args).unwrap();
    let wide = |x: &[f32]| x.iter().map(|&x| x as f64).collect::<Vec<_>>();
    let (a, b) = (wide(&scaled), wide(&dhidden));
    assert!(max_rel(&a, &b, 0.1) < 1e-5);
    for column in [0, 17, 300] {
        for j in [0, h - 1] {
            let hidden: Vec<f32> = hidden.iter().skip(j).step_by(h).copied().collect();
            let exact = weight_gradient(&logits, &targets, &g, &hidden, 0.8, column);
            let got = dweight[column * h + j] as f64;
            assert!((got - exact).abs() < 1e-5 * exact.abs().max(0.1), "{got} {exact}");
        }
    }
}

fn scales<T: Float>() {
    let (t, d) = (7, 10);
    let (score, held, dlogp) = (random::<T>(2, t * d), random::<T>(1, t * d), [0.5f32; 7]);
    let run = |device: &Device| {
        let mut dhidden = held.clone();
        let args = ScoreScale {
            score: View::rows_of(&score, d).unwrap(),
            dlogp: dlogp[..].into(),
            dhidden: ViewMut::rows_of(&mut dhidden, d).unwrap(),
        };
        score_scale(device, args).unwrap();
        bits_of(&dhidden)
    };
    on_all(run, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name} {}", T::DTYPE.name()));
}

#[test]
fn scores_in_other_dtypes_have_the_bits_of_the_cpu() {
    scales::<f16>();
    scales::<bf16>();
    scales::<f64>();
}
