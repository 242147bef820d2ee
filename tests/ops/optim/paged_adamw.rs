//! AdamW with moments in host memory: the bits of the resident optimizer for every size of a chunk
//! and every order in which two streams may run, in a bounded amount of device memory.

use std::sync::Arc;

use crate::common::normals;
use gradus::device::fault::{Fault, FaultDriver};
use gradus::device::{
    Call, DeviceBuffer, Driver, DriverError, DryDriver, EmuDriver, Gpu, RecordingDriver,
};
use gradus::ops::*;
use gradus::{Device, Error, Result};

const COUNTS: [usize; 5] = [5000, 3, 0, 4097, 600];

/// Parameters and gradients of a device; the fourth tensor has a mask.
struct Model {
    gpu: Arc<Gpu>,
    params: Vec<DeviceBuffer<f32>>,
    grads: Vec<DeviceBuffer<f32>>,
    mask: DeviceBuffer<u8>,
}

fn values(seed: u64, n: usize) -> Vec<f32> {
    normals(seed, n, 1.0).into_iter().map(|x| x as f32).collect()
}

impl Model {
    fn new(driver: Arc<dyn Driver>) -> Model {
        let gpu = Arc::new(Gpu::new(driver).unwrap());
        let of = |seed: u64| {
            let tensors = COUNTS.iter().enumerate();
            tensors
                .map(|(i, &n)| DeviceBuffer::from_host(&gpu, &values(seed + i as u64, n)).unwrap())
                .collect()
        };
        let mask: Vec<u8> = (0..COUNTS[3]).map(|i| (i % 3 > 0) as u8).collect();
        let mask = DeviceBuffer::from_host(&gpu, &mask).unwrap();
        Model { params: of(1), grads: of(50), mask, gpu }
    }

    fn set_grads(&mut self, seed: u64) {
        for (i, grad) in self.grads.iter_mut().enumerate() {
            grad.upload(&values(seed + i as u64, COUNTS[i])).unwrap();
        }
    }

    fn tensors(&mut self) -> Vec<PagedTensor<'_>> {
        let mask = self.mask.view(&[COUNTS[3] as i64]).unwrap();
        let pairs = self.params.iter_mut().zip(&self.grads).zip(COUNTS).enumerate();
        pairs
            .map(|(i, ((param, grad), n))| PagedTensor {
                param: param.view_mut(&[n as i64]).unwrap(),
                grad: grad.view(&[n as i64]).unwrap(),
                mask: (i == 3).then_some(mask),
            })
            .collect()
    }

    fn params(&self) -> Vec<Vec<u32>> {
        let bits =
            |p: &DeviceBuffer<f32>| p.to_host().unwrap().iter().map(|x| x.to_bits()).collect();
        self.params.iter().map(bits).collect()
    }
}

fn settings(step: u64) -> AdamWSettings {
    AdamWSettings { lr: 0.01, weight_decay: 0.1, step, grad_scale: 0.7, ..Default::default() }
}

/// Parameters, moments and outcomes after three steps.
type Story = (Vec<Vec<u32>>, Vec<(Vec<f32>, Vec<f32>)>, Vec<AdamWOutcome>);

fn resident() -> Story {
    let mut model = Model::new(Arc::new(EmuDriver::new()));
    let device = Device::Gpu(model.gpu.clone());
    let zeros = || -> Vec<_> {
        COUNTS.map(|n| DeviceBuffer::from_host(&model.gpu, &vec![0f32; n]).unwrap()).into()
    };
    let (mut ms, mut vs) = (zeros(), zeros());
    let mut outcomes = Vec::new();
    for step in 1..4 {
        model.set_grads(step * 100);
        let mut outcome = AdamWOutcome::default();
        let states = ms.iter_mut().zip(&mut vs).zip(COUNTS);
        let tensors = model
            .tensors()
            .into_iter()
            .zip(states)
            .map(|(t, ((m, v), n))| AdamWTensor {
                param: t.param,
                grad: t.grad,
                m: m.view_mut(&[n as i64]).unwrap(),
                v: v.view_mut(&[n as i64]).unwrap(),
                mask: t.mask,
            })
            .collect();
        adamw(&device, AdamW { tensors, settings: settings(step), outcome: &mut outcome }).unwrap();
        outcomes.push(outcome);
    }
    let moments = ms.iter().zip(&vs).map(|(m, v)| (m.to_host().unwrap(), v.to_host().unwrap()));
    (model.params(), moments.collect(), outcomes)
}

fn paged(driver: EmuDriver, chunk: usize) -> Story {
    let mut model = Model::new(Arc::new(driver));
    let mut optimizer = PagedAdamW::new(&model.gpu.clone(), &COUNTS, chunk).unwrap();
    let mut outcomes = Vec::new();
    for step in 1..4 {
        model.set_grads(step * 100);
        let mut outcome = AdamWOutcome::default();
        optimizer.step(model.tensors(), &settings(step), &mut outcome).unwrap();
        outcomes.push(outcome);
    }
    let moments = (0..COUNTS.len()).map(|i| optimizer.moments(i).unwrap()).collect();
    (model.params(), moments, outcomes)
}

#[test]
fn the_bits_of_the_resident_optimizer() {
    let want = resident();
    assert!(want.2.iter().all(|o| o.updated == 9700 - 1366), "{:?}", want.2);
    for chunk in [1 << 20, 5000, 4096, 1000, 701] {
        assert!(paged(EmuDriver::new(), chunk) == want, "chunks of {chunk}");
    }
    for seed in 0..8 {
        assert!(paged(EmuDriver::new().with_late_streams(seed), 1000) == want, "seed {seed}");
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let mut model = Model::new(Arc::new(EmuDriver::new()));
    let mut optimizer = PagedAdamW::new(&model.gpu.clone(), &COUNTS, 1000).unwrap();
    let mut outcome = AdamWOutcome::default();
    optimizer.step(model.tensors(), &settings(1), &mut outcome).unwrap();
    let (before, moments) = (model.params(), optimizer.moments(0).unwrap());
    let mut bad = values(7, 4097);
    bad[4096] = f32::NAN;
    // The fourth tensor's mask hides elements 0, 3, 6, .., not 4096.
    model.grads[3].upload(&bad).unwrap();
    optimizer.step(model.tensors(), &settings(2), &mut outcome).unwrap();
    assert_eq!(outcome, AdamWOutcome { non_finite: Some((3, 4096)), ..Default::default() });
    assert!(model.params() == before && optimizer.moments(0).unwrap() == moments);
}

#[test]
fn moments_come_back_as_they_were_set() {
    let model = Model::new(Arc::new(EmuDriver::new()));
    let mut optimizer = PagedAdamW::new(&model.gpu, &COUNTS, 10).unwrap();
    let (m, v) = (values(3, 4097), values(4, 4097));
    optimizer.set_moments(3, &m, &v).unwrap();
    assert_eq!(optimizer.moments(3).unwrap(), (m.clone(), v.clone()));
    assert_eq!(optimizer.moments(4).unwrap().0, vec![0.0; 600]);
    for (index, len) in [(5, 4097), (3, 4096)] {
        let error = optimizer.set_moments(index, &m[..len], &v).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
}

/// Two chunks of two moments and not a byte more, and nothing at all from the second step on.
#[test]
fn device_memory_is_bounded() {
    let dry = Arc::new(DryDriver::new(EmuDriver::new().info().clone()));
    let mut model = Model::new(dry.clone());
    let before = dry.usage().live;
    let optimizer = PagedAdamW::new(&model.gpu.clone(), &COUNTS, 1000).unwrap();
    assert_eq!(dry.usage().live - before, optimizer.device_bytes() as u64);
    assert_eq!(optimizer.device_bytes(), 16_000);
    assert_eq!(dry.usage().pinned, 2 * 4 * 9700);
    drop(optimizer);
    assert_eq!((dry.usage().live, dry.usage().pinned), (before, 0));
    let driver = Arc::new(RecordingDriver::new(Arc::new(EmuDriver::new())));
    model = Model::new(driver.clone());
    let mut optimizer = PagedAdamW::new(&model.gpu.clone(), &COUNTS, 1000).unwrap();
    let mut outcome = AdamWOutcome::default();
    optimizer.step(model.tensors(), &settings(1), &mut outcome).unwrap();
    driver.take();
    optimizer.step(model.tensors(), &settings(2), &mut outcome).unwrap();
    let calls = driver.take();
    assert!(!calls.iter().any(Call::is_memory), "{calls:?}");
    assert_eq!(calls.iter().filter(|call| call.is_wait()).count(), 1);
    let updates = calls.iter().filter(|call| **call == Call::Launch("adamw".into())).count();
    assert_eq!(updates, 10);
    // Two chunks are on their way before the first update.
    let first = calls.iter().position(|call| *call == Call::Launch("adamw".into()));
    let ahead = calls[..first.unwrap()].iter();
    assert_eq!(ahead.filter(|call| matches!(call, Call::UploadAsync(_))).count(), 4);
}

#[test]
fn refusals_name_the_argument() {
    let mut model = Model::new(Arc::new(EmuDriver::new()));
    let gpu = model.gpu.clone();
    let named = |result: Result<()>, what: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(what), "{text}");
    };
    named(PagedAdamW::new(&gpu, &COUNTS, 0).map(drop), "`chunk`");
    named(PagedAdamW::new(&gpu, &[usize::MAX, 2], 1).map(drop), "`counts`");
    let mut optimizer = PagedAdamW::new(&gpu, &COUNTS, 1000).unwrap();
    let mut outcome = AdamWOutcome::default();
    let (mut param, grad) = (vec![0f32; 5000], vec![0f32; 5000]);
    let mut tensors = model.tensors();
    tensors[0] = PagedTensor { param: (&mut param).into(), grad: (&grad).into(), mask: None };
    named(optimizer.step(tensors, &settings(1), &mut outcome), "device memory");
    named(optimizer.step(Vec::new(), &settings(1), &mut outcome), "`tensors`");
    let mut swapped = model.tensors();
    swapped.swap(1, 4);
    named(optimizer.step(swapped, &settings(1), &mut outcome), "3 elements");
    named(optimizer.step(model.tensors(), &settings(0), &mut outcome), "`step`");
    let step = || optimizer.step(model.tensors(), &settings(1), &mut outcome);
    named(gpu.capture(step).map(drop), "capture");
}

/// Each driver call of a step fails once: the error is told, nothing leaks, and a step with fresh
/// moments has its bits afterwards.
#[test]
fn a_fault_is_told_and_nothing_leaks() {
    let story = |model: &mut Model, outcome: &mut AdamWOutcome| -> Result<Vec<f32>> {
        let mut optimizer = PagedAdamW::new(&model.gpu.clone(), &COUNTS, 4000)?;
        optimizer.step(model.tensors(), &settings(1), outcome)?;
        Ok(optimizer.moments(0)?.0)
    };
    let faulty = || Arc::new(FaultDriver::new(Arc::new(EmuDriver::new())));
    let (driver, mut outcome) = (faulty(), AdamWOutcome::default());
    let mut model = Model::new(driver.clone());
    let start = driver.calls().len() as u64;
    let want = story(&mut model, &mut outcome).unwrap();
    for at in start..driver.calls().len() as u64 {
        let driver = faulty();
        let mut model = Model::new(driver.clone());
        let before = driver.live();
        let code = DriverError::INVALID_VALUE;
        driver.set(Some(Fault { at, code, for_ever: false }));
        let result = story(&mut model, &mut outcome);
        let call = driver.calls()[at as usize];
        // Giving back has nobody to tell.
        let hidden =
            call.starts_with("free") || call.starts_with("destroy") || call == "synchronize";
        match result {
            Ok(moments) => assert!(hidden && moments == want, "{call} was swallowed"),
            Err(Error::Driver { code: got, .. }) => assert_eq!(got, code, "{call}"),
            Err(other) => panic!("{call}: {other}"),
        }
        assert_eq!(story(&mut model, &mut outcome).unwrap(), want, "after {call}");
        let live = driver.live();
        if !hidden {
            assert_eq!((live.pinned, live.events, live.streams), (0, 0, before.streams), "{call}");
        }
    }
}
