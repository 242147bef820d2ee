//! Where the elements of a matrix fragment live in the registers of a warp.
//!
//! With `g = lane / 4` and `t = lane % 4`, and `p` elements in a 32-bit register (1 for tf32, 2 for
//! 16-bit, 4 for 8-bit formats; the lowest bits hold the lowest k), a *chunk* is the 16 bytes of k
//! that four neighboring lanes hold. One rule covers every `mma` shape:
//!
//! | fragment | register | element `i` of the register |
//! |---|---|---|
//! | A, 16 x k | `2 chunk + half` | row `g + 8 half`, k = `4p chunk + p t + i` |
//! | B, k x 8 | `chunk` | k = `4p chunk + p t + i`, column `g` |
//! | C and D, 16 x 8, 32-bit | `2 half + i` | row `g + 8 half`, column `2t + i` |
//! | C and D, 16 x 8, f16 | `half` | row `g + 8 half`, column `2t + i` |
//!
//! The accumulators of two neighboring 16 x 8 tiles, rounded and packed in pairs, are therefore
//! the A fragment of a following k16 product: chained products need no shared memory.

use super::Row;
use super::numerics::{
    Float, FloatAccumulator, TileA, TileB, TileC, f16_from_f64, f16_to_f32, f32_result,
};

/// Low bits of a register that hold one element.
const fn mask(bits: u32) -> u32 {
    if bits == 32 { u32::MAX } else { (1 << bits) - 1 }
}

/// Reads a 16 x K fragment of elements of `bits` bits.
#[inline(always)]
pub fn load_a<T: Copy + Default, const K: usize>(
    registers: &[Row],
    bits: u32,
    decode: impl Fn(u32) -> T,
) -> TileA<T, K> {
    let per_register = (32 / bits) as usize;
    let mut tile = [[T::default(); K]; 16];
    for (r, register) in registers.iter().enumerate().take(K / (2 * per_register)) {
        let (chunk, half) = (r / 2, r % 2);
        for g in 0..8 {
            for t in 0..4 {
                let word = register[4 * g + t];
                let k = per_register * (4 * chunk + t);
                for i in 0..per_register {
                    let raw = (word >> (bits * i as u32)) & mask(bits);
                    tile[g + 8 * half][k + i] = decode(raw);
                }
            }
        }
    }
    tile
}

/// Reads a K x 8 fragment of elements of `bits` bits.
#[inline(always)]
pub fn load_b<T: Copy + Default, const K: usize>(
    registers: &[Row],
    bits: u32,
    decode: impl Fn(u32) -> T,
) -> TileB<T, K> {
    let per_register = (32 / bits) as usize;
    let mut tile = [[T::default(); 8]; K];
    for (chunk, register) in registers.iter().enumerate().take(K / (4 * per_register)) {
        for g in 0..8 {
            for t in 0..4 {
                let word = register[4 * g + t];
                let k = per_register * (4 * chunk + t);
                for i in 0..per_register {
                    tile[k + i][g] = decode((word >> (bits * i as u32)) & mask(bits));
                }
            }
        }
    }
    tile
}

/// [`load_a`] of floating-point elements; one copy of the loop per format.
#[must_use]
pub fn load_a_float<const K: usize>(registers: &[Row], float: Float) -> TileA<f32, K> {
    match float {
        Float::Bf16 => load_a(registers, 16, |raw| Float::Bf16.decode(raw)),
        Float::F16 => load_a(registers, 16, |raw| Float::F16.decode(raw)),
        Float::Tf32 => load_a(registers, 32, |raw| Float::Tf32.decode(raw)),
        Float::E4m3 => load_a(registers, 8, |raw| Float::E4m3.decode(raw)),
        Float::E5m2 => load_a(registers, 8, |raw| Float::E5m2.decode(raw)),
    }
}

/// [`load_b`] of floating-point elements; one copy of the loop per format.
#[must_use]
pub fn load_b_float<const K: usize>(registers: &[Row], float: Float) -> TileB<f32, K> {
    match float {
        Float::Bf16 => load_b(registers, 16, |raw| Float::Bf16.decode(raw)),
        Float::F16 => load_b(registers, 16, |raw| Float::F16.decode(raw)),
        Float::Tf32 => load_b(registers, 32, |raw| Float::Tf32.decode(raw)),
        Float::E4m3 => load_b(registers, 8, |raw| Float::E4m3.decode(raw)),
        Float::E5m2 => load_b(registers, 8, |raw| Float::E5m2.decode(raw)),
    }
}

/// Reads 16 x 8 accumulators of 32 bits from four registers.
#[inline(always)]
pub fn load_c<T: Copy + Default>(registers: &[Row], decode: impl Fn(u32) -> T) -> TileC<T> {
    let mut tile = [[T::default(); 8]; 16];
    for (r, register) in registers.iter().enumerate().take(4) {
        for g in 0..8 {
            for t in 0..4 {
                tile[g + 8 * (r / 2)][2 * t + r % 2] = decode(register[4 * g + t]);
            }
        }
    }
    tile
}

/// Writes 16 x 8 accumulators of 32 bits to four registers.
#[inline(always)]
pub fn store_c<T: Copy>(tile: &TileC<T>, registers: &mut [Row], encode: impl Fn(T) -> u32) {
    for (r, register) in registers.iter_mut().enumerate().take(4) {
        for g in 0..8 {
            for t in 0..4 {
                register[4 * g + t] = encode(tile[g + 8 * (r / 2)][2 * t + r % 2]);
            }
        }
    }
}

/// Registers of a 16 x 8 tile of accumulators.
#[must_use]
pub const fn accumulator_registers(accumulator: FloatAccumulator) -> usize {
    match accumulator {
        FloatAccumulator::F32 => 4,
        FloatAccumulator::F16 => 2,
    }
}

/// Reads 16 x 8 floating-point accumulators.
#[must_use]
pub fn load_c_float(registers: &[Row], accumulator: FloatAccumulator) -> TileC<f32> {
    match accumulator {
        FloatAccumulator::F32 => load_c(registers, f32::from_bits),
        FloatAccumulator::F16 => {
            let halves = unpack_halves(registers);
            load_c(&halves, |raw| f16_to_f32(raw as u16))
        }
    }
}

/// Writes 16 x 8 floating-point accumulators; NaN becomes the canonical NaN of the format.
pub fn store_c_float(tile: &TileC<f32>, registers: &mut [Row], accumulator: FloatAccumulator) {
    match accumulator {
        FloatAccumulator::F32 => store_c(tile, registers, f32_result),
        FloatAccumulator::F16 => {
            let mut halves = [[0; 32]; 4];
            store_c(tile, &mut halves, |x| u32::from(f16_from_f64(f64::from(x))));
            for (half, register) in registers.iter_mut().enumerate().take(2) {
                for lane in 0..32 {
                    register[lane] = halves[2 * half][lane] | halves[2 * half + 1][lane] << 16;
                }
            }
        }
    }
}

/// Spreads two registers of f16 pairs over four registers of one f16 each.
fn unpack_halves(registers: &[Row]) -> [Row; 4] {
    let mut halves = [[0; 32]; 4];
    for (half, register) in registers.iter().enumerate().take(2) {
        for lane in 0..32 {
            halves[2 * half][lane] = register[lane] & 0xffff;
            halves[2 * half + 1][lane] = register[lane] >> 16;
        }
    }
    halves
}
