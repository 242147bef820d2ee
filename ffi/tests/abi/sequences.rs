//! Random calls of every op. Each outcome keeps the header's promises: no panic, nothing written by a refused
//! call, nothing outside an output by any, texts that name the argument.

use std::collections::BTreeMap;
use std::ptr::null_mut;

use crate::common::calls::{Call, Rng, create, last_error};
use crate::common::parsed::{Struct, ops, structs};
use gradus_c::sys;
use proptest::prelude::*;

/// Every op succeeds with the fields that the header requires, and nothing else.
#[test]
fn required_fields_are_enough() {
    let (ctx, structs) = (create("cpu"), structs());
    for op in ops() {
        for seed in 0..8 {
            let mut call = Call::valid(&op, &structs, &mut Rng(seed), false);
            assert_eq!(call.run(ctx, null_mut()), 0, "{} {seed}: {}", op.name, last_error());
        }
    }
}

/// Every op succeeds on both emulated devices too, where host memory is copied.
#[test]
#[cfg(feature = "emu")]
fn required_fields_are_enough_on_a_gpu() {
    let structs = structs();
    for device in ["emu:sm80", "emu:sm90a"] {
        let ctx = create(device);
        for op in ops() {
            for seed in 0..3 {
                let mut call = Call::valid(&op, &structs, &mut Rng(seed), false);
                let status = call.run(ctx, null_mut());
                // f64 has no kernels in some ops, which say so.
                let unsupported = status == sys::GRADUS_UNSUPPORTED as i32;
                assert!(
                    status == 0 || unsupported,
                    "{device} {} {seed}: {}",
                    op.name,
                    last_error()
                );
            }
        }
        // SAFETY: created above.
        assert_eq!(unsafe { sys::gradus_destroy(ctx) }, 0);
    }
}

fn random_call(op: &Struct, structs: &[Struct], ctx: u64, rng: &mut Rng) -> i32 {
    let optional = rng.below(2) == 0;
    let mut call = Call::valid(op, structs, rng, optional);
    for _ in 0..rng.below(3) {
        call.change(rng);
    }
    let stream = if rng.below(20) == 0 { 8 as *mut _ } else { null_mut() };
    let ctx = if rng.below(20) == 0 { rng.pick(&[0, ctx ^ 1 << 40, u64::MAX, 7]) } else { ctx };
    call.run(ctx, stream)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_call_keeps_the_promises(seed in any::<u64>()) {
        let (ops, structs, mut rng) = (ops(), structs(), Rng(seed));
        let ctx = create("cpu");
        for _ in 0..40 {
            let op = rng.pick(&ops);
            random_call(&op, &structs, ctx, &mut rng);
        }
        // SAFETY: created above; twice is an error, no crash.
        unsafe {
            prop_assert_eq!(sys::gradus_destroy(ctx), 0);
            prop_assert_eq!(sys::gradus_destroy(ctx), sys::GRADUS_BAD_HANDLE as i32);
        }
    }
}

/// The changes reach both sides: calls that succeed and calls that are refused, of nearly every op.
#[test]
fn changes_are_refused_and_taken() {
    let (ctx, structs, mut rng) = (create("cpu"), structs(), Rng(1));
    let mut seen: BTreeMap<i32, usize> = BTreeMap::new();
    for op in ops() {
        for _ in 0..60 {
            *seen.entry(random_call(&op, &structs, ctx, &mut rng)).or_default() += 1;
        }
    }
    let of = |status: u32| seen.get(&(status as i32)).copied().unwrap_or(0);
    assert!(of(sys::GRADUS_OK) > 600, "{seen:?}");
    assert!(of(sys::GRADUS_INVALID_ARGUMENT) > 1000, "{seen:?}");
    assert!(of(sys::GRADUS_BAD_HANDLE) > 50, "{seen:?}");
}

/// A dry run counts memory and touches none.
#[test]
#[cfg(feature = "emu")]
fn workspace_sizes_are_known_beforehand() {
    let structs = structs();
    let (cpu, gpu) = (create("cpu"), create("emu:sm90a"));
    let mut some = 0;
    for op in ops() {
        let mut call = Call::valid(&op, &structs, &mut Rng(2), true);
        let (status, bytes) = call.workspace(gpu);
        // Optional fields may ask for others that are not there.
        let refused = [sys::GRADUS_UNSUPPORTED, sys::GRADUS_INVALID_ARGUMENT].map(|s| s as i32);
        assert!(status == 0 || refused.contains(&status), "{}: {}", op.name, last_error());
        some += (bytes > 0) as usize;
        let mut call = Call::valid(&op, &structs, &mut Rng(2), false);
        assert_eq!(call.workspace(cpu), (0, 0), "{}: {}", op.name, last_error());
        let status = call.workspace(gpu).0;
        assert!(
            status == 0 || status == sys::GRADUS_UNSUPPORTED as i32,
            "{}: {}",
            op.name,
            last_error()
        );
    }
    assert!(some > 10, "{some} ops take memory of their own");
    // SAFETY: created above.
    unsafe {
        assert_eq!(sys::gradus_reserve(gpu, null_mut(), 1 << 20), 0);
        assert_eq!(sys::gradus_destroy(gpu), 0);
        assert_eq!(sys::gradus_destroy(cpu), 0);
    }
}
