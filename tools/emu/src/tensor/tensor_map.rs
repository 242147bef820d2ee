//! Tensor maps: what `cp.async.bulk.tensor` knows of a tensor in global memory.
//!
//! A map describes a tensor of rank 1 to 5, innermost dimension first, and the box that one
//! instruction copies. The device's 128-byte object is opaque, so this one has its own encoding;
//! host code that runs on the emulator builds it here instead of asking the driver.
//!
//! | field | limits |
//! |---|---|
//! | address | multiple of 16 |
//! | dimensions | 1..=2^32 each |
//! | strides, in bytes, of the dimensions from the second on | multiples of 16, below 2^40 |
//! | box | 1..=256 each; innermost a multiple of 16 bytes, and no longer than a swizzled row |
//! | element strides | 1..=8 each; that of the innermost dimension is ignored |
//!
//! # What a copy moves
//!
//! Box position `(i0, i1, ..)` is tensor element `coordinate[d] + i[d] * element_stride[d]` and
//! shared byte `swizzle(base + ((.. i2 n1 + i1) n0 + i0) * element_bytes)` with
//! `n[d] = ceil(box[d] / element_stride[d])`. Elements outside the tensor are zero in a load and
//! skipped in a store; a load counts them in its bytes all the same.

use super::swizzle::Swizzle;

/// Element type of a tensor map: size, and the arithmetic of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorElement {
    /// Unsigned byte; also fp8 and packed formats.
    U8,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    S32,
    /// Unsigned 64-bit integer.
    U64,
    /// Signed 64-bit integer.
    S64,
    /// IEEE half.
    F16,
    /// IEEE single; also tf32.
    F32,
    /// IEEE double.
    F64,
    /// bfloat16.
    Bf16,
}

const ELEMENTS: [TensorElement; 10] = [
    TensorElement::U8,
    TensorElement::U16,
    TensorElement::U32,
    TensorElement::S32,
    TensorElement::U64,
    TensorElement::S64,
    TensorElement::F16,
    TensorElement::F32,
    TensorElement::F64,
    TensorElement::Bf16,
];
const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

impl TensorElement {
    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::S32 | Self::F32 => 4,
            Self::U64 | Self::S64 | Self::F64 => 8,
        }
    }
}

/// The arguments of [`TensorMap::new`], innermost dimension first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiled<'a> {
    /// Element type.
    pub element: TensorElement,
    /// Address of element (0, 0, ..) in global memory.
    pub address: u64,
    /// Extent of each dimension.
    pub dims: &'a [u64],
    /// Bytes between neighbors along dimension 1, 2, ..: one fewer than `dims`.
    pub strides: &'a [u64],
    /// Extent of the box along each dimension.
    pub extents: &'a [u32],
    /// Step along each dimension inside the box.
    pub element_strides: &'a [u32],
    /// Permutation of the box in shared memory.
    pub swizzle: Swizzle,
}

/// A checked tensor map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    element: TensorElement,
    swizzle: Swizzle,
    rank: usize,
    address: u64,
    dims: [u64; 5],
    /// `strides[0]` is the element size.
    strides: [u64; 5],
    extents: [u32; 5],
    steps: [u32; 5],
}

/// Bytes that move together: inside one 16-byte chunk if the map is swizzled, else inside a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Address in shared memory, after the swizzle.
    pub shared: u32,
    /// Address in global memory, or `None` outside the tensor.
    pub global: Option<u64>,
    /// Length.
    pub bytes: u32,
}

impl TensorMap {
    /// Size of the encoded object.
    pub const BYTES: usize = 128;

    /// Alignment of the box in shared memory.
    pub const SHARED_ALIGNMENT: u32 = 128;

    /// Checks the arguments against the module's table.
    ///
    /// # Errors
    ///
    /// The text names the argument, its value and the limit.
    pub fn new(tiled: &Tiled<'_>) -> Result<Self, String> {
        let rank = tiled.dims.len();
        if !(1..=5).contains(&rank) {
            return Err(format!("dims: rank {rank}, expected 1 to 5"));
        }
        for (name, got, expected) in [
            ("strides", tiled.strides.len(), rank - 1),
            ("extents", tiled.extents.len(), rank),
            ("element_strides", tiled.element_strides.len(), rank),
        ] {
            if got != expected {
                return Err(format!("{name}: {got} values for rank {rank}, expected {expected}"));
            }
        }
        let mut map = Self {
            element: tiled.element,
            swizzle: tiled.swizzle,
            rank,
            address: tiled.address,
            dims: [1; 5],
            strides: [0; 5],
            extents: [1; 5],
            steps: [1; 5],
        };
        map.dims[..rank].copy_from_slice(tiled.dims);
        map.strides[0] = u64::from(tiled.element.bytes());
        map.strides[1..rank].copy_from_slice(tiled.strides);
        map.extents[..rank].copy_from_slice(tiled.extents);
        map.steps[..rank].copy_from_slice(tiled.element_strides);
        map.check()?;
        // The hardware has no step along the innermost dimension.
        map.steps[0] = 1;
        Ok(map)
    }

    fn check(&self) -> Result<(), String> {
        if !self.address.is_multiple_of(16) {
            return Err(format!("address: {:#x} is not a multiple of 16", self.address));
        }
        for d in 0..self.rank {
            let (dim, extent, step) = (self.dims[d], self.extents[d], self.steps[d]);
            if !(1..=1 << 32).contains(&dim) {
                return Err(format!("dims[{d}]: {dim}, expected 1 to 2^32"));
            }
            if !(1..=256).contains(&extent) {
                return Err(format!("extents[{d}]: {extent}, expected 1 to 256"));
            }
            if !(1..=8).contains(&step) {
                return Err(format!("element_strides[{d}]: {step}, expected 1 to 8"));
            }
        }
        for (d, &stride) in self.strides[1..self.rank].iter().enumerate() {
            if stride % 16 != 0 || stride >= 1 << 40 {
                return Err(format!(
                    "strides[{d}]: {stride} bytes, expected a multiple of 16 below 2^40"
                ));
            }
        }
        let row = self.extents[0] * self.element.bytes();
        if !row.is_multiple_of(16) {
            return Err(format!("extents[0]: {row} bytes, expected a multiple of 16 bytes"));
        }
        if self.swizzle != Swizzle::None && row > self.swizzle.row_bytes() {
            return Err(format!(
                "extents[0]: {row} bytes, at most {} with swizzle {:?}",
                self.swizzle.row_bytes(),
                self.swizzle
            ));
        }
        Ok(())
    }

    /// Number of dimensions, which is the number of coordinates an instruction gives.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// Element type.
    #[must_use]
    pub const fn element(&self) -> TensorElement {
        self.element
    }

    /// Permutation in shared memory.
    #[must_use]
    pub const fn swizzle(&self) -> Swizzle {
        self.swizzle
    }

    /// Elements that the box takes along dimension `d`.
    fn count(&self, d: usize) -> u32 {
        self.extents[d].div_ceil(self.steps[d])
    }

    /// Bytes of the box in shared memory: what a load adds to the barrier, in or out of bounds.
    #[must_use]
    pub fn box_bytes(&self) -> u32 {
        (0..5).map(|d| self.count(d)).product::<u32>() * self.element.bytes()
    }

    /// The object as 128 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(MAGIC);
        put(&[self.rank as u8, position(&ELEMENTS, &self.element)]);
        put(&[position(&SWIZZLES, &self.swizzle), 0]);
        put(&self.address.to_le_bytes());
        self.dims.iter().for_each(|dim| put(&dim.to_le_bytes()));
        self.strides[1..].iter().for_each(|stride| put(&stride.to_le_bytes()));
        self.extents.iter().for_each(|extent| put(&extent.to_le_bytes()));
        self.steps.iter().for_each(|step| put(&[*step as u8]));
        bytes
    }

    /// Reads an encoded object.
    ///
    /// # Errors
    ///
    /// The bytes are not an encoded map.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, String> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
        let rank = usize::from(bytes[4]);
        let element = ELEMENTS.get(usize::from(bytes[5]));
        let swizzle = SWIZZLES.get(usize::from(bytes[6]));
        let (Some(&element), Some(&swizzle), true) = (element, swizzle, &bytes[..4] == MAGIC)
        else {
            return Err("these 128 bytes are not a tensor map".into());
        };
        let dims: [u64; 5] = std::array::from_fn(|d| word(16 + 8 * d));
        let strides: [u64; 4] = std::array::from_fn(|d| word(56 + 8 * d));
        let extents: [u32; 5] = std::array::from_fn(|d| half(88 + 4 * d));
        let steps: [u32; 5] = std::array::from_fn(|d| u32::from(bytes[108 + d]));
        if !(1..=5).contains(&rank) {
            return Err("these 128 bytes are not a tensor map".into());
        }
        Self::new(&Tiled {
            element,
            address: word(8),
            dims: &dims[..rank],
            strides: &strides[..rank - 1],
            extents: &extents[..rank],
            element_strides: &steps[..rank],
            swizzle,
        })
    }

    /// The pieces of the box at `coordinates`, in shared memory from `shared` on.
    ///
    /// # Errors
    ///
    /// `shared` is not aligned, the number of coordinates is not the rank, or the box would pass
    /// the end of the 32-bit shared window.
    pub fn pieces(&self, shared: u32, coordinates: &[i32]) -> Result<Vec<Piece>, String> {
        if !shared.is_multiple_of(Self::SHARED_ALIGNMENT) {
            return Err(format!("shared address {shared:#x} is not a multiple of 128"));
        }
        if coordinates.len() != self.rank {
            let (got, rank) = (coordinates.len(), self.rank);
            return Err(format!("{got} coordinates for a tensor map of rank {rank}"));
        }
        if shared.checked_add(self.box_bytes()).is_none() {
            return Err(format!("a box of {} bytes at {shared:#x}", self.box_bytes()));
        }
        let counts: [u32; 5] = std::array::from_fn(|d| self.count(d));
        let rows = counts[1..].iter().product::<u32>();
        let row_bytes = counts[0] * self.element.bytes();
        let mut pieces = Vec::with_capacity(rows as usize * (row_bytes as usize / 16));
        for row in 0..rows {
            let global = self.row_address(row, &counts, coordinates);
            self.push_row(&mut pieces, shared + row * row_bytes, global, coordinates[0], counts[0]);
        }
        Ok(pieces)
    }

    /// Address of position 0 of the tensor row that box row `row` lies in, if the row exists.
    fn row_address(&self, mut row: u32, counts: &[u32; 5], coordinates: &[i32]) -> Option<u64> {
        let mut address = self.address;
        for d in 1..self.rank {
            let inside = row % counts[d];
            row /= counts[d];
            let at = i64::from(coordinates[d]) + i64::from(inside) * i64::from(self.steps[d]);
            let at = u64::try_from(at).ok().filter(|at| *at < self.dims[d])?;
            address = address.wrapping_add(at.wrapping_mul(self.strides[d]));
        }
        Some(address)
    }

    /// Splits a row of `count` elements at the edges of the tensor and of the swizzled chunks.
    fn push_row(
        &self,
        pieces: &mut Vec<Piece>,
        shared: u32,
        global: Option<u64>,
        first: i32,
        count: u32,
    ) {
        let bytes = i64::from(self.element.bytes());
        let (row_start, row_end) = (i64::from(first), i64::from(first) + i64::from(count));
        let in_start = row_start.clamp(0, row_end.max(0));
        let in_end = row_end.min(self.dims[0] as i64).max(in_start);
        let chunk = if self.swizzle == Swizzle::None { i64::from(u32::MAX) } else { 16 };
        for (start, end, inside) in [
            (row_start, in_start.min(row_end), false),
            (in_start, in_end, true),
            (in_end.max(row_start), row_end, false),
        ] {
            let mut at = (start - row_start) * bytes;
            let stop = (end - row_start) * bytes;
            while at < stop {
                let next = stop.min((at / chunk + 1) * chunk);
                let offset = (row_start * bytes + at) as u64;
                pieces.push(Piece {
                    shared: self.swizzle.apply(shared + at as u32),
                    global: global.filter(|_| inside).map(|base| base.wrapping_add(offset)),
                    bytes: (next - at) as u32,
                });
                at = next;
            }
        }
    }
}

const MAGIC: &[u8; 4] = b"TMAP";

/// Index of a value in a table that holds it.
fn position<T: PartialEq>(table: &[T], value: &T) -> u8 {
    table.iter().position(|entry| entry == value).unwrap_or_default() as u8
}
