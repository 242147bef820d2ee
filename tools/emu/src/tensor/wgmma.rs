//! `wgmma.mma_async.sync.aligned.m64nNkK`: the products of a warpgroup, operands in shared memory.
//!
//! | operands | K | accumulators | N |
//! |---|---|---|---|
//! | bf16 | 16 | f32 | 8, 16, .. 256 |
//! | f16 | 16 | f32, f16 | 8, 16, .. 256 |
//! | tf32 | 8 | f32 | 8, 16, .. 256 |
//! | e4m3, e5m2 in any mix | 32 | f32, f16 | 8, 16, .. 256 |
//! | s8, u8 in any mix | 32 | s32 | 8, 16, 24, 32, 48, 64, .. 256 |
//!
//! Warp `w` of the four owns rows `16w..16w+16` of A and of the accumulators. Its accumulators of
//! columns `8j..8j+8` are an `mma` C fragment in registers `4j..4j+4` (f16: `2j..2j+2`), and A
//! from registers is an `mma` A fragment; see [`super::fragment`].
//!
//! # Operands in shared memory
//!
//! A 64-bit descriptor locates an operand, whose elements are (i, k): i is a row of A or a column
//! of B. 16 bytes hold `T = 16 / element bytes` elements; a row of the swizzle, `W` bytes, is 16,
//! 32, 64 or 128 bytes.
//!
//! | bits | field |
//! |---|---|
//! | 0..14 | start address / 16 |
//! | 16..30 | leading byte offset LBO / 16 |
//! | 32..46 | stride byte offset SBO / 16 |
//! | 49..52 | base offset of the swizzle pattern |
//! | 62..64 | swizzle: 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes |
//!
//! | layout | byte offset of (i, k), before the swizzle |
//! |---|---|
//! | K-major, swizzled | `(i % 8) W + (i / 8) SBO + k bytes` |
//! | K-major, none | `(i % 8) 16 + (i / 8) SBO + (k % T) bytes + (k / T) LBO` |
//! | MN-major, swizzled | `(i % E) bytes + (i / E) LBO + (k % 8) W + (k / 8) SBO`, `E = W / bytes` |
//! | MN-major, none | `(i % T) bytes + (i / T) SBO + (k % 8) 16 + (k / 8) LBO` |
//!
//! The swizzle permutes bits of the absolute address, start included. That is why K advances
//! inside a 128-byte row by adding 32 bytes to the start address, and why the pattern must begin
//! at a multiple of its repeat (1024, 512 or 256 bytes) while the base offset is 0. Descriptors
//! with another base offset are refused: no kernel here needs one.

use super::Row;
use super::fragment::{
    accumulator_registers, load_a, load_a_float, load_c, load_c_float, store_c, store_c_float,
};
use super::mma::{Accumulator, Element, accumulate_integers};
use super::numerics::{Float, FloatAccumulator, Numerics, Product, Unit};
use super::swizzle::Swizzle;

/// Shared memory as the tensor core sees it; the implementation checks what it likes.
pub trait SharedRead {
    /// Copies the bytes at `address`.
    ///
    /// # Errors
    ///
    /// The bytes may not be read: out of bounds, not initialized, in flight.
    fn read(&mut self, address: u32, bytes: &mut [u8]) -> Result<(), String>;
}

/// A decoded matrix descriptor; see the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Start address in bytes.
    pub start: u32,
    /// Leading byte offset.
    pub leading: u32,
    /// Stride byte offset.
    pub stride: u32,
    /// Base offset of the swizzle pattern.
    pub base_offset: u32,
    /// Swizzle of the operand.
    pub swizzle: Swizzle,
}

/// Which index of an operand is contiguous in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Major {
    /// k: no transposition.
    K,
    /// Row of A or column of B: `imm-trans` is 1.
    Mn,
}

impl Descriptor {
    /// Splits the 64 bits.
    ///
    /// # Errors
    ///
    /// A bit outside the fields is set, the base offset is not 0, or the start address lies
    /// beyond the first row of its swizzle pattern.
    pub fn decode(bits: u64) -> Result<Self, String> {
        const RESERVED: u64 = 0x3ff1_c000_c000_c000;
        if bits & RESERVED != 0 {
            return Err(format!("matrix descriptor {bits:#018x} has reserved bits set"));
        }
        let address = |low: u32| ((bits >> low & 0x3fff) as u32) << 4;
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        let base_offset = (bits >> 49 & 7) as u32;
        let (start, leading, stride) = (address(0), address(16), address(32));
        if base_offset != 0 {
            return Err(format!("matrix descriptor with a base offset of {base_offset}"));
        }
        if swizzle != Swizzle::None && start % swizzle.repeat_bytes() >= swizzle.row_bytes() {
            return Err(format!(
                "matrix descriptor: start {start:#x} is not in the first row of a \
                 {}-byte swizzle pattern, and the base offset is 0",
                swizzle.repeat_bytes()
            ));
        }
        Ok(Self { start, leading, stride, base_offset, swizzle })
    }

    /// The 64 bits, for host code and tests.
    #[must_use]
    pub fn encode(&self) -> u64 {
        let field = |bytes: u32| u64::from(bytes >> 4 & 0x3fff);
        let mode = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        };
        field(self.start)
            | field(self.leading) << 16
            | field(self.stride) << 32
            | u64::from(self.base_offset & 7) << 49
            | mode << 62
    }

    /// Shared address of element (i, k), `bytes` per element.
    #[inline]
    #[must_use]
    pub const fn address(&self, major: Major, bytes: u32, i: u32, k: u32) -> u32 {
        let row = self.swizzle.row_bytes();
        let per_chunk = 16 / bytes;
        let per_row = row / bytes;
        let offset = match (major, self.swizzle) {
            (Major::K, Swizzle::None) => {
                i % 8 * 16
                    + i / 8 * self.stride
                    + k % per_chunk * bytes
                    + k / per_chunk * self.leading
            }
            (Major::K, _) => i % 8 * row + i / 8 * self.stride + k * bytes,
            (Major::Mn, Swizzle::None) => {
                i % per_chunk * bytes
                    + i / per_chunk * self.stride
                    + k % 8 * 16
                    + k / 8 * self.leading
            }
            (Major::Mn, _) => {
                i % per_row * bytes + i / per_row * self.leading + k % 8 * row + k / 8 * self.stride
            }
        };
        self.swizzle.apply(self.start + offset)
    }
}

/// A decoded `wgmma.mma_async`: shape and types that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wgmma {
    n: usize,
    a: Element,
    b: Element,
    accumulator: Accumulator,
}

/// How the instruction takes one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Take {
    /// `imm-scale` is -1: every element changes its sign.
    pub negate: bool,
    /// Contiguous index, from `imm-trans`.
    pub major: Major,
}

impl Take {
    /// As the matrix is: K-major, unchanged.
    pub const PLAIN: Self = Self { negate: false, major: Major::K };
}

/// Elements of an operand, and the 16-byte chunks of shared memory they came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    values: Values,
    /// Addresses of the chunks, in the order of reading; empty for registers.
    pub chunks: Vec<u32>,
}

/// Blocks of `[16][k]` for A, of `[k][8]` for B.
#[derive(Clone, Debug, PartialEq)]
enum Values {
    Float(Vec<f32>),
    Integer(Vec<i32>),
}

impl Wgmma {
    /// `wgmma.mma_async.sync.aligned.m64n{n}` of these types; K follows from them.
    ///
    /// # Errors
    ///
    /// The combination is not in the module's table.
    pub fn new(n: usize, a: Element, b: Element, accumulator: Accumulator) -> Result<Self, String> {
        let fp8 = |x: Element| matches!(x, Element::Float(Float::E4m3 | Float::E5m2));
        let integer = |x: Element| matches!(x, Element::S8 | Element::U8);
        let types = match accumulator {
            Accumulator::S32 { .. } => integer(a) && integer(b),
            Accumulator::Float(FloatAccumulator::F32) => {
                (fp8(a) && fp8(b)) || (a == b && !integer(a))
            }
            Accumulator::Float(FloatAccumulator::F16) => {
                (fp8(a) && fp8(b)) || (a == b && a == Element::Float(Float::F16))
            }
        };
        let size = n.is_multiple_of(8)
            && (8..=256).contains(&n)
            && (!integer(a) || n == 8 || n == 24 || n.is_multiple_of(16));
        if types && size {
            Ok(Self { n, a, b, accumulator })
        } else {
            Err(format!("wgmma has no m64n{n} of {a:?} and {b:?} into {accumulator:?}"))
        }
    }

    /// Elements of k in the instruction: 32 bytes of each operand.
    #[must_use]
    pub const fn k(&self) -> usize {
        256 / self.a.bits() as usize
    }

    /// Columns of the product.
    #[must_use]
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Accumulator registers per lane.
    #[must_use]
    pub const fn accumulator_registers(&self) -> usize {
        self.n / 8 * self.block_registers()
    }

    /// Registers per lane of A, when A is in registers.
    pub const A_REGISTERS: usize = 4;

    /// Multiply-adds of the instruction, all four warps: `64 n k`.
    #[must_use]
    pub const fn multiply_adds(&self) -> u64 {
        (64 * self.n * self.k()) as u64
    }

    const fn block_registers(&self) -> usize {
        match self.accumulator {
            Accumulator::Float(accumulator) => accumulator_registers(accumulator),
            Accumulator::S32 { .. } => 4,
        }
    }

    /// Checks the immediates of an operand in shared memory.
    fn check_take(&self, name: &str, element: Element, take: Take) -> Result<(), String> {
        if take.negate && matches!(self.accumulator, Accumulator::S32 { .. }) {
            return Err(format!("wgmma of integers cannot negate {name}"));
        }
        if take.major == Major::Mn && element.bits() != 16 {
            return Err(format!(
                "wgmma transposes 16-bit operands only, and {name} is {element:?}"
            ));
        }
        Ok(())
    }

    /// A of warp `warp` (0..4) of the group, from shared memory.
    ///
    /// # Errors
    ///
    /// The immediates do not fit the type, or the memory may not be read.
    pub fn a_from_shared(
        &self,
        descriptor: &Descriptor,
        take: Take,
        warp: usize,
        shared: &mut dyn SharedRead,
    ) -> Result<Operand, String> {
        self.check_take("a", self.a, take)?;
        let k = self.k();
        let first = 16 * warp;
        self.read(self.a, descriptor, take, first, 16, shared, &|i, l| (i - first) * k + l)
    }

    /// A of one warp, from its four registers.
    ///
    /// # Errors
    ///
    /// `registers` are not four, or the immediates do not fit registers or type.
    pub fn a_from_registers(&self, registers: &[Row], take: Take) -> Result<Operand, String> {
        self.check_take("a", self.a, take)?;
        if take.major == Major::Mn {
            return Err("wgmma cannot transpose a in registers".into());
        }
        if registers.len() != Self::A_REGISTERS {
            return Err(format!("wgmma: a has {} registers, expected 4", registers.len()));
        }
        let mut values = match (self.a, self.k()) {
            (Element::Float(float), 8) => {
                Values::Float(load_a_float::<8>(registers, float).as_flattened().to_vec())
            }
            (Element::Float(float), 16) => {
                Values::Float(load_a_float::<16>(registers, float).as_flattened().to_vec())
            }
            (Element::Float(float), _) => {
                Values::Float(load_a_float::<32>(registers, float).as_flattened().to_vec())
            }
            (element, _) => {
                let tile = load_a::<i32, 32>(registers, 8, |raw| element.decode_integer(raw));
                Values::Integer(tile.as_flattened().to_vec())
            }
        };
        values.negate_if(take.negate);
        Ok(Operand { values, chunks: Vec::new() })
    }

    /// B of the whole group, from shared memory.
    ///
    /// # Errors
    ///
    /// As [`Wgmma::a_from_shared`].
    pub fn b_from_shared(
        &self,
        descriptor: &Descriptor,
        take: Take,
        shared: &mut dyn SharedRead,
    ) -> Result<Operand, String> {
        self.check_take("b", self.b, take)?;
        let k = self.k();
        let place = |i: usize, l: usize| (i / 8 * k + l) * 8 + i % 8;
        self.read(self.b, descriptor, take, 0, self.n, shared, &place)
    }

    /// Reads `count` rows or columns from `first` on, chunk by chunk, each element to `place(i, k)`.
    #[expect(clippy::too_many_arguments, reason = "one private loop shared by A and B")]
    fn read(
        &self,
        element: Element,
        descriptor: &Descriptor,
        take: Take,
        first: usize,
        count: usize,
        shared: &mut dyn SharedRead,
        place: &dyn Fn(usize, usize) -> usize,
    ) -> Result<Operand, String> {
        let (k, bytes) = (self.k(), element.bytes());
        let per_chunk = 16 / bytes as usize;
        let (i_step, k_step) = if take.major == Major::K { (1, per_chunk) } else { (per_chunk, 1) };
        let mut chunks = Vec::with_capacity(count * k / per_chunk);
        let mut raw = vec![0_u32; count * k];
        for i in (first..first + count).step_by(i_step) {
            for l in (0..k).step_by(k_step) {
                let address = descriptor.address(take.major, bytes, i as u32, l as u32);
                let mut chunk = [0; 16];
                shared.read(address, &mut chunk)?;
                chunks.push(address);
                for (e, part) in chunk.chunks_exact(bytes as usize).enumerate() {
                    let bits = part.iter().rev().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
                    let (i, l) = if i_step == 1 { (i, l + e) } else { (i + e, l) };
                    raw[place(i, l)] = bits;
                }
            }
        }
        let mut values = match element {
            Element::Float(float) => {
                Values::Float(raw.into_iter().map(|bits| float.decode(bits)).collect())
            }
            integer => {
                Values::Integer(raw.into_iter().map(|bits| integer.decode_integer(bits)).collect())
            }
        };
        values.negate_if(take.negate);
        Ok(Operand { values, chunks })
    }

    /// `d = a b + d` for one warp, or `d = a b` if `scale_d` is false.
    ///
    /// # Errors
    ///
    /// `d` does not have [`Wgmma::accumulator_registers`], or an operand belongs to another
    /// instruction; `d` is unchanged then.
    pub fn accumulate(
        &self,
        numerics: Numerics,
        a: &Operand,
        b: &Operand,
        scale_d: bool,
        d: &mut [Row],
    ) -> Result<(), String> {
        let want = self.accumulator_registers();
        if d.len() != want {
            return Err(format!("wgmma: d has {} registers, expected {want}", d.len()));
        }
        if a.values.len() != 16 * self.k() || b.values.len() != self.n * self.k() {
            return Err("wgmma: an operand of another shape".into());
        }
        let float = matches!(self.accumulator, Accumulator::Float(_));
        if a.values.is_float() != float || b.values.is_float() != float {
            return Err("wgmma: an operand of another type".into());
        }
        if !scale_d {
            d.fill([0; 32]);
        }
        match self.k() {
            8 => self.run::<8>(numerics, a, b, d),
            16 => self.run::<16>(numerics, a, b, d),
            _ => self.run::<32>(numerics, a, b, d),
        }
    }

    fn run<const K: usize>(
        &self,
        numerics: Numerics,
        a: &Operand,
        b: &Operand,
        d: &mut [Row],
    ) -> Result<(), String> {
        let blocks = d.chunks_exact_mut(self.block_registers());
        match (&a.values, &b.values, self.a, self.b, self.accumulator) {
            (
                Values::Float(left),
                Values::Float(right),
                Element::Float(fa),
                Element::Float(fb),
                Accumulator::Float(accumulator),
            ) => {
                let product = Product { numerics, unit: Unit::Wgmma, a: fa, b: fb, accumulator };
                let (tile_a, tiles_b) = tiles::<f32, K>(left, right)?;
                for (tile_b, block) in tiles_b.iter().zip(blocks) {
                    let mut tile = load_c_float(block, accumulator);
                    product.accumulate(tile_a, tile_b, &mut tile);
                    store_c_float(&tile, block, accumulator);
                }
            }
            (Values::Integer(left), Values::Integer(right), _, _, accumulator) => {
                let saturate = accumulator == Accumulator::S32 { saturate: true };
                let (tile_a, tiles_b) = tiles::<i32, K>(left, right)?;
                for (tile_b, block) in tiles_b.iter().zip(blocks) {
                    let mut tile = load_c(block, |raw| raw as i32);
                    accumulate_integers(tile_a, tile_b, &mut tile, saturate);
                    store_c(&tile, block, |x| x as u32);
                }
            }
            _ => return Err("wgmma: an operand of another type".into()),
        }
        Ok(())
    }
}

/// A tile of A, and the tiles of B side by side.
type Tiles<'a, T, const K: usize> = (&'a [[T; K]; 16], &'a [[[T; 8]; K]]);

/// The flat values of both operands as tiles.
fn tiles<'a, T, const K: usize>(a: &'a [T], b: &'a [T]) -> Result<Tiles<'a, T, K>, String> {
    let tile_a = a.as_chunks::<K>().0.first_chunk::<16>();
    let tiles_b = b.as_chunks::<8>().0.as_chunks::<K>().0;
    tile_a
        .map(|tile_a| (tile_a, tiles_b))
        .ok_or_else(|| "wgmma: an operand of another shape".into())
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Float(values) => values.len(),
            Self::Integer(values) => values.len(),
        }
    }

    fn is_float(&self) -> bool {
        matches!(self, Self::Float(_))
    }

    fn negate_if(&mut self, negate: bool) {
        if let (true, Self::Float(values)) = (negate, self) {
            values.iter_mut().for_each(|x| *x = -*x);
        }
    }
}
