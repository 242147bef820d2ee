//! What the shipped kernels do on representative shapes, counted by the emulator, with the floor that
//! a model of an H200 puts under each. No figure here is a time on hardware.
//!
//!     cargo run --release --features emu --example kernel_report

mod decoder;
mod rows;

use std::sync::Arc;

use gradus::device::{DeviceBuffer, EmuDriver, Gpu};
use gradus::ops::*;
use gradus::quant::{Absmax, Nf4View, QuantType};
use gradus::{DType, Device, Result, ViewMut, bf16};
use gradus_emu::Counters;
use gradus_emu::report::H200;

/// A device whose launches are reported.
struct Bench {
    driver: Arc<EmuDriver>,
    gpu: Arc<Gpu>,
    device: Device,
}

impl Bench {
    fn new() -> Result<Bench> {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Arc::new(Gpu::new(driver.clone())?);
        Ok(Bench { driver, device: Device::Gpu(gpu.clone()), gpu })
    }

    /// Runs an op and prints what its launches counted together.
    fn report(
        &self,
        shape: &str,
        minimum: u64,
        run: impl FnOnce(&Device) -> Result<()>,
    ) -> Result<()> {
        self.driver.take_launches();
        run(&self.device)?;
        let launches = self.driver.take_launches();
        let mut total = Counters::default();
        launches.iter().for_each(|(_, counters)| total.add(counters));
        let names: Vec<&str> = launches.iter().map(|(name, _)| name.as_str()).collect();
        println!("{}", total.report(&format!("{} {shape}", names.join(" + ")), &H200).trim_end());
        let ratio = total.global_bytes() as f64 / minimum as f64;
        println!("  bytes          {ratio:.3} of the minimum of {minimum}\n");
        Ok(())
    }
}

fn main() -> Result<()> {
    let bench = Bench::new()?;
    rows::report(&bench)?;
    tokens(&bench)?;
    weights(&bench)?;
    decoder::report(&bench)
}

fn tokens(bench: &Bench) -> Result<()> {
    let (b, n) = (64usize, 1000usize);
    let logp: Vec<f32> = (0..b * n).map(|i| -((i % 13) as f32) * 0.1).collect();
    let offsets: Vec<i64> = (0..=b).map(|i| (i * n) as i64).collect();
    let weight = vec![1.0 / (b * n) as f32; b];
    let x = DeviceBuffer::from_host(&bench.gpu, &logp)?;
    let (cu, w) = (
        DeviceBuffer::from_host(&bench.gpu, &offsets)?,
        DeviceBuffer::from_host(&bench.gpu, &weight)?,
    );
    let mut dlogp = DeviceBuffer::<f32>::new(&bench.gpu, b * n)?;
    let (settings, mut loss) = (PolicySettings::default(), 0.0);
    bench.report("f32 64 x 1,000 tokens", (3 * 4 * b * n) as u64, |d| {
        let packed = [(b * n) as i64];
        policy_loss(
            d,
            PolicyLoss {
                old_logp: Some(x.view(&packed)?),
                ..PolicyLoss::new(
                    x.view(&packed)?,
                    Advantage::PerSequence(w.view(&[b as i64])?),
                    cu.view(&[b as i64 + 1])?,
                    w.view(&[b as i64])?,
                    &settings,
                    &mut loss,
                    dlogp.view_mut(&packed)?,
                )
            },
        )
    })?;
    let (groups, size) = (1024usize, 8usize);
    let reward: Vec<f32> = (0..groups * size).map(|i| (i * 7 % 5) as f32).collect();
    let offsets: Vec<i64> = (0..=groups).map(|i| (i * size) as i64).collect();
    let (reward, offsets) = (
        DeviceBuffer::from_host(&bench.gpu, &reward)?,
        DeviceBuffer::from_host(&bench.gpu, &offsets)?,
    );
    let mut advantage = DeviceBuffer::<f32>::new(&bench.gpu, groups * size)?;
    bench.report("f32 1,024 groups of 8", (8 * groups * size + 8 * groups) as u64, |d| {
        group_advantage(
            d,
            GroupAdvantage {
                reward: reward.view(&[(groups * size) as i64])?,
                offsets: offsets.view(&[groups as i64 + 1])?,
                length: None,
                settings: GroupSettings::default(),
                advantage: advantage.view_mut(&[(groups * size) as i64])?,
                groups: None,
            },
        )
    })
}

fn weights(bench: &Bench) -> Result<()> {
    let (n, k) = (512usize, 4096usize);
    let x: Vec<bf16> = (0..n * k).map(|i| bf16::from_f32((i % 401) as f32 * 0.01 - 2.0)).collect();
    let x = DeviceBuffer::from_host(&bench.gpu, &x)?;
    let (mut packed, mut absmax) = (
        DeviceBuffer::<u8>::new(&bench.gpu, n * k / 2)?,
        DeviceBuffer::<f32>::new(&bench.gpu, n * k / 64)?,
    );
    let shape = [n as i64, k as i64];
    bench.report("bf16 512 x 4,096", (n * k * 5 / 2 + n * k / 16) as u64, |d| {
        nf4_quantize(
            d,
            Nf4Quantize {
                x: x.view(&shape)?,
                quant_type: QuantType::Nf4,
                blocksize: 64,
                packed: packed.view_mut(&[(n * k / 2) as i64])?,
                absmax: absmax.view_mut(&[(n * k / 64) as i64])?,
            },
        )
    })?;
    let code = DeviceBuffer::from_host(&bench.gpu, QuantType::Nf4.code())?;
    let mut y = DeviceBuffer::<bf16>::new(&bench.gpu, n * k)?;
    bench.report("bf16 512 x 4,096", (n * k * 5 / 2 + n * k / 16) as u64, |d| {
        let w = Nf4View {
            packed: packed.view(&[(n * k / 2) as i64])?,
            absmax: Absmax::F32(absmax.view(&[(n * k / 64) as i64])?),
            code: code.view(&[16])?,
            n,
            k,
            blocksize: 64,
            dtype: DType::Bf16,
        };
        nf4_dequantize(d, Nf4Dequantize { w, y: y.view_mut(&shape)? })
    })?;
    adam(bench)
}

fn adam(bench: &Bench) -> Result<()> {
    let n = 1 << 20;
    let zeros = vec![0f32; n];
    let grad = DeviceBuffer::from_host(&bench.gpu, &vec![0.01f32; n])?;
    let fresh = || DeviceBuffer::from_host(&bench.gpu, &zeros);
    let (mut param, mut m, mut v) = (fresh()?, fresh()?, fresh()?);
    let mut outcome = AdamWOutcome::default();
    bench.report("f32 1,048,576", 32 * n as u64, |d| {
        let tensors = vec![AdamWTensor {
            param: full(&mut param)?,
            grad: grad.view(&[n as i64])?,
            m: full(&mut m)?,
            v: full(&mut v)?,
            mask: None,
        }];
        adamw(d, AdamW { tensors, settings: AdamWSettings::default(), outcome: &mut outcome })
    })
}

fn full(buffer: &mut DeviceBuffer<f32>) -> Result<ViewMut<'_, f32>> {
    let len = buffer.len() as i64;
    buffer.view_mut(&[len])
}
