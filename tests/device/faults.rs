//! Every driver call of several ops fails once in every way: the error says what happened, nothing
//! leaks, nothing crashes, the host's outputs keep what they held, and the device goes on or is
//! lost as the status demands.

use std::sync::Arc;

use gradus::device::fault::{Fault, FaultDriver};
use gradus::device::{Driver, DriverError, EmuDriver, Gpu};
use gradus::ops::*;
use gradus::{Device, Error, Result};

use crate::door::clamp_abs::clamp_abs;

/// An op on small host data; `out` is what it writes.
struct Case {
    name: &'static str,
    run: fn(&Device, &mut Vec<f32>) -> Result<()>,
    outputs: usize,
}

fn lerp_case(device: &Device, out: &mut Vec<f32>) -> Result<()> {
    let (a, b) = ([1f32; 40], [2f32; 40]);
    lerp(device, Lerp { a: a[..].into(), b: b[..].into(), weight: 0.5, y: out.into() })
}

fn advantage_case(device: &Device, out: &mut Vec<f32>) -> Result<()> {
    let (reward, offsets, mut groups) = ([1f32, 0.0, 0.0, 2.0], [0i64, 2, 4], Vec::new());
    group_advantage(
        device,
        GroupAdvantage {
            reward: reward[..].into(),
            offsets: offsets[..].into(),
            length: None,
            settings: GroupSettings::default(),
            advantage: out.into(),
            groups: Some(&mut groups),
        },
    )
}

fn policy_case(device: &Device, out: &mut Vec<f32>) -> Result<()> {
    let (logp, offsets, one, mut loss) = ([-1f32; 6], [0i64, 2, 6], [1f32; 2], 0.0);
    let (settings, mut stats) = (PolicySettings::default(), PolicyStats::default());
    policy_loss(
        device,
        PolicyLoss {
            stats: Some(&mut stats),
            ..PolicyLoss::new(
                logp[..].into(),
                Advantage::PerSequence(one[..].into()),
                offsets[..].into(),
                one[..].into(),
                &settings,
                &mut loss,
                out.into(),
            )
        },
    )
}

fn adamw_case(device: &Device, out: &mut Vec<f32>) -> Result<()> {
    let (grad, mut m, mut v) = (vec![1f32; 300], vec![0f32; 300], vec![0f32; 300]);
    let mut outcome = AdamWOutcome::default();
    let tensors = vec![AdamWTensor {
        param: out.into(),
        grad: (&grad).into(),
        m: (&mut m).into(),
        v: (&mut v).into(),
        mask: None,
    }];
    adamw(device, AdamW { tensors, settings: AdamWSettings::default(), outcome: &mut outcome })
}

fn logprob_case(device: &Device, out: &mut Vec<f32>) -> Result<()> {
    let (logits, targets) = ([0.5f32; 3 * 50], [4i32, 49, 0]);
    let args = LogProb::new(gradus::View::new(&logits, &[3, 50])?, targets[..].into(), out.into());
    logprob(device, args)
}

fn whiten_case(device: &Device, out: &mut Vec<f32>) -> Result<()> {
    let (x, mut stats) = ([1f32, 2.0, 4.0, 8.0], WhitenStats::default());
    let (settings, stats) = (WhitenSettings::VERL, Some(&mut stats));
    whiten(device, Whiten { x: x[..].into(), mask: None, settings, y: out.into(), stats })
}

fn grad_norm_case(device: &Device, _: &mut Vec<f32>) -> Result<()> {
    let (grad, mut norm) = ([1f32; 70], GlobalNorm::default());
    let grads = [grad[..].into(), grad[..9].into()];
    let result = grad_norm(device, GradNorm { grads: &grads, norm: &mut norm });
    assert!(result.is_ok() || norm == GlobalNorm::default());
    result
}

fn delta_case(device: &Device, out: &mut Vec<f32>) -> Result<()> {
    let (old, new, mut index, mut count) = ([0f32; 3], [0f32, 1.0, 2.0], [7i64; 2], 99);
    let args = DeltaEncode {
        old_value: old[..].into(),
        new_value: new[..].into(),
        index: (&mut index[..]).into(),
        value: out.into(),
        count: &mut count,
    };
    let result = delta_encode(device, args);
    assert_eq!(count, if result.is_ok() { 2 } else { 99 });
    result
}

/// An op from outside the crate, with a kernel of its own.
fn own_op_case(device: &Device, out: &mut Vec<f32>) -> Result<()> {
    clamp_abs(device, [3f32, -0.5, -9.0][..].into(), 2.0, out.into()).map(|cut| assert_eq!(cut, 2))
}

const CASES: [Case; 9] = [
    Case { name: "lerp", run: lerp_case, outputs: 40 },
    Case { name: "group_advantage", run: advantage_case, outputs: 4 },
    Case { name: "policy_loss", run: policy_case, outputs: 6 },
    Case { name: "adamw", run: adamw_case, outputs: 300 },
    Case { name: "logprob", run: logprob_case, outputs: 3 },
    Case { name: "whiten", run: whiten_case, outputs: 4 },
    Case { name: "grad_norm", run: grad_norm_case, outputs: 1 },
    Case { name: "delta_encode", run: delta_case, outputs: 2 },
    Case { name: "clamp_abs of examples/own_op", run: own_op_case, outputs: 3 },
];

const STICKY: [i32; 3] = [DriverError::ILLEGAL_ADDRESS, DriverError::LAUNCH_FAILED, 999];
const PASSING: [i32; 3] =
    [DriverError::OUT_OF_MEMORY, DriverError::INVALID_VALUE, DriverError::LAUNCH_OUT_OF_RESOURCES];

fn faulty() -> (Arc<FaultDriver>, Arc<EmuDriver>, Device) {
    let emulator = Arc::new(EmuDriver::new());
    let driver = Arc::new(FaultDriver::new(emulator.clone()));
    let gpu = Gpu::new(driver.clone()).unwrap();
    (driver, emulator, Device::Gpu(Arc::new(gpu)))
}

/// Calls of a first and of a second run, whose modules and scratch memory are there already.
fn calls_of(case: &Case) -> (u64, u64) {
    let (driver, _, device) = faulty();
    let setup = driver.calls().len() as u64;
    (case.run)(&device, &mut vec![7.0; case.outputs]).unwrap();
    (setup, driver.calls().len() as u64)
}

#[test]
fn a_fault_that_passes_leaves_the_device_usable() {
    for case in CASES {
        let (setup, end) = calls_of(&case);
        for at in setup..end {
            for code in PASSING {
                let (driver, emulator, device) = faulty();
                driver.set(Some(Fault { at, code, for_ever: false }));
                let mut out = vec![7.0f32; case.outputs];
                let call =
                    || format!("{} call {at} code {code} ({:?})", case.name, driver.calls().last());
                let result = (case.run)(&device, &mut out);
                let hidden = ["free", "synchronize"].contains(&driver.calls()[at as usize]);
                match result {
                    // Giving memory back has nobody to tell.
                    Ok(()) => assert!(hidden, "{} was swallowed", call()),
                    Err(Error::OutOfMemory { .. }) => assert_eq!(code, DriverError::OUT_OF_MEMORY),
                    Err(Error::Driver { code: got, .. }) => assert_eq!(got, code, "{}", call()),
                    Err(other) => panic!("{}: {other}", call()),
                }
                (case.run)(&device, &mut vec![7.0; case.outputs])
                    .unwrap_or_else(|e| panic!("{}: {e}", call()));
                drop(device);
                let live = driver.live();
                let leaked = live.allocations - hidden as i64;
                assert!(leaked <= 0, "{}: {live:?}", call());
                assert_eq!((live.modules, live.streams, live.events), (0, 0, 0), "{}", call());
                drop(emulator);
            }
        }
    }
}

#[test]
fn a_sticky_fault_ends_the_device_and_nothing_else() {
    for case in CASES {
        let (setup, end) = calls_of(&case);
        for at in setup..end {
            for code in STICKY {
                let (driver, _, device) = faulty();
                driver.set(Some(Fault { at, code, for_ever: true }));
                let mut out = vec![7.0f32; case.outputs];
                let result = (case.run)(&device, &mut out);
                let name = driver.calls()[at as usize];
                if result.is_err() {
                    assert!(
                        matches!(result, Err(Error::DeviceLost { .. })),
                        "{} {name}: {result:?}",
                        case.name
                    );
                }
                let before = driver.calls().len();
                for _ in 0..3 {
                    let again = (case.run)(&device, &mut out);
                    assert!(
                        matches!(again, Err(Error::DeviceLost { .. })),
                        "{} {name}: {again:?}",
                        case.name
                    );
                }
                assert_eq!(driver.calls().len(), before, "a lost device was asked again");
            }
        }
    }
}

/// Before anything came back, a failed call has not touched the host's output.
#[test]
fn outputs_keep_what_they_held_if_nothing_came_back() {
    for case in CASES {
        let (setup, end) = calls_of(&case);
        let (driver, _, device) = faulty();
        (case.run)(&device, &mut vec![7.0; case.outputs]).unwrap();
        let calls = driver.calls();
        let first =
            calls.iter().skip(setup as usize).position(|&c| c == "launch").unwrap() as u64 + setup;
        assert!(first < end);
        let (driver, _, device) = faulty();
        driver.set(Some(Fault {
            at: first,
            code: DriverError::LAUNCH_OUT_OF_RESOURCES,
            for_ever: false,
        }));
        let mut out = vec![7.0f32; case.outputs];
        (case.run)(&device, &mut out).unwrap_err();
        assert!(out.iter().all(|&x| x == 7.0), "{}: {out:?}", case.name);
    }
}

/// With operands in device memory and everything loaded, a launch neither allocates nor waits.
#[test]
fn a_warm_launch_does_nothing_but_launch() {
    use gradus::device::DeviceBuffer;
    let driver = Arc::new(FaultDriver::new(Arc::new(EmuDriver::new())));
    let gpu = Arc::new(Gpu::new(driver.clone()).unwrap());
    let device = Device::Gpu(gpu.clone());
    let a = DeviceBuffer::from_host(&gpu, &[1f32; 100]).unwrap();
    let b = DeviceBuffer::from_host(&gpu, &[3f32; 100]).unwrap();
    let mut y = DeviceBuffer::<f32>::new(&gpu, 100).unwrap();
    let mut seen = 0;
    for round in 0..3 {
        let before = driver.calls().len();
        let args = Lerp {
            a: a.view(&[100]).unwrap(),
            b: b.view(&[100]).unwrap(),
            weight: 0.5,
            y: y.view_mut(&[100]).unwrap(),
        };
        lerp(&device, args).unwrap();
        if round > 0 {
            assert_eq!(driver.calls()[before..], ["launch"]);
            seen += 1;
        }
    }
    assert_eq!(seen, 2);
    assert_eq!(y.to_host().unwrap(), vec![2f32; 100]);
    assert_eq!(driver.info().name, "emulator");
}

/// A machine without a driver gets an error that says what to do.
#[test]
#[cfg(feature = "cuda")]
fn no_driver_is_an_error_with_advice() {
    match Device::cuda(0) {
        Ok(_) => eprintln!("skipped: there is a driver"),
        Err(error @ (Error::NoDriver { .. } | Error::InvalidArgument { .. })) => {
            assert!(error.to_string().len() > 20, "{error}");
        }
        Err(other) => panic!("{other}"),
    }
    let error = Device::cuda(i32::MAX).unwrap_err();
    assert!(matches!(error, Error::NoDriver { .. }), "{error}");
}
