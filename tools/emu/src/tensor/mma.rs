//! `mma.sync.aligned.m16n8k*.row.col`: a warp's 16 x 8 x k product.
//!
//! | shape | operands | accumulators | registers a, b, c |
//! |---|---|---|---|
//! | m16n8k8 | bf16, f16 | f32; f16 for f16 | 2, 1, 4 or 2 |
//! | m16n8k16 | bf16, f16 | f32; f16 for f16 | 4, 2, 4 or 2 |
//! | m16n8k4 | tf32 | f32 | 2, 1, 4 |
//! | m16n8k8 | tf32 | f32 | 4, 2, 4 |
//! | m16n8k16 | s8, u8 in any mix | s32 | 2, 1, 4 |
//! | m16n8k32 | s8, u8 in any mix | s32 | 4, 2, 4 |
//! | m16n8k32 | e4m3, e5m2 in any mix | f32, f16 | 4, 2, 4 or 2 |
//!
//! The layout of the registers is that of [`super::fragment`], the arithmetic that of
//! [`super::numerics`]. Integer sums are exact and wrap at 32 bits; with `.satfinite` they clamp.

use super::Row;
use super::fragment::{
    accumulator_registers, load_a, load_a_float, load_b, load_b_float, load_c, load_c_float,
    store_c, store_c_float,
};
use super::numerics::{Float, FloatAccumulator, Numerics, Product, TileA, TileB, TileC, Unit};

/// Operand type of a matrix instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// A floating-point format.
    Float(Float),
    /// Signed byte.
    S8,
    /// Unsigned byte.
    U8,
}

impl Element {
    /// The type that PTX writes as `.name`.
    #[must_use]
    pub fn from_ptx(name: &str) -> Option<Self> {
        Some(match name {
            "bf16" => Self::Float(Float::Bf16),
            "f16" => Self::Float(Float::F16),
            "tf32" => Self::Float(Float::Tf32),
            "e4m3" => Self::Float(Float::E4m3),
            "e5m2" => Self::Float(Float::E5m2),
            "s8" => Self::S8,
            "u8" => Self::U8,
            _ => return None,
        })
    }

    /// Bits of an element.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Float(float) => float.bits(),
            Self::S8 | Self::U8 => 8,
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.bits() / 8
    }

    /// The value of a raw byte of an integer type.
    #[inline(always)]
    pub(super) fn decode_integer(self, raw: u32) -> i32 {
        if self == Self::S8 { i32::from(raw as u8 as i8) } else { i32::from(raw as u8) }
    }
}

/// Type of the accumulators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulator {
    /// f32 or f16.
    Float(FloatAccumulator),
    /// Signed 32-bit integer; `saturate` is `.satfinite`.
    S32 {
        /// Clamp instead of wrapping.
        saturate: bool,
    },
}

/// A decoded `mma.sync` instruction: shape and types that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mma {
    k: usize,
    a: Element,
    b: Element,
    accumulator: Accumulator,
}

/// Number of registers of each operand per lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Left operand.
    pub a: usize,
    /// Right operand.
    pub b: usize,
    /// Accumulators, in and out.
    pub c: usize,
}

impl Mma {
    /// `mma.sync.aligned.m16n8k{k}.row.col` of these types.
    ///
    /// # Errors
    ///
    /// The combination is not in the module's table.
    pub fn new(k: usize, a: Element, b: Element, accumulator: Accumulator) -> Result<Self, String> {
        use Accumulator as Acc;
        let halves = |x: Element| matches!(x, Element::Float(Float::Bf16 | Float::F16));
        let fp8 = |x: Element| matches!(x, Element::Float(Float::E4m3 | Float::E5m2));
        let integer = |x: Element| matches!(x, Element::S8 | Element::U8);
        let known = match accumulator {
            Acc::S32 { .. } => integer(a) && integer(b) && matches!(k, 16 | 32),
            Acc::Float(FloatAccumulator::F32) => {
                (halves(a) && a == b && matches!(k, 8 | 16))
                    || (a == Element::Float(Float::Tf32) && a == b && matches!(k, 4 | 8))
                    || (fp8(a) && fp8(b) && k == 32)
            }
            Acc::Float(FloatAccumulator::F16) => {
                (a == Element::Float(Float::F16) && a == b && matches!(k, 8 | 16))
                    || (fp8(a) && fp8(b) && k == 32)
            }
        };
        if known {
            Ok(Self { k, a, b, accumulator })
        } else {
            Err(format!("mma.sync has no m16n8k{k} of {a:?} and {b:?} into {accumulator:?}"))
        }
    }

    /// Registers per lane of each operand.
    #[must_use]
    pub const fn registers(&self) -> Registers {
        let a = self.k * self.a.bits() as usize / 64;
        let c = match self.accumulator {
            Accumulator::Float(accumulator) => accumulator_registers(accumulator),
            Accumulator::S32 { .. } => 4,
        };
        Registers { a, b: a / 2, c }
    }

    /// Multiply-adds of the instruction: `16 * 8 * k`.
    #[must_use]
    pub const fn multiply_adds(&self) -> u64 {
        16 * 8 * self.k as u64
    }

    /// `d = a b + c` for a full warp.
    ///
    /// # Errors
    ///
    /// A fragment does not have the number of [`Mma::registers`]; `d` is unchanged then.
    pub fn execute(
        &self,
        numerics: Numerics,
        a: &[Row],
        b: &[Row],
        c: &[Row],
        d: &mut [Row],
    ) -> Result<(), String> {
        let want = self.registers();
        let counts = [("a", a.len(), want.a), ("b", b.len(), want.b), ("c", c.len(), want.c)];
        for (name, got, expected) in counts.into_iter().chain([("d", d.len(), want.c)]) {
            if got != expected {
                return Err(format!("mma.sync: {name} has {got} registers, expected {expected}"));
            }
        }
        match self.k {
            4 => self.run::<4>(numerics, a, b, c, d),
            8 => self.run::<8>(numerics, a, b, c, d),
            16 => self.run::<16>(numerics, a, b, c, d),
            _ => self.run::<32>(numerics, a, b, c, d),
        }
        Ok(())
    }

    fn run<const K: usize>(
        &self,
        numerics: Numerics,
        a: &[Row],
        b: &[Row],
        c: &[Row],
        d: &mut [Row],
    ) {
        match (self.a, self.b, self.accumulator) {
            (Element::Float(fa), Element::Float(fb), Accumulator::Float(accumulator)) => {
                let product = Product { numerics, unit: Unit::Sync, a: fa, b: fb, accumulator };
                let mut tile = load_c_float(c, accumulator);
                product.accumulate(&load_a_float::<K>(a, fa), &load_b_float::<K>(b, fb), &mut tile);
                store_c_float(&tile, d, accumulator);
            }
            (_, _, accumulator) => {
                let saturate = accumulator == Accumulator::S32 { saturate: true };
                let left = load_a::<i32, K>(a, 8, |raw| self.a.decode_integer(raw));
                let right = load_b::<i32, K>(b, 8, |raw| self.b.decode_integer(raw));
                let mut tile = load_c(c, |raw| raw as i32);
                accumulate_integers(&left, &right, &mut tile, saturate);
                store_c(&tile, d, |x| x as u32);
            }
        }
    }
}

/// `c = c + a b` for bytes: the sum is exact in 64 bits, then wraps or clamps once.
pub(super) fn accumulate_integers<const K: usize>(
    a: &TileA<i32, K>,
    b: &TileB<i32, K>,
    c: &mut TileC<i32>,
    saturate: bool,
) {
    for (left, row) in a.iter().zip(c) {
        // At most 64 products of 16 bits: 32-bit partial sums cannot overflow.
        let mut sum = [0_i32; 8];
        for k in 0..K {
            for n in 0..8 {
                sum[n] += left[k] * b[k][n];
            }
        }
        for n in 0..8 {
            row[n] =
                if saturate { row[n].saturating_add(sum[n]) } else { row[n].wrapping_add(sum[n]) };
        }
    }
}
