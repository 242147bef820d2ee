//! Integers of 8 to 64 bits.

use super::values::{lo, s};
use super::{Case, Inputs};

/// All cases.
pub fn cases() -> Vec<Case> {
    [arithmetic(), logic(), shifts_and_fields(), small(), wide()].into_iter().flatten().collect()
}

fn arithmetic() -> Vec<Case> {
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
        case!(Bits, n1!("neg.s32"), |a, _, _| lo(a).wrapping_neg() as u64),
        case!(Bits, n1!("abs.s32"), |a, _, _| s(a).unsigned_abs() as u64),
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
    ]
}

fn logic() -> Vec<Case> {
    vec![
        case!(Bits, n2!("and.b32"), |a, b, _| (a & b) & 0xffff_ffff),
        case!(Bits, n2!("or.b32"), |a, b, _| (a | b) & 0xffff_ffff),
        case!(Bits, n2!("xor.b32"), |a, b, _| (a ^ b) & 0xffff_ffff),
        case!(Bits, n1!("not.b32"), |a, _, _| !lo(a) as u64),
        case!(Bits, n1!("cnot.b32"), |a, _, _| (lo(a) == 0) as u64),
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
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\nld.global.u32 %r4, [%rd3];\nlop3.b32 %r3, %r1, %r2, %r4, 0xE8;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, c| ((a & b) | (a & c) | (b & c)) & 0xffff_ffff
        ),
    ]
}

fn shifts_and_fields() -> Vec<Case> {
    vec![
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
    ]
}

/// 8 and 16 bits.
fn small() -> Vec<Case> {
    vec![
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

/// 64 bits.
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
