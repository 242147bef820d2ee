//! Formats and sums of the tensor cores, against definitions written a second time here.

mod tensor_common;

use gradus_emu::tensor::numerics::{
    Float, FloatAccumulator, Numerics, Product, TileA, TileB, TileC, Unit, f16_from_f64,
    f16_to_f32, f32_result,
};
use tensor_common::Bits;

/// `(-1)^s 2^(e - bias) (1 + m / 2^f)`, or `2^(1 - bias) m / 2^f` for `e = 0`.
fn definition(raw: u32, exponent_bits: u32, fraction_bits: u32, bias: i32) -> f64 {
    let sign = if raw >> (exponent_bits + fraction_bits) & 1 == 1 { -1.0 } else { 1.0 };
    let e = (raw >> fraction_bits & ((1 << exponent_bits) - 1)) as i32;
    let m = f64::from(raw & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
    if e == 0 { sign * 2f64.powi(1 - bias) * m } else { sign * 2f64.powi(e - bias) * (1.0 + m) }
}

#[test]
fn every_e4m3_and_e5m2() {
    for raw in 0..256 {
        let e4m3 = Float::E4m3.decode(raw);
        if raw & 0x7f == 0x7f {
            assert!(e4m3.is_nan());
        } else {
            let want = definition(raw, 4, 3, 7) as f32;
            assert_eq!(e4m3.to_bits(), want.to_bits(), "e4m3 {raw:#x}");
        }
        let e5m2 = Float::E5m2.decode(raw);
        match raw & 0x7f {
            0x7c => assert_eq!(e5m2.abs(), f32::INFINITY),
            0x7d..=0x7f => assert!(e5m2.is_nan()),
            _ => {
                let want = definition(raw, 5, 2, 15) as f32;
                assert_eq!(e5m2.to_bits(), want.to_bits(), "e5m2 {raw:#x}");
            }
        }
    }
    assert_eq!(Float::E4m3.decode(0x7e), 448.0);
    assert_eq!(Float::E5m2.decode(0x7b), 57344.0);
}

#[test]
fn every_f16_both_ways_and_every_midpoint() {
    for raw in 0..0x7c00_u16 {
        let x = definition(u32::from(raw), 5, 10, 15);
        assert_eq!(f64::from(f16_to_f32(raw)), x);
        assert_eq!(f16_to_f32(raw | 0x8000).to_bits(), (-x as f32).to_bits());
        assert_eq!(f16_from_f64(x), raw);
        assert_eq!(f16_from_f64(-x), raw | 0x8000);
        let above = if raw == 0x7bff { 65536.0 } else { definition(u32::from(raw) + 1, 5, 10, 15) };
        let middle = (x + above) / 2.0;
        assert_eq!(f16_from_f64(middle), raw + (raw & 1), "midpoint above {raw:#x}");
        assert_eq!(f16_from_f64(f64::from_bits(middle.to_bits() - 1)), raw);
        assert_eq!(f16_from_f64(f64::from_bits(middle.to_bits() + 1)), raw + 1);
    }
    assert_eq!(f16_to_f32(0x7c00), f32::INFINITY);
    assert_eq!(f16_to_f32(0xfc00), f32::NEG_INFINITY);
    assert!(f16_to_f32(0x7c01).is_nan());
    assert_eq!(f16_from_f64(f64::NAN), 0x7fff);
    assert_eq!(f16_from_f64(f64::NEG_INFINITY), 0xfc00);
}

#[test]
fn bf16_and_tf32_are_the_top_of_an_f32() {
    let x = f32::from_bits(0x3f9d_1234);
    assert_eq!(Float::Bf16.decode(0x3f9d), f32::from_bits(0x3f9d_0000));
    assert_eq!(Float::Tf32.decode(x.to_bits()), f32::from_bits(0x3f9d_0000));
    assert_eq!(Float::Tf32.decode(0x3f9d_3fff), f32::from_bits(0x3f9d_2000));
}

fn product(numerics: Numerics, float: Float, accumulator: FloatAccumulator) -> Product {
    Product { numerics, unit: Unit::Sync, a: float, b: float, accumulator }
}

/// A product whose output (0, 0) is `c + sum a[k] b[k]`; the other outputs are sums of zeros.
fn one<const K: usize>(product: Product, a: [f32; K], b: [f32; K], c: f32) -> f32 {
    let mut left: TileA<f32, K> = [[0.0; K]; 16];
    let mut right: TileB<f32, K> = [[0.0; 8]; K];
    let mut tile: TileC<f32> = [[0.0; 8]; 16];
    left[0] = a;
    for k in 0..K {
        right[k][0] = b[k];
    }
    tile[0][0] = c;
    product.accumulate(&left, &right, &mut tile);
    tile[0][0]
}

/// Nearest-even f32 of `sum * 2^-scale` for an integer sum, by integer arithmetic.
fn nearest_f32(sum: i128, scale: i32) -> f32 {
    if sum == 0 {
        return 0.0;
    }
    let magnitude = sum.unsigned_abs();
    let length = 128 - magnitude.leading_zeros() as i32;
    let cut = (length - 24).max(scale - 149).max(0);
    let (kept, lost) = (magnitude >> cut, magnitude & ((1 << cut) - 1));
    let half = if cut == 0 { 1 } else { 1_u128 << (cut - 1) };
    let up = u128::from(cut > 0 && (lost > half || (lost == half && kept & 1 == 1)));
    let value = (kept + up) as f64 * 2f64.powi(cut - scale);
    if sum < 0 { -(value as f32) } else { value as f32 }
}

/// An f32 as an integer multiple of `2^-scale`.
fn fixed(x: f32, scale: i32) -> i128 {
    if x == 0.0 {
        return 0;
    }
    let field = ((x.to_bits() >> 23) & 0xff) as i32;
    let significand = i128::from(x.to_bits() & 0x7f_ffff | u32::from(field > 0) << 23);
    let shift = field.max(1) - 150 + scale;
    let magnitude = if shift >= 0 {
        significand << shift
    } else {
        assert_eq!(significand & ((1 << -shift) - 1), 0);
        significand >> -shift
    };
    if x < 0.0 { -magnitude } else { magnitude }
}

#[test]
fn exact_sums_of_full_range_f16() {
    let mut bits = Bits::new(1);
    let mut values = || loop {
        let x = f16_to_f32(bits.next() as u16);
        if x.is_finite() {
            return x;
        }
    };
    for _ in 0..200 {
        let a: TileA<f32, 16> = std::array::from_fn(|_| std::array::from_fn(|_| values()));
        let b: TileB<f32, 16> = std::array::from_fn(|_| std::array::from_fn(|_| values()));
        let c: TileC<f32> = std::array::from_fn(|_| std::array::from_fn(|_| values()));
        let mut wide = c;
        product(Numerics::Exact, Float::F16, FloatAccumulator::F32).accumulate(&a, &b, &mut wide);
        let mut narrow = c;
        product(Numerics::Exact, Float::F16, FloatAccumulator::F16).accumulate(&a, &b, &mut narrow);
        for m in 0..16 {
            for n in 0..8 {
                let sum = (0..16).fold(fixed(c[m][n], 48), |sum, k| {
                    sum + fixed(a[m][k], 24) * fixed(b[k][n], 24)
                });
                let want = nearest_f32(sum, 48);
                assert_eq!(wide[m][n].to_bits(), want.to_bits());
                // Sums of this range overflow f16 or are rounded by integers here.
                let magnitude = sum.unsigned_abs();
                let want = if magnitude >= 65520_u128 << 48 {
                    f32::INFINITY
                } else {
                    let length = 128 - magnitude.leading_zeros() as i32;
                    let cut = (length - 11).max(24);
                    let kept = magnitude >> cut;
                    let (lost, half) = (magnitude & ((1 << cut) - 1), 1_u128 << (cut - 1));
                    let up = u128::from(lost > half || (lost == half && kept & 1 == 1));
                    ((kept + up) as f64 * 2f64.powi(cut - 48)) as f32
                };
                assert_eq!(narrow[m][n].abs(), want);
                assert!(sum == 0 || narrow[m][n] == 0.0 || (narrow[m][n] < 0.0) == (sum < 0));
            }
        }
    }
}

#[test]
fn exact_sums_survive_cancellation_and_ties() {
    let exact = product(Numerics::Exact, Float::Bf16, FloatAccumulator::F32);
    let big = 2f32.powi(60);
    // 2^120 - 2^120 + 2^-120: the f64 sum would be 0 or 2^-120 by luck of the order.
    let a = [big, 2f32.powi(-60), -big, 0.0];
    let b = [big, 2f32.powi(-60), big, 0.0];
    assert_eq!(one(exact, a, b, 0.0), 2f32.powi(-120));
    // 1 + 2^-24 is a tie, to even; anything above it is not.
    let tie = [1.0, 2f32.powi(-12), 0.0, 0.0];
    assert_eq!(one(exact, tie, tie, 0.0), 1.0);
    let above = [1.0, 2f32.powi(-12), 2f32.powi(-60), 0.0];
    assert_eq!(one(exact, above, above, 0.0), 1.0 + f32::EPSILON);
    // The term 2^-120 below a tie decides it the other way; c takes part in the same sum.
    let below = [1.0, 2f32.powi(-12), 2f32.powi(-60), 0.0];
    let signs = [1.0, 2f32.powi(-12), -2f32.powi(-60), 0.0];
    assert_eq!(one(exact, below, signs, 0.0), 1.0);
    assert_eq!(one(exact, [1.0, 0.0, 0.0, 0.0], [-3.0; 4], 3.0).to_bits(), 0);
    assert_eq!(one(exact, [-0.0; 4], [1.0; 4], -0.0).to_bits(), 0);
}

#[test]
fn exact_sums_of_wide_bf16_against_integers() {
    let mut bits = Bits::new(7);
    // Exponents -20..=20: products need 2 * 27 bits below the point and 43 above, plus c.
    let mut value = |fraction: u32| {
        let field = 107 + bits.below(41) as u32;
        f32::from_bits((bits.next() as u32 & (0x8000_0000 | fraction)) | field << 23)
    };
    for _ in 0..300 {
        let a: TileA<f32, 16> = std::array::from_fn(|_| std::array::from_fn(|_| value(0x7f_0000)));
        let b: TileB<f32, 16> = std::array::from_fn(|_| std::array::from_fn(|_| value(0x7f_0000)));
        let c: TileC<f32> = std::array::from_fn(|_| std::array::from_fn(|_| value(0x7f_ffff)));
        let mut d = c;
        product(Numerics::Exact, Float::Bf16, FloatAccumulator::F32).accumulate(&a, &b, &mut d);
        for m in 0..16 {
            for n in 0..8 {
                let sum = (0..16).fold(fixed(c[m][n], 54), |sum, k| {
                    sum + fixed(a[m][k], 27) * fixed(b[k][n], 27)
                });
                assert_eq!(d[m][n].to_bits(), nearest_f32(sum, 54).to_bits());
            }
        }
    }
}

#[test]
fn truncation_of_small_terms_in_closed_form() {
    // c = 1 and eight products of 2^-25: 2^-22 in total, seen by 25 fractional bits only.
    let small = [2f32.powi(-12); 16];
    let mut b = [0.0; 16];
    b[..8].fill(2f32.powi(-13));
    let run = |numerics| one(product(numerics, Float::Bf16, FloatAccumulator::F32), small, b, 1.0);
    assert_eq!(run(Numerics::Exact), 1.0 + 2f32.powi(-22));
    assert_eq!(run(Numerics::Ampere), 1.0);
    assert_eq!(run(Numerics::Hopper), 1.0 + 2f32.powi(-22));
    // 2^-24 in the first half of k and -2^-24 in the second: Hopper sums to exactly 1, Ampere
    // truncates 1 + 2^-24 to 1 after the first half.
    let mut b = [0.0; 16];
    b[0] = 2f32.powi(-12);
    b[8] = -2f32.powi(-12);
    let run = |numerics| one(product(numerics, Float::Bf16, FloatAccumulator::F32), small, b, 1.0);
    assert_eq!(run(Numerics::Hopper), 1.0);
    assert_eq!(run(Numerics::Ampere), 1.0 - 2f32.powi(-24));
}

#[test]
fn results_are_truncated_toward_zero() {
    // 1 + 3 * 2^-25 is nearer to 1 + 2^-23 than to 1.
    let a = [2f32.powi(-13), 2f32.powi(-13), 2f32.powi(-13), 0.0];
    let b = [2f32.powi(-12); 4];
    let run = |numerics, c| one(product(numerics, Float::Tf32, FloatAccumulator::F32), a, b, c);
    assert_eq!(run(Numerics::Exact, 1.0), 1.0 + f32::EPSILON);
    assert_eq!(run(Numerics::Hopper, 1.0), 1.0);
    // An f16 accumulator rounds to nearest: 1 + 3 * 2^-12.
    let a = [2f32.powi(-12); 8];
    let mut b = [0.0; 8];
    b[..3].fill(1.0);
    let run = |numerics| one(product(numerics, Float::F16, FloatAccumulator::F16), a, b, 1.0);
    for numerics in [Numerics::Exact, Numerics::Ampere, Numerics::Hopper] {
        assert_eq!(run(numerics), 1.0 + 2f32.powi(-10));
    }
}

#[test]
fn fp8_keeps_thirteen_bits_where_the_devices_do() {
    let run = |numerics, unit, c| {
        let product = Product {
            numerics,
            unit,
            a: Float::E4m3,
            b: Float::E5m2,
            accumulator: FloatAccumulator::F32,
        };
        one(product, [0.0; 32], [1.0; 32], c)
    };
    let c = f32::from_bits(0x3fff_ffff);
    let cut = f32::from_bits(0x3fff_fc00);
    assert_eq!(run(Numerics::Exact, Unit::Wgmma, c), c);
    assert_eq!(run(Numerics::Hopper, Unit::Wgmma, c), cut);
    assert_eq!(run(Numerics::Ampere, Unit::Sync, c), cut);
    assert_eq!(run(Numerics::Hopper, Unit::Sync, c), c);
}

/// The truncated sum in f64, from the definition: exponents by comparison with powers of two.
fn truncated<const K: usize>(
    f: i32,
    block: usize,
    min: i32,
    a: [f32; K],
    b: [f32; K],
    c: f32,
) -> f32 {
    let split = |x: f32, min: i32| {
        let mut e = min;
        while f64::from(x.abs()) >= 2f64.powi(e + 1) {
            e += 1;
        }
        (f64::from(x) * 2f64.powi(-e), if x == 0.0 { -1000 } else { e })
    };
    let mut d = c;
    for first in (0..K).step_by(block) {
        let mut terms = vec![split(d, -126)];
        for k in first..first + block {
            let ((sa, ea), (sb, eb)) = (split(a[k], min), split(b[k], min));
            terms.push((sa * sb, ea + eb));
        }
        let top =
            terms.iter().map(|term| term.1).max().unwrap().max(if f == 24 { -132 } else { -133 });
        let sum: f64 =
            terms.iter().map(|(s, e)| (s * 2f64.powi((f + e - top).max(-900))).trunc()).sum();
        // Toward zero: the nearest f32, stepped back if it is beyond.
        let exact = sum * 2f64.powi(top - f);
        let near = exact as f32;
        d = if f64::from(near.abs()) > exact.abs() {
            f32::from_bits(near.to_bits() - 1)
        } else {
            near
        } + 0.0;
    }
    d
}

#[test]
fn truncated_sums_against_the_definition() {
    let mut bits = Bits::new(3);
    for round in 0..400 {
        let f16 = round % 2 == 0;
        let (float, min) = if f16 { (Float::F16, -14) } else { (Float::Bf16, -126) };
        let spread = [3, 10, 30][round % 3];
        let mut value = || {
            let field = if bits.below(10) == 0 { 0 } else { 15 + bits.below(spread) as u32 % 15 };
            let word = bits.next() as u32;
            if f16 {
                float.decode((word & 0x83ff) | field << 10)
            } else {
                // Down to products of 2^-126 and to subnormal operands.
                float.decode(
                    (word & 0x807f) | (if round % 5 == 0 { field } else { field + 100 }) << 7,
                )
            }
        };
        let a: [f32; 16] = std::array::from_fn(|_| value());
        let b: [f32; 16] = std::array::from_fn(|_| value());
        let c = value() * value();
        for (numerics, f, block) in [(Numerics::Ampere, 24, 8), (Numerics::Hopper, 25, 16)] {
            let got = one(product(numerics, float, FloatAccumulator::F32), a, b, c);
            let want = truncated(f, block, min, a, b, c);
            assert_eq!(got.to_bits(), want.to_bits(), "{numerics:?} {float:?} {a:?} {b:?} {c}");
        }
    }
}

#[test]
fn truncation_biases_long_sums_toward_zero() {
    let mut bits = Bits::new(11);
    let mut sums = [0.0_f32; 3];
    for _ in 0..400 {
        let a: [f32; 16] =
            std::array::from_fn(|_| Float::Bf16.decode(0x3f80 | bits.next() as u32 & 0x7f));
        let modes = [Numerics::Exact, Numerics::Ampere, Numerics::Hopper];
        for (sum, numerics) in sums.iter_mut().zip(modes) {
            *sum = one(product(numerics, Float::Bf16, FloatAccumulator::F32), a, a, *sum);
        }
    }
    assert!(sums[0] > sums[2] && sums[2] > sums[1], "{sums:?}");
    assert!(sums.iter().all(|sum| (sum / sums[0] - 1.0).abs() < 1e-4), "{sums:?}");
}

#[test]
fn infinities_and_nan_in_every_mode() {
    let inf = f32::INFINITY;
    for numerics in [Numerics::Exact, Numerics::Ampere, Numerics::Hopper] {
        let p = product(numerics, Float::Bf16, FloatAccumulator::F32);
        assert_eq!(one(p, [inf, 1.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0], -5.0), inf);
        assert_eq!(one(p, [1.0; 4], [1.0; 4], -inf), -inf);
        assert!(one(p, [inf, inf, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0], 0.0).is_nan());
        assert!(one(p, [inf, 0.0, 0.0, 0.0], [0.0; 4], 0.0).is_nan());
        assert!(one(p, [f32::NAN, 0.0, 0.0, 0.0], [0.0; 4], 0.0).is_nan());
        // The finite sum 2^127 + 2^127 overflows; 2^127 - 2^127 does not, in any order.
        let big = 2f32.powi(64);
        assert_eq!(one(p, [big, 0.0, 0.0, 0.0], [2f32.powi(63); 4], 2f32.powi(127)), inf);
        assert_eq!(one(p, [-big, 0.0, 0.0, 0.0], [2f32.powi(63); 4], 2f32.powi(127)), 0.0);
        let h = product(numerics, Float::F16, FloatAccumulator::F16);
        assert_eq!(one(h, [256.0, 0.0, 0.0, 0.0], [256.0; 4], 0.0), inf);
        assert_eq!(one(h, [-256.0, 0.0, 0.0, 0.0], [255.0; 4], 0.0), -65280.0);
    }
}

/// `tests/tensor_sums.txt`: 680 sums computed by MMA-Sim 2.1.1, whose models were compared bit for
/// bit with the devices. A line is: instruction, architecture, types of a, b and c, k, and the
/// bits of a, b, c and of the result, in hexadecimal.
#[test]
fn sums_of_mma_sim() {
    let mut counts = std::collections::BTreeMap::new();
    for line in include_str!("tensor_sums.txt").lines() {
        let field: Vec<&str> = line.split(' ').collect();
        let [unit, arch, ta, tb, tc, k, a, b, c, d] = field[..] else { panic!("{line}") };
        let float = |name: &str| match name {
            "bf16" => Float::Bf16,
            "f16" => Float::F16,
            "tf32" => Float::Tf32,
            "e4m3" => Float::E4m3,
            _ => Float::E5m2,
        };
        let product = Product {
            numerics: if arch == "Hopper" { Numerics::Hopper } else { Numerics::Ampere },
            unit: if unit == "mma" { Unit::Sync } else { Unit::Wgmma },
            a: float(ta),
            b: float(tb),
            accumulator: if tc == "f32" { FloatAccumulator::F32 } else { FloatAccumulator::F16 },
        };
        let values = |float: Float, text: &str| -> Vec<f32> {
            let digits = float.bits() as usize / 4;
            text.as_bytes()
                .chunks(digits)
                .map(|part| std::str::from_utf8(part).unwrap())
                .map(|part| float.decode(u32::from_str_radix(part, 16).unwrap()))
                .collect()
        };
        let bits = |text: &str| u32::from_str_radix(text, 16).unwrap();
        let (a, b) = (values(product.a, a), values(product.b, b));
        let c = if tc == "f32" { f32::from_bits(bits(c)) } else { f16_to_f32(bits(c) as u16) };
        let got = match k {
            "8" => one::<8>(product, a.try_into().unwrap(), b.try_into().unwrap(), c),
            "16" => one::<16>(product, a.try_into().unwrap(), b.try_into().unwrap(), c),
            _ => one::<32>(product, a.try_into().unwrap(), b.try_into().unwrap(), c),
        };
        let got = match product.accumulator {
            FloatAccumulator::F32 => f32_result(got),
            FloatAccumulator::F16 => u32::from(f16_from_f64(f64::from(got))),
        };
        assert_eq!(got, bits(d), "{got:#x} for {line}");
        *counts.entry((unit, arch, ta, tc)).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 15);
    assert!(counts.values().all(|&count| count >= 40), "{counts:?}");
}
