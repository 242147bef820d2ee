//! Every required tensor of every op, broken in every way that can be seen: an error that names it, and
//! nothing written. Small enough for Miri: `cargo +nightly miri test -p gradus-c --test abi refusals`.

use std::ptr::null_mut;

use crate::common::calls::{BREAKS, Call, Rng, create, last_error};
use crate::common::parsed::{ops, structs};
use gradus_c::sys;

#[test]
fn a_broken_tensor_is_named() {
    let (ctx, structs) = (create("cpu"), structs());
    let mut cases = 0;
    for op in ops() {
        let count = Call::valid(&op, &structs, &mut Rng(3), false).tensors();
        for (tensor, kind) in (0..count).flat_map(|t| (0..BREAKS).map(move |kind| (t, kind))) {
            // Miri takes one second per case.
            if cfg!(miri) && (tensor + kind) % 4 != 0 {
                continue;
            }
            let mut call = Call::valid(&op, &structs, &mut Rng(3), false);
            let Some((name, what)) = call.break_tensor(tensor, kind) else { continue };
            let status = call.run(ctx, null_mut());
            let text = last_error();
            let case = format!("{} {name}, {what}: {text}", op.name);
            assert_eq!(status, sys::GRADUS_INVALID_ARGUMENT as i32, "{case}");
            // The argument, or a field of it, maybe in a list.
            let (_, argument) = text.split_once("argument `").unwrap();
            let (argument, _) = argument.split_once('`').unwrap();
            assert!(argument.split(['.', '[']).any(|part| part == name), "{case}");
            cases += 1;
        }
    }
    assert!(cases > if cfg!(miri) { 200 } else { 1000 }, "{cases} cases");
    eprintln!("{cases} cases");
    // SAFETY: created above.
    assert_eq!(unsafe { sys::gradus_destroy(ctx) }, 0);
}

/// Contexts and memory, used after they were given back.
#[test]
fn what_was_given_back_is_recognized() {
    let bad = sys::GRADUS_BAD_HANDLE as i32;
    let ctx = create("cpu");
    let other = create("cpu");
    // SAFETY: numbers, and pointers to places of the test's own.
    unsafe {
        let mut memory = null_mut();
        assert_eq!(sys::gradus_alloc(ctx, 100, &mut memory), 0);
        let (from, mut back) = ([1u8, 2, 3], [0u8; 3]);
        assert_eq!(sys::gradus_upload(ctx, null_mut(), memory, from.as_ptr().cast(), 3), 0);
        assert_eq!(sys::gradus_download(ctx, null_mut(), back.as_mut_ptr().cast(), memory, 3), 0);
        assert_eq!(back, from);
        assert_eq!(sys::gradus_free(other, memory), sys::GRADUS_INVALID_ARGUMENT as i32);
        assert_eq!(sys::gradus_free(ctx, memory), 0);
        assert_eq!(sys::gradus_free(ctx, memory), sys::GRADUS_INVALID_ARGUMENT as i32, "twice");
        assert_eq!(sys::gradus_free(ctx, null_mut()), 0);
        assert_eq!(
            sys::gradus_alloc(ctx, usize::MAX, &mut memory),
            sys::GRADUS_OUT_OF_MEMORY as i32
        );
        assert_eq!(sys::gradus_alloc(ctx, 10, &mut memory), 0, "falls with its context");
        assert_eq!(sys::gradus_destroy(ctx), 0);
        assert_eq!(sys::gradus_destroy(ctx), bad);
        assert_eq!(sys::gradus_alloc(ctx, 1, &mut memory), bad);
        let again = create("cpu");
        assert_ne!(again, ctx, "a slot that is taken again has another number");
        assert_eq!(sys::gradus_synchronize(ctx, null_mut()), bad);
        assert_eq!(sys::gradus_destroy(again), 0);
        assert_eq!(sys::gradus_destroy(other), 0);
        assert_eq!(sys::gradus_destroy(0), 0);
    }
}

/// Threads share a context, and each has its own text.
#[test]
fn sixteen_threads_of_a_thousand_calls() {
    let (ctx, structs, ops) = (create("cpu"), structs(), ops());
    let rounds = if cfg!(miri) { 1 } else { 1000 };
    std::thread::scope(|scope| {
        for thread in 0..16u64 {
            let (structs, ops) = (&structs, &ops);
            scope.spawn(move || {
                let mut rng = Rng(thread);
                for _ in 0..rounds {
                    let own = rng.below(8) == 0;
                    let used = if own { create("cpu") } else { ctx };
                    let op = rng.pick(ops);
                    let mut call = Call::valid(&op, structs, &mut rng, false);
                    if rng.below(2) == 0 {
                        call.change(&mut rng);
                    }
                    call.run(used, null_mut());
                    // SAFETY: this thread's own context.
                    assert!(!own || unsafe { sys::gradus_destroy(used) } == 0);
                }
            });
        }
    });
    // SAFETY: created above; no call uses it any more.
    assert_eq!(unsafe { sys::gradus_destroy(ctx) }, 0);
}
