//! One case per opcode and modifier: a few lines of PTX on the values of a lane, and what they have
//! to give, computed another way. The list is also what conformance with hardware runs.

#[macro_use]
mod bodies;
mod conversions;
mod float;
mod integer;
mod values;

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

/// All cases.
pub fn cases() -> Vec<Case> {
    [integer::cases(), float::cases(), conversions::cases()].into_iter().flatten().collect()
}
