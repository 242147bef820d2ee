//! Every scalar of every struct at values that no formula likes: the call is refused with the argument's name, or
//! its outputs are as finite as without. Nothing is NaN because a setting was.

use std::ffi::CStr;
use std::ptr::null_mut;

use crate::common::calls::{Call, Rng, create, last_error};
use crate::common::parsed::{ops, structs};
use crate::common::settings::Scalar;
use gradus_c::sys;

const REALS: [f64; 10] =
    [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -1.0, 1e-300, 5e-324, 1e300, -1e300, 1e30];
const INTS: [i64; 11] = [-1, 0, 1, 2, 3, 31, 33, 99, 1 << 40, i64::MIN, i64::MAX];
const SMALL: [i64; 9] = [-1, 0, 1, 2, 3, 7, 99, i32::MIN as i64, i32::MAX as i64];

fn values(scalar: &Scalar) -> Vec<f64> {
    match scalar {
        Scalar { integer: false, .. } => REALS.to_vec(),
        // A list that is said to be longer than it is cannot be seen through.
        Scalar { name, .. } if name.ends_with("_count") => vec![-1.0, 0.0, i64::MIN as f64],
        Scalar { bytes: 4, .. } => SMALL.map(|v| v as f64).to_vec(),
        _ => INTS.map(|v| v as f64).to_vec(),
    }
}

/// Settings that choose a formula: each is tried with every scalar.
const CHOICES: [&str; 6] = ["loss", "kind", "score", "divergence", "estimator", "kl_estimator"];

/// What a call is made with: seed, optional fields, and a choice's value.
type Base = (u64, bool, Option<(usize, i64)>);

fn bases(numbers: &[Scalar]) -> Vec<Base> {
    let mut all: Vec<Base> =
        vec![(0, false, None), (1, true, None), (2, true, None), (3, true, None)];
    for (index, scalar) in numbers.iter().enumerate() {
        if CHOICES.contains(&scalar.name.as_str()) && scalar.integer {
            all.extend(
                (0..12).flat_map(|v| [(0, false, Some((index, v))), (1, true, Some((index, v)))]),
            );
        }
    }
    all
}

#[derive(Default)]
struct Tally {
    taken: usize,
    refused: usize,
    bad: Vec<String>,
}

fn try_all(ctx: u64, name: &str, make: &dyn Fn() -> Call, tally: &mut Tally) {
    let mut plain = make();
    if plain.run(ctx, null_mut()) != 0 {
        // Some optional fields exclude each other, and some choices need one.
        return;
    }
    let before = plain.outputs();
    for (index, scalar) in plain.numbers().into_iter().enumerate() {
        for value in values(&scalar) {
            let mut call = make();
            call.set_number(&call.numbers()[index].clone(), value);
            let status = call.run(ctx, null_mut());
            let what = format!("{name} {} = {value:e}", scalar.name);
            if status != 0 {
                tally.refused += 1;
                let text = last_error();
                // An extent and a switch may be what another argument does not fit.
                let named = text.contains(&scalar.name)
                    || status != sys::GRADUS_INVALID_ARGUMENT as i32
                    || scalar.integer && text.contains("argument `")
                    || text.contains("got nothing")
                    || text.contains("settings.loss");
                if !named {
                    tally.bad.push(format!("{what}: refused as {text}"));
                }
                continue;
            }
            tally.taken += 1;
            for ((output, old), (_, new)) in before.iter().zip(call.outputs()) {
                let lost = old.iter().zip(&new).find(|(o, n)| o.is_finite() && !n.is_finite());
                if let Some((o, n)) = lost {
                    tally.bad.push(format!("{what}: {output} was {o} and is {n}"));
                }
            }
        }
    }
}

#[test]
fn scalars_are_refused_by_name_or_harmless() {
    let (ctx, structs, mut tally) = (create("cpu"), structs(), Tally::default());
    for op in ops() {
        let numbers = Call::valid(&op, &structs, &mut Rng(0), false).numbers();
        for (seed, optional, choice) in bases(&numbers) {
            let make = || {
                let mut call = Call::valid(&op, &structs, &mut Rng(seed), optional);
                if let Some((index, value)) = choice {
                    call.set_number(&call.numbers()[index].clone(), value as f64);
                }
                call
            };
            let name = format!("{} (seed {seed}, choice {choice:?})", op.name);
            try_all(ctx, &name, &make, &mut tally);
        }
    }
    let Tally { taken, refused, bad } = tally;
    assert!(bad.is_empty(), "{} of {}:\n{}", bad.len(), taken + refused, bad.join("\n"));
    assert!(taken > 1000 && refused > 1000, "{taken} taken, {refused} refused");
}

// The functions that are no ops.

#[test]
fn presets_are_refused_by_name() {
    let preset = |name: &CStr, length: f64| {
        // SAFETY: numbers and pointers; places for results.
        unsafe {
            let (mut settings, mut kind, mut empty, mut value) = (std::mem::zeroed(), 0, 0, 0.0);
            let at = &mut settings;
            sys::gradus_policy_preset(name.as_ptr(), length, at, &mut kind, &mut empty, &mut value)
        }
    };
    for length in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
        assert_eq!(preset(c"dr_grpo", length), 1, "{length}");
        assert!(last_error().contains("argument `length`"), "{}", last_error());
        assert_eq!(preset(c"gspo", length), 0, "not looked at: {}", last_error());
    }
    assert_eq!(preset(c"dr_grpo", 100.0), 0);
}

#[test]
fn parsed_weights_are_refused_by_name() {
    let parse = |text: &str| {
        // SAFETY: all zero is a struct without tensors.
        let mut w: sys::gradus_nf4 = unsafe { std::mem::zeroed() };
        // SAFETY: bytes and a struct.
        let status = unsafe { sys::gradus_nf4_parse(text.as_ptr(), text.len(), &mut w) };
        assert!(status == 0 || w.n == 0 && w.blocksize == 0, "a refused state is not filled in");
        status
    };
    let good = r#"{"shape": [8, 64], "blocksize": 64, "quant_type": "nf4", "dtype": "bfloat16",
        "nested_blocksize": 256, "nested_offset": 0.1}"#;
    assert_eq!(parse(good), 0, "{}", last_error());
    for (from, to, named) in [
        ("\"blocksize\": 64", "\"blocksize\": 0", "blocksize"),
        ("\"blocksize\": 64", "\"blocksize\": 65", "blocksize"),
        ("\"blocksize\": 64", "\"blocksize\": -64", "blocksize"),
        ("\"blocksize\": 64", "\"blocksize\": 1e2", "blocksize"),
        ("[8, 64]", "[8, -64]", "shape"),
        ("[8, 64]", "[8, 64, null]", "shape"),
        ("[8, 64]", "[4611686018427387904, 4]", "shape"),
        ("nested_blocksize\": 256", "nested_blocksize\": 0", "nested_blocksize"),
        ("0.1", "1e300", "nested_offset"),
        ("0.1", "\"0.1\"", "nested_offset"),
        ("bfloat16", "float8", "dtype"),
    ] {
        assert_eq!(parse(&good.replacen(from, to, 1)), sys::GRADUS_FORMAT as i32, "{from} -> {to}");
        assert!(last_error().contains(named), "{}", last_error());
    }
    assert_eq!(parse(&format!("{good}{}", " ".repeat(1024))), sys::GRADUS_FORMAT as i32);
}

#[test]
fn maps_and_sequence_weights_are_refused() {
    // SAFETY: places for as many values.
    unsafe {
        assert_eq!(sys::gradus_dynamic_map(2, [0f32; 256].as_mut_ptr()), 1);
        let (lengths, mut weights) = ([3i64, 4], [0.0; 2]);
        let bad = [
            (0, 2, 1.0),
            (1, 0, f64::NAN),
            (1, 0, 0.0),
            (4, 0, -1.0),
            (4, 1, f64::INFINITY),
            (6, 0, 1.0),
        ];
        for (kind, empty, value) in bad {
            let to = weights.as_mut_ptr();
            assert_eq!(sys::gradus_seq_weights(kind, empty, value, lengths.as_ptr(), 2, to), 1);
            assert_eq!(weights, [0.0; 2], "{kind} {empty} {value}");
        }
    }
}
