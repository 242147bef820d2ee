//! Limits on what the emulator counts when an op runs.

use std::sync::Arc;

use gradus::device::{Buffer, DeviceBuffer, EmuDriver, Gpu, KernelSet};
use gradus::dtype::Element;
use gradus::ops::*;
use gradus::quant::{Absmax, Nf4View, QuantType};
use gradus::{DType, Device, Result, bf16};
use gradus_emu::Counters;

use super::{Gate, judge};
use crate::common::normals;

/// An emulated device with the kernels for sm_90a.
struct Counted {
    driver: Arc<EmuDriver>,
    gpu: Arc<Gpu>,
    device: Device,
}

impl Counted {
    fn new() -> Counted {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(KernelSet::Sm90a).unwrap();
        let gpu = Arc::new(gpu);
        Counted { driver, device: Device::Gpu(gpu.clone()), gpu }
    }

    /// The launches of a call.
    fn launches(&self, call: impl FnOnce(&Device) -> Result<()>) -> Vec<(String, Counters)> {
        self.driver.take_launches();
        call(&self.device).unwrap();
        self.driver.take_launches()
    }

    fn of<E: Element>(&self, data: &[E]) -> DeviceBuffer<E> {
        DeviceBuffer::from_host(&self.gpu, data).unwrap()
    }

    fn normal(&self, seed: u64, n: usize) -> Buffer<f32> {
        let data = normals(seed, n, 1.0).into_iter().map(|x| x as f32).collect();
        Buffer::from_vec(&self.device, data).unwrap()
    }
}

const PARAMETERS: usize = 40_000;

fn adamw_of(c: &Counted) -> Vec<(String, Counters)> {
    let n = PARAMETERS;
    let all = [n as i64];
    let (mut param, grad) = (c.normal(1, n), c.normal(2, n));
    let (mut m, mut v) = (c.normal(3, n), Buffer::of(&c.device, &vec![0.5f32; n]).unwrap());
    let mut outcome = AdamWOutcome::default();
    c.launches(|device| {
        let tensors = vec![AdamWTensor {
            param: param.view_mut(&all)?,
            grad: grad.view(&all)?,
            m: m.view_mut(&all)?,
            v: v.view_mut(&all)?,
            mask: None,
        }];
        adamw(device, AdamW { tensors, settings: AdamWSettings::default(), outcome: &mut outcome })
    })
}

fn adamw_8bit_of(c: &Counted) -> Vec<(String, Counters)> {
    let n = PARAMETERS / 256 * 256;
    let (all, blocks) = ([n as i64], [n as i64 / 256]);
    let (mut param, grad) = (c.normal(1, n), c.normal(2, n));
    let codes = || Buffer::of(&c.device, &vec![0u8; n]).unwrap();
    let maxima = || Buffer::of(&c.device, &vec![0f32; n / 256]).unwrap();
    let (mut m, mut v, mut m_absmax, mut v_absmax) = (codes(), codes(), maxima(), maxima());
    let mut outcome = AdamWOutcome::default();
    c.launches(|device| {
        let tensors = vec![AdamW8bitTensor {
            param: param.view_mut(&all)?,
            grad: grad.view(&all)?,
            m: m.view_mut(&all)?,
            v: v.view_mut(&all)?,
            m_absmax: m_absmax.view_mut(&blocks)?,
            v_absmax: v_absmax.view_mut(&blocks)?,
            mask: None,
        }];
        let settings = AdamWSettings::default();
        adamw_8bit(device, AdamW8bit { tensors, settings, outcome: &mut outcome })
    })
}

fn grad_norm_of(c: &Counted) -> Vec<(String, Counters)> {
    let (grad, mut norm) = (c.normal(1, PARAMETERS), GlobalNorm::default());
    c.launches(|device| {
        let grads = [grad.view(&[PARAMETERS as i64])?];
        grad_norm(device, GradNorm { grads: &grads, norm: &mut norm })
    })
}

fn policy_loss_of(c: &Counted) -> Vec<(String, Counters)> {
    let (sequences, length) = (64, 64);
    let n = sequences * length;
    let (logp, advantage, mut dlogp) = (c.normal(1, n), c.normal(2, sequences), c.normal(3, n));
    let cu: Vec<i64> = (0..=sequences).map(|i| (i * length) as i64).collect();
    let (cu, weight) = (c.of(&cu), c.of(&vec![1.0 / n as f32; sequences]));
    let settings = PolicySettings::default();
    let mut loss = 0.0;
    c.launches(|device| {
        let all = [n as i64];
        let args = PolicyLoss {
            old_logp: Some(logp.view(&all)?),
            ..PolicyLoss::new(
                logp.view(&all)?,
                Advantage::PerSequence(advantage.view(&[sequences as i64])?),
                cu.view(&[sequences as i64 + 1])?,
                weight.view(&[sequences as i64])?,
                &settings,
                &mut loss,
                dlogp.view_mut(&all)?,
            )
        };
        policy_loss(device, args)
    })
}

/// The most of a launch with as many blocks as the op has work for.
#[test]
fn blocks_meet_at_an_address_once() {
    let c = Counted::new();
    let mut found = Vec::new();
    for launches in [adamw_of(&c), adamw_8bit_of(&c), grad_norm_of(&c), policy_loss_of(&c)] {
        found
            .extend(launches.iter().map(|(k, n)| (k.clone(), n.serial_atomics.div_ceil(n.blocks))));
    }
    judge(Gate::AtomicsPerBlock, &found);
}

/// A tile of 128 x 128 outputs; blocks of a cluster share its depth.
fn tile_of(c: &Counted, k: usize, four_bit: bool, dx: bool) -> (String, Counters) {
    let n = 128;
    let (rows, long) = ([n as i64, n as i64], [n as i64, k as i64]);
    let x: Vec<bf16> = (0..n * k).map(|i| bf16::from_f32((i % 37) as f32 / 37.0)).collect();
    let (x, w) = (c.of(&x), c.of(&x));
    let small: Vec<bf16> = (0..n * n).map(|i| bf16::from_f32((i % 41) as f32 / 41.0)).collect();
    let (dy, mut y) = (c.of(&small), c.of(&small));
    let mut out = c.of(&vec![bf16::ZERO; n * k]);
    let packed: Vec<u8> = (0..n * k / 2).map(|i| (i % 251) as u8).collect();
    let (packed, absmax) = (c.of(&packed), c.of(&vec![0.5f32; n * k / 64]));
    let code = c.of(QuantType::Nf4.code());
    let launches = c.launches(|device| {
        let view = Nf4View {
            packed: packed.view(&[(n * k / 2) as i64])?,
            absmax: Absmax::F32(absmax.view(&[(n * k / 64) as i64])?),
            code: code.view(&[16])?,
            n,
            k,
            blocksize: 64,
            dtype: DType::Bf16,
        };
        let (bias, lora, adapter, s, residual) = (None, &[][..], None, None, None);
        if dx {
            let (dy, dx) = (dy.view(&rows)?, out.view_mut(&long)?);
            let args = Nf4MatmulDx { dy, w: view, lora, adapter, accumulate: false, dx };
            return nf4_matmul_dx(device, args);
        }
        let (x, y) = (x.view(&long)?, y.view_mut(&rows)?);
        if four_bit {
            let args = Nf4Matmul { x, w: view, bias, lora, adapter, s, residual, y };
            return nf4_matmul(device, args);
        }
        matmul(device, Matmul { x, w: w.view(&long)?, bias, lora, adapter, s, residual, y })
    });
    launches.into_iter().next_back().unwrap()
}

/// The busiest warp of a tile, between two depths: what a stage of 64 more steps costs it.
#[test]
fn a_stage_of_a_tile_takes_no_longer_than_its_products() {
    let c = Counted::new();
    let mut found = Vec::new();
    for four_bit in [false, true] {
        let [short, long] = [2048, 4096].map(|k| tile_of(&c, k, four_bit, false));
        assert_eq!(short.0, long.0);
        let [short_count, long_count] = [short.1, long.1].map(|n| (n.longest_warp, n.blocks));
        assert_eq!((short_count.1, long_count.1), (8, 8), "a cluster of 8 has a chunk each");
        found.push((short.0, (long_count.0 - short_count.0).div_ceil(4)));
    }
    judge(Gate::InstructionsPerStage, &found);
}
