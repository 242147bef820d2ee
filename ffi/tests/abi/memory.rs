//! Every allocation of every call fails once, and from some allocation on all fail: the call succeeds with the
//! same bits or returns OUT_OF_MEMORY, touches nothing that is not its output, and the context works on.
//!
//! The allocator is `shim.c`, compiled and preloaded into a second run of this executable.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;
use std::sync::atomic::Ordering;

use crate::common::calls::{Call, LONG, Rng, WIDE, last_error};
use crate::common::parsed::{Struct, ops, structs};
use gradus_c::sys;

const OUT_OF_MEMORY: i32 = sys::GRADUS_OUT_OF_MEMORY as i32;

#[test]
fn every_failed_allocation_is_a_status() {
    let shim = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libgradus_shim.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/abi/shim.c");
    let compiled = Command::new("cc")
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fno-builtin", "-o"])
        .args([&shim, &source])
        .status()
        .expect("a C compiler, cc");
    assert!(compiled.success());
    for test in ["creating", "ops_of_the_abi", "functions_of_the_abi"] {
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("memory::shimmed::{test}"), "--ignored", "--nocapture"])
            .args(["--test-threads", "1"])
            .env("LD_PRELOAD", &shim)
            .env("RAYON_NUM_THREADS", "3")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = format!("{}{}", text(&run.stdout), text(&run.stderr));
        assert!(
            run.status.success() && said.contains("1 passed"),
            "{test}: {}: {said}",
            run.status
        );
        print!("{said}");
    }
}

type Arm = extern "C" fn(c_long, c_long, c_int);
type Disarm = extern "C" fn() -> c_long;
/// A function by its name; 0 is success.
type Named = (&'static str, Box<dyn FnMut() -> i32>);

/// The preloaded allocator.
struct Shim {
    arm: Arm,
    disarm: Disarm,
}

impl Shim {
    fn find() -> Shim {
        unsafe extern "C" {
            fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
        }
        let of = |name: &CStr| {
            // SAFETY: the default scope, and a name.
            let at = unsafe { dlsym(null_mut(), name.as_ptr()) };
            assert!(!at.is_null(), "run by every_failed_allocation_is_a_status, with the shim");
            at
        };
        let (arm, disarm) = (of(c"shim_arm"), of(c"shim_disarm"));
        // SAFETY: the shim's functions have these types.
        unsafe {
            Shim {
                arm: std::mem::transmute::<*mut c_void, Arm>(arm),
                disarm: std::mem::transmute::<*mut c_void, Disarm>(disarm),
            }
        }
    }

    /// Runs `body` while allocations `first..=last` fail; its result, and how many allocations there were.
    fn with<R>(&self, (first, last, mine): (i64, i64, bool), body: impl FnOnce() -> R) -> (R, i64) {
        (self.arm)(first, last, mine as c_int);
        let result = body();
        (result, (self.disarm)())
    }
}

/// One allocation, or all from one on.
fn spans(n: i64) -> [(i64, i64); 2] {
    [(n, n), (n, i64::MAX)]
}

fn create() -> u64 {
    let mut ctx = 0;
    // SAFETY: a text, and a place for a number.
    let status = unsafe { sys::gradus_create(c"cpu".as_ptr(), &mut ctx) };
    assert_eq!(status, 0, "{}", last_error());
    ctx
}

/// The op with its `n`-th allocation failing, for every n up to 16 and ever fewer after that. Returns
/// (allocations, refusals).
fn attack(shim: &Shim, ctx: u64, op: &Struct, structs: &[Struct], optional: bool) -> (i64, i64) {
    let make = || Call::valid(op, structs, &mut Rng(3), optional);
    let run = |call: &mut Call, span: (i64, i64)| {
        call.run_with(|op, args| {
            // SAFETY: the call's own struct and memory.
            shim.with((span.0, span.1, false), || unsafe {
                crate::common::dispatch(op, ctx, null_mut(), args)
            })
        })
    };
    let mut plain = make();
    if run(&mut plain, (0, 0)).0 != 0 {
        // Optional fields may exclude each other.
        assert!(optional, "{}: {}", op.name, last_error());
        return (0, 0);
    }
    let (mut refused, mut most) = (0, 0);
    let mut n = 1;
    loop {
        let mut over = true;
        for span in spans(n) {
            let mut call = make();
            let (status, seen) = run(&mut call, span);
            let what = format!("{} allocation {n}: {status} {}", op.name, last_error());
            match status {
                0 => assert!(call.holds_what(&plain), "{what}: other bits"),
                OUT_OF_MEMORY => {
                    assert!(last_error().starts_with("out of memory: "), "{what}");
                    // Weights and moments are the caller's state, not only outputs.
                    assert!(!op.name.starts_with("adamw") || call.is_untouched(), "{what}");
                    refused += 1;
                }
                _ => panic!("{what}"),
            }
            over &= seen < n;
            most = most.max(seen);
        }
        if over {
            break;
        }
        // An op that allocates by rows does the same thing again.
        n += if n < 16 { 1 } else { n / 2 };
    }
    let mut after = make();
    assert_eq!(after.run(ctx, null_mut()), 0, "{}: {}", op.name, last_error());
    assert!(after.holds_what(&plain), "{}: other bits afterwards", op.name);
    (most, refused)
}

fn nf4_parse() -> i32 {
    let state = br#"{"shape": [8, 64], "blocksize": 64, "quant_type": "nf4", "dtype": "bfloat16"}"#;
    // SAFETY: all zero is a struct without tensors; bytes and a struct.
    unsafe {
        let mut w: sys::gradus_nf4 = std::mem::zeroed();
        sys::gradus_nf4_parse(state.as_ptr(), state.len(), &mut w)
    }
}

fn policy_preset() -> i32 {
    let name = c"trl/dapo".as_ptr();
    // SAFETY: numbers and pointers; a text and places for results.
    unsafe {
        let (mut settings, mut kind, mut empty, mut value) = (std::mem::zeroed(), 0, 0, 0.0);
        sys::gradus_policy_preset(name, 100.0, &mut settings, &mut kind, &mut empty, &mut value)
    }
}

fn alloc(ctx: u64) -> i32 {
    let mut at = null_mut();
    // SAFETY: a place for an address, which is freed.
    unsafe {
        let status = sys::gradus_alloc(ctx, 1 << 16, &mut at);
        assert!(status == 0 || at.is_null());
        if status == 0 { sys::gradus_free(ctx, at) } else { status }
    }
}

fn unknown_device() -> i32 {
    let mut ctx = 0;
    // SAFETY: a text, and a place for a number.
    match unsafe { sys::gradus_create(c"tpu".as_ptr(), &mut ctx) } {
        1 => 0,
        other => other,
    }
}

/// The functions that are no ops. What they take is allocated here: only allocations of a call are to fail.
fn functions(ctx: u64) -> Vec<Named> {
    let lengths = vec![3i64; 20_000];
    let (count, mut weights) = (lengths.len() as i64, vec![0.0; lengths.len()]);
    // SAFETY: places for as many values, which live as long as the closure.
    let seq_weights = move || unsafe {
        sys::gradus_seq_weights(2, 0, 0.0, lengths.as_ptr(), count, weights.as_mut_ptr())
    };
    // SAFETY: a place for as many values.
    let dynamic_map = || unsafe { sys::gradus_dynamic_map(1, [0f32; 256].as_mut_ptr()) };
    // SAFETY: a number that is no handle.
    let bad_handle = || unsafe { (sys::gradus_synchronize(77, null_mut()) != 14) as i32 };
    vec![
        ("nf4_parse", Box::new(nf4_parse)),
        ("policy_preset", Box::new(policy_preset)),
        ("seq_weights", Box::new(seq_weights)),
        ("alloc", Box::new(move || alloc(ctx))),
        ("dynamic_map", Box::new(dynamic_map)),
        ("unknown device", Box::new(unknown_device)),
        ("bad handle", Box::new(bad_handle)),
    ]
}

mod shimmed {
    use super::*;

    #[test]
    #[ignore = "run by every_failed_allocation_is_a_status"]
    fn creating() {
        let shim = Shim::find();
        let (mut n, mut refused) = (1, 0);
        loop {
            let mut ctx = 0;
            // What a new thread's start allocates is the C library's, which ends the process by itself.
            let ((status, seen), ctx) = (
                // SAFETY: a text, and a place for a number.
                shim.with((n, i64::MAX, true), || unsafe {
                    sys::gradus_create(c"cpu".as_ptr(), &mut ctx)
                }),
                ctx,
            );
            assert!([0, OUT_OF_MEMORY].contains(&status), "{n}: {status} {}", last_error());
            refused += (status != 0) as i64;
            assert!(status == 0 || ctx == 0, "a handle of nothing");
            if status == 0 && seen < n {
                break;
            }
            n += 1;
        }
        assert!(refused > 0, "no allocation of {n} failed");
        println!("gradus_create: {n} allocations, {refused} refusals");
    }

    #[test]
    #[ignore = "run by every_failed_allocation_is_a_status"]
    fn ops_of_the_abi() {
        let (shim, ctx, structs) = (Shim::find(), create(), structs());
        let all = ops();
        let (mut allocations, mut refusals, mut without) = (0, 0, Vec::new());
        for op in &all {
            let mut refused = 0;
            for (long, wide, optional) in
                [(1, 1, false), (1, 1, true), (360, 1, true), (1, 360, true)]
            {
                LONG.store(long, Ordering::Relaxed);
                WIDE.store(wide, Ordering::Relaxed);
                let (n, no) = attack(&shim, ctx, op, &structs, optional);
                (allocations, refused) = (allocations + n, refused + no);
            }
            refusals += refused;
            if refused == 0 {
                without.push(op.name.trim_end_matches("_args"));
            }
        }
        println!(
            "{} ops, {allocations} allocations, {refusals} refusals; none of {without:?}",
            all.len()
        );
        assert!(without.is_empty(), "{without:?} were never refused memory");
    }

    #[test]
    #[ignore = "run by every_failed_allocation_is_a_status"]
    fn functions_of_the_abi() {
        let (shim, ctx) = (Shim::find(), create());
        for (name, call) in &mut functions(ctx) {
            let mut n = 1;
            loop {
                let mut over = true;
                for (first, last) in spans(n) {
                    let (status, seen) = shim.with((first, last, false), &mut *call);
                    let what = format!("{name}, allocation {n}: {status} {}", last_error());
                    assert!([0, OUT_OF_MEMORY].contains(&status), "{what}");
                    over &= seen < n;
                }
                if over {
                    break;
                }
                n += 1;
            }
            assert_eq!(call(), 0, "{name}: {}", last_error());
            println!("{name}: {} allocations", n - 1);
        }
    }
}
