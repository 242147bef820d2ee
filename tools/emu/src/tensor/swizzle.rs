//! The permutations of 16-byte chunks that TMA applies to shared memory and `wgmma` undoes.
//!
//! A tile whose rows are 32, 64 or 128 bytes long puts the same column of eight successive rows
//! into few banks. The swizzle exchanges chunks inside a row by XOR with bits of the row number,
//! so that they fall into different banks. It is a function of the *address*, not of the position
//! in the tile: the bits `to` are XORed with the bits `from`.
//!
//! | mode | bits from | bits to | pattern repeats after |
//! |---|---|---|---|
//! | 32 bytes | 7 | 4 | 256 bytes |
//! | 64 bytes | 7..8 | 4..5 | 512 bytes |
//! | 128 bytes | 7..9 | 4..6 | 1024 bytes |
//!
//! For 128-byte rows in a tile aligned to 1024 bytes this is `chunk ^= row % 8`.

/// A permutation of 16-byte chunks of shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swizzle {
    /// The identity.
    #[default]
    None,
    /// Rows of 32 bytes.
    B32,
    /// Rows of 64 bytes.
    B64,
    /// Rows of 128 bytes.
    B128,
}

impl Swizzle {
    /// Where the byte at `address` of the unswizzled layout is stored. It is its own inverse.
    #[inline]
    #[must_use]
    pub const fn apply(self, address: u32) -> u32 {
        let mask = match self {
            Self::None => 0,
            Self::B32 => 1,
            Self::B64 => 3,
            Self::B128 => 7,
        };
        address ^ ((address >> 7) & mask) << 4
    }

    /// Length in bytes of the rows that the pattern is made for; 16 without a swizzle.
    #[must_use]
    pub const fn row_bytes(self) -> u32 {
        match self {
            Self::None => 16,
            Self::B32 => 32,
            Self::B64 => 64,
            Self::B128 => 128,
        }
    }

    /// Bytes after which the pattern repeats: eight rows.
    #[must_use]
    pub const fn repeat_bytes(self) -> u32 {
        8 * self.row_bytes()
    }
}
