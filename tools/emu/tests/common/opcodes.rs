//! One case per opcode and modifier: a few lines of PTX on the values of a lane, and what they have
//! to give, computed another way. The list is also what conformance with hardware runs.

use super::Bits;

/// What operands look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Inputs {
    /// Any bits, with edge values.
    Bits,
    /// f32 in the low half, with infinities, NaN, zeros and subnormal numbers.
    F32,
    F64,
    /// Two f16 in the low half.
    F16x2,
    Bf16x2,
}

/// A case: `body` leaves its result at `[%rd0]` as 64 bits.
pub struct Case {
    pub body: &'static str,
    pub inputs: Inputs,
    pub want: fn(u64, u64, u64) -> u64,
    /// Approximate instructions have other bits on other devices: how far a device may be from the
    /// exact f32 result, relative and absolute, as the PTX manual says.
    pub approximate: Option<[f32; 2]>,
}

/// Three operands for 32 lanes.
pub fn operands(inputs: Inputs, seed: u64) -> [[u64; 32]; 3] {
    let mut bits = Bits(seed);
    let mut row = || std::array::from_fn(|lane| one(inputs, lane, &mut bits));
    [row(), row(), row()]
}

const F32_EDGES: [u32; 10] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    1,
    0x7f7f_ffff,
    0x0080_0000,
];

fn one(inputs: Inputs, lane: usize, bits: &mut Bits) -> u64 {
    let edge = bits.next().is_multiple_of(3) && lane.is_multiple_of(2);
    let pick = bits.next();
    match inputs {
        Inputs::Bits => match pick % 8 {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (bits.next() % 64),
            3 => bits.next() & 0xff,
            _ => bits.next(),
        },
        Inputs::F32 if edge => F32_EDGES[pick as usize % 10] as u64,
        Inputs::F32 => (bits.unit() * 2f32.powi((pick % 40) as i32 - 20)).to_bits() as u64,
        Inputs::F64 if edge => {
            [0.0, -0.0, 1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 5e-324, f64::MAX]
                [pick as usize % 8]
                .to_bits()
        }
        Inputs::F64 => {
            let fraction = (bits.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
            (fraction * 2f64.powi((pick % 80) as i32 - 40)).to_bits()
        }
        // Exponents in the middle of the range, so that sums and products are finite.
        Inputs::F16x2 => {
            let half = |x: u64| ((x & 0x83ff) | (10 + x % 11) << 10) & 0xffff;
            half(pick >> 7) | half(bits.next() >> 9) << 16
        }
        Inputs::Bf16x2 => {
            let half = |x: u64| ((x & 0x807f) | (118 + x % 19) << 7) & 0xffff;
            half(pick >> 7) | half(bits.next() >> 9) << 16
        }
    }
}

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

fn out(x: f32) -> u64 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() as u64 }
}

fn out64(x: f64) -> u64 {
    if x.is_nan() { 0x7ff8_0000_0000_0000 } else { x.to_bits() }
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// The neighbor of a nearest-rounded f32 on the wanted side of an exact value given as a sign.
fn toward(nearest: f32, exact_minus_nearest: f64, up: bool) -> f32 {
    if nearest.is_nan() {
        return nearest;
    }
    match up {
        true if exact_minus_nearest > 0.0 => nearest.next_up(),
        false if exact_minus_nearest < 0.0 => nearest.next_down(),
        _ => nearest,
    }
}

fn h16(x: u64, hi: bool) -> f64 {
    let bits = (x >> if hi { 16 } else { 0 }) as u16;
    let (e, m) = ((bits >> 10 & 31) as i32, (bits & 0x3ff) as f64);
    let v = if e == 0 { m * 2f64.powi(-24) } else { (1.0 + m / 1024.0) * 2f64.powi(e - 15) };
    if bits & 0x8000 != 0 { -v } else { v }
}

fn b16(x: u64, hi: bool) -> f64 {
    f32::from_bits(((x >> if hi { 16 } else { 0 }) as u32) << 16) as f64
}

/// x rounded to a grid of `fraction` bits by scaling: finite, normal results only.
fn to_grid(x: f64, fraction: i32) -> f64 {
    if x == 0.0 {
        return x;
    }
    let e = x.abs().log2().floor() as i32;
    let e = if x.abs() >= 2f64.powi(e + 1) { e + 1 } else { e };
    let q = 2f64.powi(e - fraction);
    (x / q).round_ties_even() * q
}

fn put_h16(x: f64) -> u64 {
    let v = to_grid(x, 10);
    if v.abs() < 2f64.powi(-14) {
        let q = (x / 2f64.powi(-24)).round_ties_even();
        return (q.abs() as u64) | ((x.is_sign_negative() as u64) << 15);
    }
    let e = v.abs().log2().floor() as i64;
    let m = ((v.abs() / 2f64.powi(e as i32) - 1.0) * 1024.0) as u64;
    ((e + 15) as u64) << 10 | m | ((v < 0.0) as u64) << 15
}

fn put_b16(x: f64) -> u64 {
    (to_grid(x, 7) as f32).to_bits() as u64 >> 16
}

macro_rules! case {
    ($inputs:ident, $body:expr, $want:expr) => {
        Case { body: $body, inputs: Inputs::$inputs, want: $want, approximate: None }
    };
    (~ $inputs:ident, $body:expr, $want:expr) => {
        case!(~ [1.2e-7, 0.0] $inputs, $body, $want)
    };
    (~ $bound:tt $inputs:ident, $body:expr, $want:expr) => {
        Case { body: $body, inputs: Inputs::$inputs, want: $want, approximate: Some($bound) }
    };
}

macro_rules! n2 {
    ($op:literal) => {
        concat!(
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\n",
            $op,
            " %r3, %r1, %r2;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! n1 {
    ($op:literal) => {
        concat!(
            "ld.global.u32 %r1, [%rd1];\n",
            $op,
            " %r3, %r1;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! n3 {
    ($op:literal) => {
        concat!(
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\nld.global.u32 %r4, [%rd3];\n",
            $op,
            " %r3, %r1, %r2, %r4;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! w2 {
    ($op:literal) => {
        concat!(
            "ld.global.u64 %rd4, [%rd1];\nld.global.u64 %rd5, [%rd2];\n",
            $op,
            " %rd6, %rd4, %rd5;\nst.global.u64 [%rd0], %rd6;"
        )
    };
}
macro_rules! wn {
    ($op:literal) => {
        concat!(
            "ld.global.u64 %rd4, [%rd1];\nld.global.u32 %r2, [%rd2];\nand.b32 %r2, %r2, 127;\n",
            $op,
            " %rd6, %rd4, %r2;\nst.global.u64 [%rd0], %rd6;"
        )
    };
}
macro_rules! f2 {
    ($op:literal) => {
        concat!("ld.global.f32 %f1, [%rd1];\nld.global.f32 %f2, [%rd2];\n", $op, " %f3, %f1, %f2;\nmov.b32 %r3, %f3;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;")
    };
}
macro_rules! f1 {
    ($op:literal) => {
        concat!(
            "ld.global.f32 %f1, [%rd1];\n",
            $op,
            " %f3, %f1;\nmov.b32 %r3, %f3;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! f3 {
    ($op:literal) => {
        concat!("ld.global.f32 %f1, [%rd1];\nld.global.f32 %f2, [%rd2];\nld.global.f32 %f4, [%rd3];\n", $op, " %f3, %f1, %f2, %f4;\nmov.b32 %r3, %f3;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;")
    };
}
macro_rules! d2 {
    ($op:literal) => {
        concat!(
            "ld.global.f64 %fd1, [%rd1];\nld.global.f64 %fd2, [%rd2];\n",
            $op,
            " %fd3, %fd1, %fd2;\nst.global.f64 [%rd0], %fd3;"
        )
    };
}
macro_rules! d1 {
    ($op:literal) => {
        concat!("ld.global.f64 %fd1, [%rd1];\n", $op, " %fd3, %fd1;\nst.global.f64 [%rd0], %fd3;")
    };
}
macro_rules! compare {
    ($ty:literal, $reg:literal, $op:literal) => {
        concat!(
            "ld.global.",
            $ty,
            " ",
            $reg,
            "1, [%rd1];\nld.global.",
            $ty,
            " ",
            $reg,
            "2, [%rd2];\nsetp.",
            $op,
            ".",
            $ty,
            " %p1, ",
            $reg,
            "1, ",
            $reg,
            "2;\nselp.b64 %rd9, 1, 0, %p1;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}

fn unordered(a: u64, b: u64) -> bool {
    f(a).is_nan() || f(b).is_nan()
}

fn lo(x: u64) -> u32 {
    x as u32
}

fn s(x: u64) -> i32 {
    x as i32
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut all = integer();
    all.extend(wide());
    all.extend(float());
    all.extend(double());
    all.extend(conversions());
    all.extend(halves());
    all.extend(comparisons());
    all
}

fn integer() -> Vec<Case> {
    vec![
        case!(Bits, n2!("add.s32"), |a, b, _| lo(a).wrapping_add(lo(b)) as u64),
        case!(Bits, n2!("sub.s32"), |a, b, _| lo(a).wrapping_sub(lo(b)) as u64),
        case!(Bits, n2!("add.sat.s32"), |a, b, _| s(a).saturating_add(s(b)) as u32 as u64),
        case!(Bits, n2!("mul.lo.s32"), |a, b, _| lo(a).wrapping_mul(lo(b)) as u64),
        case!(Bits, n2!("mul.hi.u32"), |a, b, _| (lo(a) as u64 * lo(b) as u64) >> 32),
        case!(Bits, n2!("mul.hi.s32"), |a, b, _| ((s(a) as i64 * s(b) as i64) >> 32) as u32 as u64),
        case!(Bits, n3!("mad.lo.s32"), |a, b, c| lo(a).wrapping_mul(lo(b)).wrapping_add(lo(c))
            as u64),
        case!(Bits, n3!("mad.hi.u32"), |a, b, c| (((lo(a) as u64 * lo(b) as u64) >> 32) as u32)
            .wrapping_add(lo(c)) as u64),
        case!(Bits, n2!("min.s32"), |a, b, _| s(a).min(s(b)) as u32 as u64),
        case!(Bits, n2!("max.s32"), |a, b, _| s(a).max(s(b)) as u32 as u64),
        case!(Bits, n2!("min.u32"), |a, b, _| lo(a).min(lo(b)) as u64),
        case!(Bits, n2!("max.u32"), |a, b, _| lo(a).max(lo(b)) as u64),
        case!(Bits, n2!("and.b32"), |a, b, _| (a & b) & 0xffff_ffff),
        case!(Bits, n2!("or.b32"), |a, b, _| (a | b) & 0xffff_ffff),
        case!(Bits, n2!("xor.b32"), |a, b, _| (a ^ b) & 0xffff_ffff),
        case!(Bits, n1!("not.b32"), |a, _, _| !lo(a) as u64),
        case!(Bits, n1!("cnot.b32"), |a, _, _| (lo(a) == 0) as u64),
        case!(Bits, n1!("neg.s32"), |a, _, _| lo(a).wrapping_neg() as u64),
        case!(Bits, n1!("abs.s32"), |a, _, _| s(a).unsigned_abs() as u64),
        case!(Bits, n1!("popc.b32"), |a, _, _| lo(a).count_ones() as u64),
        case!(Bits, n1!("clz.b32"), |a, _, _| lo(a).leading_zeros() as u64),
        case!(Bits, n1!("brev.b32"), |a, _, _| lo(a).reverse_bits() as u64),
        case!(Bits, n1!("bfind.u32"), |a, _, _| if lo(a) == 0 {
            0xffff_ffff
        } else {
            31 - lo(a).leading_zeros() as u64
        }),
        case!(Bits, n1!("bfind.s32"), |a, _, _| {
            let v = if s(a) < 0 { !lo(a) } else { lo(a) };
            if v == 0 { 0xffff_ffff } else { 31 - v.leading_zeros() as u64 }
        }),
        case!(Bits, n2!("shl.b32"), |a, b, _| (lo(a) as u64)
            .checked_shl(lo(b))
            .map_or(0, |v| v & 0xffff_ffff)),
        case!(Bits, n2!("shr.u32"), |a, b, _| lo(a).checked_shr(lo(b)).unwrap_or(0) as u64),
        case!(Bits, n2!("shr.s32"), |a, b, _| (s(a) as i64 >> lo(b).min(63)) as u32 as u64),
        case!(Bits, n3!("shf.l.wrap.b32"), |a, b, c| (((b << 32 | a & 0xffff_ffff) << (c & 31))
            >> 32)
            & 0xffff_ffff),
        case!(Bits, n3!("shf.r.wrap.b32"), |a, b, c| ((b << 32 | a & 0xffff_ffff) >> (c & 31))
            & 0xffff_ffff),
        case!(Bits, n3!("shf.r.clamp.b32"), |a, b, c| ((b << 32 | a & 0xffff_ffff)
            >> lo(c).min(32))
            & 0xffff_ffff),
        case!(Bits, n3!("prmt.b32"), |a, b, c| {
            let bytes: Vec<u8> = [lo(a).to_le_bytes(), lo(b).to_le_bytes()].concat();
            let pick = |i: u32| {
                let n = (c >> (4 * i)) as usize;
                let byte = bytes[n & 7];
                if n & 8 == 0 {
                    byte
                } else if byte >= 128 {
                    255
                } else {
                    0
                }
            };
            u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)]) as u64
        }),
        case!(Bits, n3!("bfe.u32"), |a, b, c| {
            let (p, n) = (b & 255, c & 255);
            let v = if p > 31 { 0 } else { (lo(a) as u64) >> p };
            if n > 31 { v } else { v & ((1 << n) - 1) }
        }),
        case!(Bits, n3!("dp4a.u32.u32"), |a, b, c| {
            let (x, y) = (lo(a).to_le_bytes(), lo(b).to_le_bytes());
            (0..4).fold(lo(c), |s, i| s.wrapping_add(x[i] as u32 * y[i] as u32)) as u64
        }),
        case!(Bits, n3!("sad.u32"), |a, b, c| lo(c).wrapping_add(lo(a).abs_diff(lo(b))) as u64),
        case!(Bits, n2!("div.u32"), |a, b, _| lo(a).checked_div(lo(b)).unwrap_or(u32::MAX) as u64),
        case!(Bits, n2!("rem.u32"), |a, b, _| if lo(b) == 0 {
            0xffff_ffff
        } else {
            (lo(a) % lo(b)) as u64
        }),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\nld.global.u32 %r4, [%rd3];\nlop3.b32 %r3, %r1, %r2, %r4, 0xE8;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, c| ((a & b) | (a & c) | (b & c)) & 0xffff_ffff
        ),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\nbfi.b32 %r3, %r1, %r2, 5, 9;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| (b & 0xffff_ffff & !(0x1ff << 5)) | (a & 0x1ff) << 5
        ),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\nbfe.s32 %r3, %r1, 4, 7;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;",
            |a, _, _| (((lo(a) as i32) << 21) >> 25) as u32 as u64
        ),
        case!(
            Bits,
            "ld.global.u16 %h1, [%rd1];\nld.global.u16 %h2, [%rd2];\nmul.wide.u16 %r3, %h1, %h2;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| (a & 0xffff) * (b & 0xffff)
        ),
        case!(
            Bits,
            "ld.global.u16 %h1, [%rd1];\nld.global.u16 %h2, [%rd2];\nadd.s16 %h3, %h1, %h2;\ncvt.u64.u16 %rd9, %h3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| (a as u16).wrapping_add(b as u16) as u64
        ),
        case!(
            Bits,
            "ld.global.s8 %r1, [%rd1];\nld.global.u8 %r2, [%rd2];\nadd.s32 %r3, %r1, %r2;\ncvt.s64.s32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| (a as i8 as i64 + b as u8 as i64) as u64
        ),
    ]
}

fn wide() -> Vec<Case> {
    vec![
        case!(Bits, w2!("add.s64"), |a, b, _| a.wrapping_add(b)),
        case!(Bits, w2!("sub.s64"), |a, b, _| a.wrapping_sub(b)),
        case!(Bits, w2!("mul.lo.s64"), |a, b, _| a.wrapping_mul(b)),
        case!(Bits, w2!("mul.hi.u64"), |a, b, _| ((a as u128 * b as u128) >> 64) as u64),
        case!(Bits, w2!("mul.hi.s64"), |a, b, _| ((a as i64 as i128 * b as i64 as i128) >> 64)
            as u64),
        case!(Bits, w2!("min.s64"), |a, b, _| (a as i64).min(b as i64) as u64),
        case!(Bits, w2!("max.u64"), |a, b, _| a.max(b)),
        case!(Bits, w2!("xor.b64"), |a, b, _| a ^ b),
        case!(Bits, w2!("rem.u64"), |a, b, _| if b == 0 { u64::MAX } else { a % b }),
        case!(Bits, wn!("shl.b64"), |a, b, _| a.checked_shl(b as u32 & 127).unwrap_or(0)),
        case!(Bits, wn!("shr.u64"), |a, b, _| a.checked_shr(b as u32 & 127).unwrap_or(0)),
        case!(Bits, wn!("shr.s64"), |a, b, _| (a as i64 >> (b & 127).min(63)) as u64),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\nld.global.u64 %rd5, [%rd3];\nmad.wide.s32 %rd6, %r1, %r2, %rd5;\nst.global.u64 [%rd0], %rd6;",
            |a, b, c| ((s(a) as i64 * s(b) as i64) as u64).wrapping_add(c)
        ),
        case!(
            Bits,
            "ld.global.u64 %rd4, [%rd1];\nmov.b64 {%r1, %r2}, %rd4;\nmov.b64 %rd6, {%r2, %r1};\nst.global.u64 [%rd0], %rd6;",
            |a, _, _| a.rotate_left(32)
        ),
        case!(
            Bits,
            "ld.global.v2.u32 {%r1, %r2}, [%rd1];\nst.global.v2.u32 [%rd0], {%r2, %r1};",
            |a, _, _| a.rotate_left(32)
        ),
        case!(
            Bits,
            "ld.global.u64 %rd4, [%rd1];\npopc.b64 %r1, %rd4;\nclz.b64 %r2, %rd4;\nmov.b64 %rd6, {%r1, %r2};\nst.global.u64 [%rd0], %rd6;",
            |a, _, _| a.count_ones() as u64 | (a.leading_zeros() as u64) << 32
        ),
    ]
}

fn float() -> Vec<Case> {
    vec![
        case!(F32, f2!("add.f32"), |a, b, _| out(f(a) + f(b))),
        case!(F32, f2!("sub.f32"), |a, b, _| out(f(a) - f(b))),
        case!(F32, f2!("mul.f32"), |a, b, _| out(f(a) * f(b))),
        case!(F32, f2!("mul.ftz.f32"), |a, b, _| out(flush(flush(f(a)) * flush(f(b))))),
        case!(F32, f2!("add.ftz.f32"), |a, b, _| out(flush(flush(f(a)) + flush(f(b))))),
        case!(F32, f2!("add.sat.f32"), |a, b, _| {
            let x = f(a) + f(b);
            out(if x > 0.0 { x.min(1.0) } else { 0.0 })
        }),
        case!(F32, f2!("div.rn.f32"), |a, b, _| out(f(a) / f(b))),
        case!(F32, f1!("sqrt.rn.f32"), |a, _, _| out(f(a).sqrt())),
        case!(F32, f1!("rcp.rn.f32"), |a, _, _| out(1.0 / f(a))),
        case!(F32, f3!("fma.rn.f32"), |a, b, c| out(f(a).mul_add(f(b), f(c)))),
        case!(F32, f2!("mul.rp.f32"), |a, b, _| {
            let (exact, near) = (f(a) as f64 * f(b) as f64, f(a) * f(b));
            out(if near.is_infinite() && exact.is_finite() && exact < 0.0 {
                f32::MIN
            } else {
                toward(near, exact - near as f64, true)
            })
        }),
        case!(F32, f2!("mul.rm.f32"), |a, b, _| {
            let (exact, near) = (f(a) as f64 * f(b) as f64, f(a) * f(b));
            out(if near.is_infinite() && exact.is_finite() && exact > 0.0 {
                f32::MAX
            } else {
                toward(near, exact - near as f64, false)
            })
        }),
        case!(F32, f2!("min.f32"), |a, b, _| {
            let (x, y) = (f(a), f(b));
            out(if x == y { if x.is_sign_negative() { x } else { y } } else { x.min(y) })
        }),
        case!(F32, f2!("max.f32"), |a, b, _| {
            let (x, y) = (f(a), f(b));
            out(if x == y { if x.is_sign_negative() { y } else { x } } else { x.max(y) })
        }),
        case!(F32, f2!("max.NaN.f32"), |a, b, _| {
            let (x, y) = (f(a), f(b));
            if x.is_nan() || y.is_nan() {
                0x7fff_ffff
            } else if x == y {
                out(if x.is_sign_negative() { y } else { x })
            } else {
                out(x.max(y))
            }
        }),
        case!(F32, f1!("neg.f32"), |a, _, _| a ^ 0x8000_0000),
        case!(F32, f1!("abs.f32"), |a, _, _| a & 0x7fff_ffff),
        case!(F32, f2!("copysign.f32"), |a, b, _| (b & 0x7fff_ffff) | (a & 0x8000_0000)),
        case!(~ F32, f1!("ex2.approx.ftz.f32"), |a, _, _| out(flush((flush(f(a)) as f64).exp2() as f32))),
        case!(~ [2.4e-7, 2.4e-7] F32, f1!("lg2.approx.ftz.f32"), |a, _, _| out(flush((flush(f(a)) as f64).log2() as f32))),
        case!(~ F32, f1!("rcp.approx.ftz.f32"), |a, _, _| out(flush(1.0 / flush(f(a))))),
        case!(~ F32, f1!("rsqrt.approx.ftz.f32"), |a, _, _| out((1.0 / (flush(f(a)) as f64).sqrt()) as f32)),
        case!(~ [4.9e-4, 0.0] F32, f1!("tanh.approx.f32"), |a, _, _| out((f(a) as f64).tanh() as f32)),
    ]
}

fn double() -> Vec<Case> {
    vec![
        case!(F64, d2!("add.f64"), |a, b, _| out64(d(a) + d(b))),
        case!(F64, d2!("sub.f64"), |a, b, _| out64(d(a) - d(b))),
        case!(F64, d2!("mul.f64"), |a, b, _| out64(d(a) * d(b))),
        case!(F64, d2!("div.rn.f64"), |a, b, _| out64(d(a) / d(b))),
        case!(F64, d1!("sqrt.rn.f64"), |a, _, _| out64(d(a).sqrt())),
        case!(F64, d1!("neg.f64"), |a, _, _| a ^ (1 << 63)),
        case!(F64, d1!("abs.f64"), |a, _, _| a & !(1 << 63)),
        case!(F64, d2!("max.f64"), |a, b, _| {
            let (x, y) = (d(a), d(b));
            out64(if x == y { if x.is_sign_negative() { y } else { x } } else { x.max(y) })
        }),
        case!(
            F64,
            "ld.global.f64 %fd1, [%rd1];\nld.global.f64 %fd2, [%rd2];\nld.global.f64 %fd4, [%rd3];\nfma.rn.f64 %fd3, %fd1, %fd2, %fd4;\nst.global.f64 [%rd0], %fd3;",
            |a, b, c| out64(d(a).mul_add(d(b), d(c)))
        ),
    ]
}

macro_rules! convert {
    ($op:literal, $from:literal, $fr:literal, $to:literal) => {
        concat!("ld.global.", $from, " ", $fr, "1, [%rd1];\n", $op, " ", $to, "3, ", $fr, "1;\n")
    };
}
macro_rules! to_f32 {
    ($op:literal, $from:literal, $fr:literal) => {
        concat!(
            convert!($op, $from, $fr, "%f"),
            "mov.b32 %r3, %f3;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! to_r32 {
    ($op:literal, $from:literal, $fr:literal) => {
        concat!(
            convert!($op, $from, $fr, "%r"),
            "cvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! to_h {
    ($op:literal, $from:literal, $fr:literal) => {
        concat!(
            convert!($op, $from, $fr, "%h"),
            "cvt.u64.u16 %rd9, %h3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}

fn conversions() -> Vec<Case> {
    vec![
        case!(Bits, to_f32!("cvt.rn.f32.s32", "u32", "%r"), |a, _, _| out(s(a) as f32)),
        case!(Bits, to_f32!("cvt.rn.f32.u32", "u32", "%r"), |a, _, _| out(lo(a) as f32)),
        case!(Bits, to_f32!("cvt.rn.f32.s64", "u64", "%rd1"), |a, _, _| out(a as i64 as f32)),
        case!(Bits, to_f32!("cvt.rn.f32.u64", "u64", "%rd1"), |a, _, _| out(a as f32)),
        case!(F32, to_r32!("cvt.rzi.s32.f32", "f32", "%f"), |a, _, _| f(a) as i32 as u32 as u64),
        case!(F32, to_r32!("cvt.rzi.u32.f32", "f32", "%f"), |a, _, _| f(a) as u32 as u64),
        case!(
            F32,
            to_r32!("cvt.rni.s32.f32", "f32", "%f"),
            |a, _, _| f(a).round_ties_even() as i32 as u32 as u64
        ),
        case!(F32, to_r32!("cvt.rmi.s32.f32", "f32", "%f"), |a, _, _| f(a).floor() as i32 as u32
            as u64),
        case!(F32, to_r32!("cvt.rpi.s32.f32", "f32", "%f"), |a, _, _| f(a).ceil() as i32 as u32
            as u64),
        case!(F32, to_f32!("cvt.rni.f32.f32", "f32", "%f"), |a, _, _| out(f(a).round_ties_even())),
        case!(F32, to_f32!("cvt.sat.f32.f32", "f32", "%f"), |a, _, _| out(if f(a) > 0.0 {
            f(a).min(1.0)
        } else {
            0.0
        })),
        case!(F64, to_f32!("cvt.rn.f32.f64", "f64", "%fd"), |a, _, _| out(d(a) as f32)),
        case!(F64, to_f32!("cvt.rz.f32.f64", "f64", "%fd"), |a, _, _| {
            let y = d(a) as f32;
            if y.is_infinite() && d(a).is_finite() {
                return out(f32::MAX.copysign(y));
            }
            out(if (y as f64).abs() > d(a).abs() { f32::from_bits(y.to_bits() - 1) } else { y })
        }),
        case!(F64, to_r32!("cvt.rzi.s32.f64", "f64", "%fd"), |a, _, _| {
            if d(a).is_nan() { 0x8000_0000 } else { d(a) as i32 as u32 as u64 }
        }),
        case!(
            F32,
            "ld.global.f32 %f1, [%rd1];\ncvt.f64.f32 %fd3, %f1;\nst.global.f64 [%rd0], %fd3;",
            |a, _, _| out64(f(a) as f64)
        ),
        case!(
            Bits,
            "ld.global.u64 %rd4, [%rd1];\ncvt.rn.f64.s64 %fd3, %rd4;\nst.global.f64 [%rd0], %fd3;",
            |a, _, _| out64(a as i64 as f64)
        ),
        case!(
            Bits,
            "ld.global.u64 %rd4, [%rd1];\ncvt.rn.f64.u64 %fd3, %rd4;\nst.global.f64 [%rd0], %fd3;",
            |a, _, _| out64(a as f64)
        ),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\ncvt.rn.f64.s32 %fd3, %r1;\nst.global.f64 [%rd0], %fd3;",
            |a, _, _| out64(s(a) as f64)
        ),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\ncvt.s64.s32 %rd6, %r1;\nst.global.u64 [%rd0], %rd6;",
            |a, _, _| s(a) as i64 as u64
        ),
        case!(
            Bits,
            "ld.global.u64 %rd4, [%rd1];\ncvt.u32.u64 %r3, %rd4;\ncvt.u64.u32 %rd6, %r3;\nst.global.u64 [%rd0], %rd6;",
            |a, _, _| a & 0xffff_ffff
        ),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\ncvt.s16.s32 %h1, %r1;\ncvt.s32.s16 %r3, %h1;\ncvt.u64.u32 %rd6, %r3;\nst.global.u64 [%rd0], %rd6;",
            |a, _, _| a as i16 as i32 as u32 as u64
        ),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\ncvt.sat.u8.s32 %r3, %r1;\ncvt.u64.u32 %rd6, %r3;\nst.global.u64 [%rd0], %rd6;",
            |a, _, _| s(a).clamp(0, 255) as u64
        ),
        case!(F16x2, to_f32!("cvt.f32.f16", "u16", "%h"), |a, _, _| out(h16(a, false) as f32)),
        case!(F16x2, to_f32!("cvt.f32.bf16", "u16", "%h"), |a, _, _| out(f32::from_bits(
            lo(a) << 16
        ))),
        case!(
            F16x2,
            "ld.global.u16 %h1, [%rd1];\nld.global.u16 %h2, [%rd2];\ncvt.f32.f16 %f1, %h1;\ncvt.f32.f16 %f2, %h2;\nmul.f32 %f3, %f1, %f2;\ncvt.rn.f16.f32 %h3, %f3;\ncvt.u64.u16 %rd9, %h3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| put_h16(h16(a, false) * h16(b, false))
        ),
        case!(
            Bf16x2,
            "ld.global.u16 %h1, [%rd1];\nld.global.u16 %h2, [%rd2];\ncvt.f32.bf16 %f1, %h1;\ncvt.f32.bf16 %f2, %h2;\nmul.f32 %f3, %f1, %f2;\ncvt.rn.bf16.f32 %h3, %f3;\ncvt.u64.u16 %rd9, %h3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| put_b16(b16(a, false) * b16(b, false))
        ),
        case!(F32, to_h!("cvt.rn.bf16.f32", "f32", "%f"), |a, _, _| {
            let x = f(a);
            if x.is_nan() {
                return 0x7fff;
            }
            let bits = lo(a);
            ((bits as u64 + 0x7fff + (bits >> 16 & 1) as u64) >> 16) & 0xffff
        }),
        case!(
            F32,
            "ld.global.f32 %f1, [%rd1];\nld.global.f32 %f2, [%rd2];\ncvt.rn.bf16x2.f32 %r3, %f1, %f2;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| {
                let one = |x: u64| {
                    if f(x).is_nan() {
                        0x7fff
                    } else {
                        ((lo(x) as u64 + 0x7fff + (lo(x) >> 16 & 1) as u64) >> 16) & 0xffff
                    }
                };
                one(a) << 16 | one(b)
            }
        ),
    ]
}

fn halves() -> Vec<Case> {
    let mut list = Vec::new();
    macro_rules! both {
        ($op:literal, $inputs:ident, $get:ident, $put:ident, $f:expr) => {
            list.push(case!($inputs, n2!($op), |a, b, _| {
                let g: fn(f64, f64) -> f64 = $f;
                $put(g($get(a, false), $get(b, false)))
                    | $put(g($get(a, true), $get(b, true))) << 16
            }));
        };
    }
    both!("add.f16x2", F16x2, h16, put_h16, |a, b| a + b);
    both!("mul.f16x2", F16x2, h16, put_h16, |a, b| a * b);
    both!("sub.f16x2", F16x2, h16, put_h16, |a, b| a - b);
    both!("add.rn.bf16x2", Bf16x2, b16, put_b16, |a, b| a + b);
    both!("mul.rn.bf16x2", Bf16x2, b16, put_b16, |a, b| a * b);
    both!("max.bf16x2", Bf16x2, b16, put_b16, |a, b| a.max(b));
    list.push(case!(Bf16x2, n3!("fma.rn.bf16x2"), |a, b, c| {
        put_b16(b16(a, false) * b16(b, false) + b16(c, false))
            | put_b16(b16(a, true) * b16(b, true) + b16(c, true)) << 16
    }));
    list.push(case!(F16x2, n3!("fma.rn.f16x2"), |a, b, c| {
        put_h16(h16(a, false) * h16(b, false) + h16(c, false))
            | put_h16(h16(a, true) * h16(b, true) + h16(c, true)) << 16
    }));
    list
}

fn comparisons() -> Vec<Case> {
    vec![
        case!(F32, compare!("f32", "%f", "lt"), |a, b, _| (f(a) < f(b)) as u64),
        case!(F32, compare!("f32", "%f", "ne"), |a, b, _| (f(a) < f(b) || f(a) > f(b)) as u64),
        case!(F32, compare!("f32", "%f", "neu"), |a, b, _| (f(a) != f(b)) as u64),
        case!(F32, compare!("f32", "%f", "equ"), |a, b, _| !(f(a) < f(b) || f(a) > f(b)) as u64),
        case!(F32, compare!("f32", "%f", "ltu"), |a, b, _| (f(a) < f(b) || unordered(a, b)) as u64),
        case!(F32, compare!("f32", "%f", "geu"), |a, b, _| (f(a) >= f(b) || unordered(a, b))
            as u64),
        case!(F32, compare!("f32", "%f", "num"), |a, b, _| (!f(a).is_nan() && !f(b).is_nan())
            as u64),
        case!(F32, compare!("f32", "%f", "nan"), |a, b, _| (f(a).is_nan() || f(b).is_nan()) as u64),
        case!(F64, compare!("f64", "%fd", "le"), |a, b, _| (d(a) <= d(b)) as u64),
        case!(F64, compare!("f64", "%fd", "gtu"), |a, b, _| (d(a) > d(b)
            || d(a).is_nan()
            || d(b).is_nan()) as u64),
        case!(Bits, compare!("s32", "%r", "ge"), |a, b, _| (s(a) >= s(b)) as u64),
        case!(Bits, compare!("u32", "%r", "gt"), |a, b, _| (lo(a) > lo(b)) as u64),
        case!(Bits, compare!("s64", "%rd1", "lt"), |a, b, _| ((a as i64) < b as i64) as u64),
        case!(Bits, compare!("u64", "%rd1", "ls"), |a, b, _| (a <= b) as u64),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\nsetp.lt.u32 %p2, %r1, 1000;\nsetp.gt.and.s32 %p1|%p3, %r1, %r2, %p2;\nselp.u64 %rd9, 1, 0, %p1;\nselp.u64 %rd10, 2, 0, %p3;\nadd.s64 %rd9, %rd9, %rd10;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| {
                let (p, q) = (s(a) > s(b), lo(a) < 1000);
                (p && q) as u64 + 2 * (!p && q) as u64
            }
        ),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\nsetp.lt.u32 %p1, %r1, %r2;\nmov.u64 %rd9, 7;\n@%p1 mov.u64 %rd9, 1;\n@!%p1 add.s64 %rd9, %rd9, 2;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| if lo(a) < lo(b) { 1 } else { 9 }
        ),
    ]
}
