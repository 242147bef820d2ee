//! Elementary functions with fixed bits: the same polynomial on every machine, written so that
//! the compiler can vectorize a loop over them. The platform's libm is not used on hot paths.

/// Compiles `$body` (an `#[inline(always)]` function) for the vector units this machine has and
/// calls the widest. All versions round identically: they are the same scalar operations, with
/// fused multiply-adds written out, so the choice never changes a bit.
macro_rules! dispatch_simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($g:ident : $bound:path),*>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path) => {
        $(#[$meta])*
        $vis fn $name $(<$($g: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                unsafe fn avx512 $(<$($g: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
                #[target_feature(enable = "avx2,fma,f16c")]
                unsafe fn avx2 $(<$($g: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
                if std::is_x86_feature_detected!("avx512f")
                    && std::is_x86_feature_detected!("avx512bw")
                    && std::is_x86_feature_detected!("avx512dq")
                    && std::is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the features were detected just above.
                    return unsafe { avx512($($arg),*) };
                }
                if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                    // SAFETY: the features were detected just above (f16c came before avx2).
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use dispatch_simd;

const LN2_HI: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
const LN2_LO: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);
/// 1.5 · 2^52: adding it rounds to an integer.
const SHIFT: f64 = 6_755_399_441_055_744.0;

/// Taylor coefficients of e^r, highest degree first.
const EXP: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// e^x in f64 with at most 1 ulp error for finite x; 0 below the normal range (x < -708.39),
/// infinity above 709.78, NaN for NaN.
///
/// x = k·ln 2 + r with |r| <= ln 2 / 2; ln 2 is split in two so that r is exact to the last bit;
/// e^r by its Taylor polynomial of degree 13 (remainder < 2^-57); 2^k by the exponent field.
#[inline(always)]
pub(crate) fn exp(x: f64) -> f64 {
    let clamped = x.clamp(-745.2, 709.8);
    let shifted = clamped.mul_add(std::f64::consts::LOG2_E, SHIFT);
    let k = shifted - SHIFT;
    let r = (-k).mul_add(LN2_HI, clamped);
    let r = (-k).mul_add(LN2_LO, r);
    let p = exp_poly(r);
    // shifted's low bits hold k in two's complement; two factors keep 2^1024 in range.
    let bits = shifted.to_bits() as i64;
    let k_int = (bits << 12) >> 12;
    let half = k_int >> 1;
    let scale_a = f64::from_bits(((half + 1023) << 52) as u64);
    let scale_b = f64::from_bits(((k_int - half + 1023) << 52) as u64);
    let y = p * scale_a * scale_b;
    let y = if x < -708.39 { 0.0 } else { y };
    let y = if x > 709.782_712_893_384 { f64::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

#[inline(always)]
fn exp_poly(r: f64) -> f64 {
    let mut p = EXP[0];
    for c in &EXP[1..] {
        p = p.mul_add(r, *c);
    }
    p
}

/// How many exponentials [`Exps`] computes at a time.
pub(crate) const EXPS: usize = 128;

/// [`exp`] of numbers that are not above 0, or NaN, with the same bits, as `poly[j] · two_to_k[j]`: one
/// factor for 2^k, as the product is a normal number from -708.39 on, and nothing is clamped.
///
/// There are two loops, because in a single one the compiler runs out of registers and computes one polynomial
/// after another, where each multiply-add waits for the one before it. In the second loop the polynomials of 4
/// vectors are interleaved. The caller multiplies the factors in its own loop.
#[repr(align(64))]
pub(crate) struct Exps {
    pub poly: [f64; EXPS],
    pub two_to_k: [f64; EXPS],
}

impl Exps {
    #[inline(always)]
    pub(crate) fn new() -> Exps {
        Exps { poly: [0.0; EXPS], two_to_k: [0.0; EXPS] }
    }

    pub(crate) fn set(&mut self, x: &[f64; EXPS]) {
        set_exps(self, x);
    }
}

dispatch_simd!(fn set_exps(exps: &mut Exps, x: &[f64; EXPS]) = set_exps_body);

#[inline(always)]
fn set_exps_body(exps: &mut Exps, x: &[f64; EXPS]) {
    for j in 0..EXPS {
        let shifted = x[j].mul_add(std::f64::consts::LOG2_E, SHIFT);
        let k = shifted - SHIFT;
        let r = (-k).mul_add(LN2_HI, x[j]);
        let r = (-k).mul_add(LN2_LO, r);
        // The low bits of shifted are those of k; k + 1023 is the exponent field.
        let two_to_k = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
        let vanishes = x[j] < -708.39;
        exps.poly[j] = if vanishes { 0.0 } else { r };
        exps.two_to_k[j] = if vanishes { 0.0 } else { two_to_k };
    }
    for block in exps.poly.as_chunks_mut::<32>().0 {
        let mut r = [[0.0; 8]; 4];
        for i in 0..4 {
            r[i].copy_from_slice(&block[8 * i..][..8]);
        }
        let mut p = [[EXP[0]; 8]; 4];
        for c in &EXP[1..] {
            for i in 0..4 {
                for j in 0..8 {
                    p[i][j] = p[i][j].mul_add(r[i][j], *c);
                }
            }
        }
        for i in 0..4 {
            block[8 * i..][..8].copy_from_slice(&p[i]);
        }
    }
}

/// The smaller of `x` and `bound`. NaN stays NaN, which `f64::min` drops.
#[inline(always)]
pub(crate) fn at_most(x: f64, bound: f64) -> f64 {
    if x > bound { bound } else { x }
}

/// The larger of `x` and `bound`. NaN stays NaN, which `f64::max` drops.
#[inline(always)]
pub(crate) fn at_least(x: f64, bound: f64) -> f64 {
    if x < bound { bound } else { x }
}

/// `x` brought into `lo..=hi`. NaN stays NaN; bounds that are NaN, for which `f64::clamp` panics, make it NaN.
#[inline(always)]
pub(crate) fn within(x: f64, lo: f64, hi: f64) -> f64 {
    if lo.is_nan() || hi.is_nan() { f64::NAN } else { at_most(at_least(x, lo), hi) }
}

/// Bits of the largest magnitude: for non-negative floats, and NaN above infinity, integer order
/// is float order.
pub(crate) fn max_magnitude(values: &[f32]) -> u32 {
    values.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7FFF_FFFF))
}

/// True if two values that are not NaN round to the same bf16: nearest, ties to even, in integer
/// arithmetic that the compiler vectorizes.
#[inline(always)]
pub(crate) fn same_bf16(a: f32, b: f32) -> bool {
    let upper_half = |bits: u32| bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    upper_half(a.to_bits()) == upper_half(b.to_bits())
}

/// 1 / (1 + e^-x) without overflow.
#[inline(always)]
pub(crate) fn sigmoid(x: f64) -> f64 {
    let e = exp(-x.abs());
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

/// e^x in f32 with at most 1 ulp error for finite x; 0 below the normal range (x < -87.33),
/// infinity above 88.72, NaN for NaN. It takes the steps of [`exp`] with a polynomial of degree 7
/// (remainder < 2^-27).
#[inline(always)]
pub(crate) fn exp_f32(x: f32) -> f32 {
    const LN2_HI: f32 = f32::from_bits(0x3F31_7200);
    const LN2_LO: f32 = f32::from_bits(0x35BF_BE8E);
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    const C: [f32; 7] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
    let clamped = x.clamp(-104.0, 89.0);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let k = shifted - SHIFT;
    let r = (-k).mul_add(LN2_HI, clamped);
    let r = (-k).mul_add(LN2_LO, r);
    let mut p = C[0];
    for c in &C[1..] {
        p = p.mul_add(r, *c);
    }
    let p = p.mul_add(r, 1.0);
    let k_int = ((shifted.to_bits() as i32) << 9) >> 9;
    let half = k_int >> 1;
    let scale_a = f32::from_bits(((half + 127) << 23) as u32);
    let scale_b = f32::from_bits(((k_int - half + 127) << 23) as u32);
    let y = p * scale_a * scale_b;
    let y = if x < -87.336_54 { 0.0 } else { y };
    let y = if x > 88.722_83 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_one_ulp() {
        let mut worst = 0.0f64;
        for i in 0..200_000 {
            let x = -708.0 + i as f64 * 0.00708;
            let want = x.exp();
            let ulp = f64::from_bits(want.to_bits() + 1) - want;
            worst = worst.max((exp(x) - want).abs() / ulp);
        }
        assert!(worst <= 1.0, "{worst} ulp");
    }

    #[test]
    fn exps_have_the_bits_of_exp() {
        let edges = [0.0, -0.0, -708.39, -708.390_000_000_000_1, -745.0, -1e300, f64::NEG_INFINITY];
        let grid = (0..3_000_000).map(|i| i as f64 * -0.000_24);
        let small = (0..2000).map(|i| -(0.98f64.powi(i)));
        let all: Vec<f64> = edges.into_iter().chain(grid).chain(small).collect();
        let mut exps = Exps::new();
        for x in all.as_chunks::<EXPS>().0 {
            exps.set(x);
            for (j, x) in x.iter().enumerate() {
                assert_eq!((exps.poly[j] * exps.two_to_k[j]).to_bits(), exp(*x).to_bits(), "{x}");
            }
        }
        exps.set(&[f64::NAN; EXPS]);
        assert!((exps.poly[0] * exps.two_to_k[0]).is_nan());
    }

    #[test]
    fn exp_f32_is_within_one_ulp() {
        let mut worst = 0.0f64;
        for i in 0..1_000_000 {
            let x = (-87.33 + i as f64 * 0.000_176) as f32;
            let want = (x as f64).exp();
            let near = want as f32;
            let ulp = f32::from_bits(near.to_bits() + 1) as f64 - near as f64;
            worst = worst.max((exp_f32(x) as f64 - want).abs() / ulp);
        }
        assert!(worst <= 1.0, "{worst} ulp");
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(-0.0), 1.0);
        assert_eq!(exp_f32(-88.0), 0.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert!(exp_f32(88.72).is_finite());
        assert_eq!(exp_f32(88.73), f32::INFINITY);
        assert!(exp_f32(f32::NAN).is_nan());
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(f64::INFINITY), f64::INFINITY);
        assert_eq!(exp(710.0), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan());
        assert!(exp(709.78).is_finite());
    }
}
