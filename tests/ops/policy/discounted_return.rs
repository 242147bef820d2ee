//! Discounted returns: masks, verl, refusals, every executor.

use crate::common::devices::shared_gpus;
use crate::common::refused;
use crate::policy::arguments::*;
use crate::policy::packed;
use crate::policy::sequences::{LENGTHS, MASKS, Packed, agree, counted};
use crate::policy::verl::*;
use gradus::dtype::Real;
use gradus::ops::*;
use gradus::{Device, Result};

#[test]
fn a_masked_token_skips_or_resets_a_return() {
    let packed = packed::Packed { cu_seqlens: vec![0, 4], mask: vec![1, 1, 0, 1] };
    let reward = [1.0, 2.0, f64::NAN, 8.0];
    assert_eq!(packed.returns(&reward, 0.5, MaskedReturn::Skip), [4.0, 6.0, 0.0, 8.0]);
    assert_eq!(packed.returns(&reward, 0.5, MaskedReturn::Reset), [2.0, 2.0, 0.0, 8.0]);
}

fn discounted(edit: impl FnOnce(&mut DiscountedReturn<'_, f64>)) -> Result<()> {
    let mut args = DiscountedReturn {
        reward: view(&[1.0, 0.0, 2.0]),
        mask: None,
        cu_seqlens: view(&[0, 3]),
        gamma: 1.0,
        masked: MaskedReturn::Skip,
        baseline: None,
        returns: output(3),
    };
    edit(&mut args);
    discounted_return(&Device::Cpu, args)
}

#[test]
fn discounted_return_refuses() {
    discounted(|_| ()).unwrap();
    refused(discounted(|a| a.reward = view(&[f64::NAN, 0.0, 0.0])), "reward");
    refused(discounted(|a| a.mask = Some(view(&[1; 4]))), "mask");
    refused(discounted(|a| a.cu_seqlens = view(&[0, 2])), "cu_seqlens");
    refused(discounted(|a| a.gamma = -0.1), "gamma");
    refused(discounted(|a| a.baseline = Some(view(&[1.0, 2.0]))), "baseline");
    refused(discounted(|a| a.baseline = Some(view(&[f64::NAN]))), "baseline");
    refused(discounted(|a| a.returns = output(1)), "returns");
}

#[test]
fn reinforce_plus_plus_matches_verl() {
    for batch in Batch::open("reinforce_plus_plus") {
        let gamma = batch.file.number("gamma").unwrap();
        let returns = batch.returns(gamma, MaskedReturn::Reset, None);
        batch.check("returns", &returns);
        batch.check("advantage", &batch.whiten(&returns));
    }
}

fn scans_agree<R: Real>() {
    for (i, keep) in MASKS.into_iter().enumerate() {
        let packed = Packed::<R>::new(&LENGTHS, keep);
        let cpu = &Device::Cpu;
        for executor in shared_gpus() {
            let (device, name) = (&executor.device, &format!("{} mask {i}", executor.name));
            for masked in [MaskedReturn::Skip, MaskedReturn::Reset] {
                for gamma in [0.0, 0.9, 1.0] {
                    let run = |device| packed.returns(device, gamma, masked);
                    agree(name, &run(cpu), &run(device));
                }
            }
        }
    }
}

#[test]
fn returns_of_any_length_agree_with_the_cpu() {
    scans_agree::<f32>();
    scans_agree::<f64>();
}

/// One launch. Read are reward and mask, the return is written.
#[test]
fn discounted_return_reads_once() {
    for (launches, bytes) in counted(|d, p| drop(p.returns(d, 0.9, MaskedReturn::Reset))) {
        assert!(launches == 1 && bytes <= 9.0 * 1.01, "{bytes}");
    }
}
