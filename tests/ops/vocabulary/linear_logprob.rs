//! What the fused head costs on tensor cores: products, launches and memory.

use std::sync::Arc;

use crate::common::normals;
use gradus::device::{Call, DeviceBuffer, EmuDriver, Gpu, KernelSet, RecordingDriver};
use gradus::ops::*;
use gradus::{Device, bf16};
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
