//! The register tile of chains: up to six rows by 32 columns of a product, accumulated in registers.
//!
//! Every element of such a product is one chain of fused multiply-adds over the steps in increasing
//! order. Lanes are columns, so the vector width, the tile's height and the blocking over steps
//! change which elements are computed side by side, never a bit of any of them.

use super::lanes;
use super::scratch::Stored;
use crate::dtype::Float;
use crate::ops::support::math::dispatch_simd;

/// Columns of a packed panel: two vectors of 16.
pub(crate) const WIDTH: usize = 32;
/// Most rows of a register tile: 6 x 2 accumulators of 16 lanes leave room for operands in both
/// 32 registers of 512 bits (all 12) and 16 of 256 (half a panel at a time). The compiler keeps
/// the accumulators of taller tiles in memory.
pub(crate) const HEIGHT: usize = 6;
const VECTOR: usize = 16;

/// What a product is accumulated in: f32, or f64 for f64 operands.
pub(crate) trait Accumulator: Float + Stored {
    /// A register of 512 bits.
    #[cfg(target_arch = "x86_64")]
    type Wide: lanes::Vector<Element = Self>;
    /// A register of 256 bits.
    #[cfg(target_arch = "x86_64")]
    type Narrow: lanes::Vector<Element = Self>;
    /// 0.
    const ZERO: Self;
    /// `self · b + c`, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;
    /// `self + b`.
    fn plus(self, b: Self) -> Self;
    /// From an operand's element, exactly.
    fn widen<T: Float>(x: T) -> Self;
    /// Rounded to an output's element.
    fn narrow<T: Float>(self) -> T;
    /// `sums[i]` is the tree over `lanes[16 · i ..]`.
    fn sum_lanes(lanes: &[Self], sums: &mut [Self]) {
        lanes::sum_each(lanes, sums);
    }
    /// What forms sums whose lanes stay in registers, where the machine has enough of them.
    fn in_registers() -> Option<lanes::Finish<Self>> {
        None
    }
    /// The transposed block.
    fn transpose(block: [[Self; 4]; 4]) -> [[Self; 4]; 4] {
        std::array::from_fn(|i| std::array::from_fn(|j| block[j][i]))
    }
}

impl Accumulator for f32 {
    #[cfg(target_arch = "x86_64")]
    type Wide = std::arch::x86_64::__m512;
    #[cfg(target_arch = "x86_64")]
    type Narrow = std::arch::x86_64::__m256;
    const ZERO: f32 = 0.0;
    #[inline(always)]
    fn fma(self, b: f32, c: f32) -> f32 {
        self.mul_add(b, c)
    }
    #[inline(always)]
    fn plus(self, b: f32) -> f32 {
        self + b
    }
    #[inline(always)]
    fn widen<T: Float>(x: T) -> f32 {
        x.to_f32()
    }
    #[inline(always)]
    fn narrow<T: Float>(self) -> T {
        T::from_f32(self)
    }
    fn sum_lanes(lanes: &[f32], sums: &mut [f32]) {
        lanes::sum_f32(lanes, sums);
    }
    fn in_registers() -> Option<lanes::Finish<f32>> {
        lanes::in_registers()
    }
    /// Written with the unpack instructions of the x86-64 baseline: the compiler turns the loop
    /// above into 16 scalar moves, which is 3.4 times slower.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn transpose(block: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
        use std::arch::x86_64::*;
        // SAFETY: [f32; 4] and __m128 have the same size and every bit pattern is valid for both;
        // SSE is part of the x86-64 baseline.
        unsafe {
            let [a, b, c, d]: [__m128; 4] = std::mem::transmute(block);
            let (ab_low, ab_high) = (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
            std::mem::transmute([
                _mm_movelh_ps(ab_low, cd_low),
                _mm_movehl_ps(cd_low, ab_low),
                _mm_movelh_ps(ab_high, cd_high),
                _mm_movehl_ps(cd_high, ab_high),
            ])
        }
    }
}

impl Accumulator for f64 {
    #[cfg(target_arch = "x86_64")]
    type Wide = std::arch::x86_64::__m512d;
    #[cfg(target_arch = "x86_64")]
    type Narrow = std::arch::x86_64::__m256d;
    const ZERO: f64 = 0.0;
    #[inline(always)]
    fn fma(self, b: f64, c: f64) -> f64 {
        self.mul_add(b, c)
    }
    #[inline(always)]
    fn plus(self, b: f64) -> f64 {
        self + b
    }
    #[inline(always)]
    fn widen<T: Float>(x: T) -> f64 {
        x.to_f64()
    }
    #[inline(always)]
    fn narrow<T: Float>(self) -> T {
        T::from_f64(self)
    }
}

/// Rows `start .. start + height` of the packed left operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    /// First row, counted in packed order.
    pub start: usize,
    /// Rows, 1 to [`HEIGHT`].
    pub height: usize,
    /// Whose right operand the tile takes where there are several; `None` takes part in none.
    pub group: Option<usize>,
}

/// One block of steps of a product.
pub(crate) struct Sweep<'s, A> {
    /// Tiles that take part.
    pub tiles: &'s [Tile],
    /// Packed left operand from packed row `origin` on: tile by tile, `[depth][height]`.
    pub left: &'s [A],
    /// Packed row at which `left` and `sums` begin.
    pub origin: usize,
    /// Steps of the packed left operand.
    pub depth: usize,
    /// First of the steps of this block.
    pub first: usize,
    /// `[steps][WIDTH]` right operand.
    pub panel: &'s [A],
    /// Columns in use, 1 to [`WIDTH`].
    pub columns: usize,
    /// `[rows][WIDTH]` partial sums, carried on.
    pub sums: &'s mut [A],
}

/// Carries every tile's sums through the steps of one panel.
pub(crate) fn sweep<A: Accumulator>(block: Sweep<'_, A>) {
    let pair = has_32_registers();
    let steps = block.panel.len() / WIDTH;
    for tile in block.tiles {
        let (row, height) = (tile.start - block.origin, tile.height);
        let left = &block.left[row * block.depth + block.first * height..][..steps * height];
        let sums = &mut block.sums[row * WIDTH..][..height * WIDTH];
        let mut column = 0;
        while column < block.columns {
            let both = pair && block.columns > VECTOR;
            carry_tile((height, both), left, block.panel, column, sums);
            column += if both { 2 * VECTOR } else { VECTOR };
        }
    }
}

/// Two vectors of accumulators per row need 12 registers of 512 bits.
fn has_32_registers() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn carry_tile<A: Accumulator>(
    (height, both): (usize, bool),
    left: &[A],
    panel: &[A],
    column: usize,
    sums: &mut [A],
) {
    match (height, both) {
        (1, false) => carry(Grid::<1, 1>, left, panel, column, sums),
        (2, false) => carry(Grid::<2, 1>, left, panel, column, sums),
        (3, false) => carry(Grid::<3, 1>, left, panel, column, sums),
        (4, false) => carry(Grid::<4, 1>, left, panel, column, sums),
        (5, false) => carry(Grid::<5, 1>, left, panel, column, sums),
        (_, false) => carry(Grid::<HEIGHT, 1>, left, panel, column, sums),
        (1, true) => carry(Grid::<1, 2>, left, panel, column, sums),
        (2, true) => carry(Grid::<2, 2>, left, panel, column, sums),
        (3, true) => carry(Grid::<3, 2>, left, panel, column, sums),
        (4, true) => carry(Grid::<4, 2>, left, panel, column, sums),
        (5, true) => carry(Grid::<5, 2>, left, panel, column, sums),
        (_, true) => carry(Grid::<HEIGHT, 2>, left, panel, column, sums),
    }
}

// One function per shape: in a function that holds several, the compiler keeps the accumulators
// in memory (6 instead of 113 GFLOP/s).
dispatch_simd!(
    fn carry<A: Accumulator, S: Shape>(
        shape: S,
        left: &[A],
        panel: &[A],
        column: usize,
        sums: &mut [A],
    ) = carry_body
);

#[inline(always)]
fn carry_body<A: Accumulator, S: Shape>(
    _: S,
    left: &[A],
    panel: &[A],
    column: usize,
    sums: &mut [A],
) {
    S::carry(left, panel, column, sums);
}

/// `H` rows by `V` vectors of columns.
struct Grid<const H: usize, const V: usize>;

trait Shape {
    /// Carries `sums` from `column` on through all steps: `left` is `[steps][rows]`, `panel`
    /// `[steps][WIDTH]`.
    fn carry<A: Accumulator>(left: &[A], panel: &[A], column: usize, sums: &mut [A]);
}

impl<const H: usize, const V: usize> Shape for Grid<H, V> {
    /// The accumulators are a fixed-size array that only unrolled loops index, so they live in
    /// registers.
    #[inline(always)]
    fn carry<A: Accumulator>(left: &[A], panel: &[A], column: usize, sums: &mut [A]) {
        let mut c = [[[A::ZERO; VECTOR]; V]; H];
        for i in 0..H {
            for v in 0..V {
                c[i][v].copy_from_slice(&sums[i * WIDTH + column + v * VECTOR..][..VECTOR]);
            }
        }
        for (a, b) in left.as_chunks::<H>().0.iter().zip(panel.as_chunks::<WIDTH>().0) {
            for v in 0..V {
                let b = &b[column + v * VECTOR..][..VECTOR];
                for i in 0..H {
                    for lane in 0..VECTOR {
                        c[i][v][lane] = a[i].fma(b[lane], c[i][v][lane]);
                    }
                }
            }
        }
        for i in 0..H {
            for v in 0..V {
                sums[i * WIDTH + column + v * VECTOR..][..VECTOR].copy_from_slice(&c[i][v]);
            }
        }
    }
}
