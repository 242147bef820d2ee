//! Random bits and CuTe layouts for the tensor tests.
#![allow(dead_code)] // every test binary uses its own part

/// xorshift64*: reproducible random bits.
pub struct Bits(u64);

impl Bits {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    /// An integer in `-limit..=limit`.
    pub fn integer(&mut self, limit: i64) -> i64 {
        self.below(2 * limit as u64 + 1) as i64 - limit
    }
}

/// One mode of a CuTe layout: nested extents and strides, first varying fastest.
pub type Mode<'a> = &'a [(usize, usize)];

/// Offset of coordinate `i` in a mode.
pub fn cute(mode: Mode<'_>, mut i: usize) -> usize {
    let mut offset = 0;
    for (extent, stride) in mode {
        offset += (i % extent) * stride;
        i /= extent;
    }
    offset
}

/// bf16 bits of a value that bf16 holds.
pub fn bf16(x: f64) -> u32 {
    let bits = (x as f32).to_bits();
    assert_eq!(bits & 0xffff, 0, "{x} is no bf16");
    bits >> 16
}

/// f16 bits of an integer below 2048.
pub fn f16_of_integer(x: i64) -> u32 {
    let sign = if x < 0 { 0x8000 } else { 0 };
    let magnitude = x.unsigned_abs() as u32;
    assert!(magnitude < 2048);
    if magnitude == 0 {
        return sign;
    }
    let top = 31 - magnitude.leading_zeros();
    sign | ((top + 15) << 10) | ((magnitude << (10 - top)) & 0x3ff)
}
