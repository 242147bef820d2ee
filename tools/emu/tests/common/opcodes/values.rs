//! Reads operands as the types that a case wants, and writes what it gives.

pub fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

pub fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

pub fn out(x: f32) -> u64 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() as u64 }
}

pub fn out64(x: f64) -> u64 {
    if x.is_nan() { 0x7ff8_0000_0000_0000 } else { x.to_bits() }
}

pub fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// The neighbor of a nearest-rounded f32 on the wanted side of an exact value given as a sign.
pub fn toward(nearest: f32, exact_minus_nearest: f64, up: bool) -> f32 {
    if nearest.is_nan() {
        return nearest;
    }
    match up {
        true if exact_minus_nearest > 0.0 => nearest.next_up(),
        false if exact_minus_nearest < 0.0 => nearest.next_down(),
        _ => nearest,
    }
}

pub fn h16(x: u64, hi: bool) -> f64 {
    let bits = (x >> if hi { 16 } else { 0 }) as u16;
    let (e, m) = ((bits >> 10 & 31) as i32, (bits & 0x3ff) as f64);
    let v = if e == 0 { m * 2f64.powi(-24) } else { (1.0 + m / 1024.0) * 2f64.powi(e - 15) };
    if bits & 0x8000 != 0 { -v } else { v }
}

pub fn b16(x: u64, hi: bool) -> f64 {
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

pub fn put_h16(x: f64) -> u64 {
    let v = to_grid(x, 10);
    if v.abs() < 2f64.powi(-14) {
        let q = (x / 2f64.powi(-24)).round_ties_even();
        return (q.abs() as u64) | ((x.is_sign_negative() as u64) << 15);
    }
    let e = v.abs().log2().floor() as i64;
    let m = ((v.abs() / 2f64.powi(e as i32) - 1.0) * 1024.0) as u64;
    ((e + 15) as u64) << 10 | m | ((v < 0.0) as u64) << 15
}

pub fn put_b16(x: f64) -> u64 {
    (to_grid(x, 7) as f32).to_bits() as u64 >> 16
}

pub fn unordered(a: u64, b: u64) -> bool {
    f(a).is_nan() || f(b).is_nan()
}

pub fn lo(x: u64) -> u32 {
    x as u32
}

pub fn s(x: u64) -> i32 {
    x as i32
}
