//! `ldmatrix` and `stmatrix`: 8 x 8 matrices of 16-bit elements between shared memory and lanes.
//!
//! Matrix `i` of `.x1`, `.x2` or `.x4` has eight rows of 16 bytes. Lane `8i + r` names the address
//! of row `r`; each lane then holds one register of each matrix:
//!
//! | form | lane `L`, register `i`, low half | high half |
//! |---|---|---|
//! | plain | row `L / 4`, column `2 (L % 4)` | the next column |
//! | `.trans` | row `2 (L % 4)`, column `L / 4` | the next row |
//!
//! `stmatrix` is the inverse. The lanes from `8 n` on, for `.xn`, name no address.

use super::Row;

/// Columns of a matrix row: 8 elements of 16 bits, low half of each word first.
pub type MatrixRow = [u8; 16];

/// A decoded `ldmatrix` or `stmatrix`: `.x1`, `.x2` or `.x4`, and `.trans`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrices {
    count: usize,
    transposed: bool,
}

impl Matrices {
    /// `.m8n8.x{count}` of `.b16`, transposed or not.
    ///
    /// # Errors
    ///
    /// `count` is not 1, 2 or 4.
    pub fn new(count: usize, transposed: bool) -> Result<Self, String> {
        if !matches!(count, 1 | 2 | 4) {
            return Err(format!("ldmatrix and stmatrix move 1, 2 or 4 matrices, not {count}"));
        }
        Ok(Self { count, transposed })
    }

    /// Number of matrices, which is the number of registers per lane.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The shared addresses of the rows: entry `8i + r` is row `r` of matrix `i`.
    ///
    /// # Errors
    ///
    /// An address is not a multiple of 16 bytes; the text names the lane.
    pub fn rows(&self, addresses: &Row) -> Result<Vec<u32>, String> {
        let used = &addresses[..8 * self.count];
        for (lane, address) in used.iter().enumerate() {
            if address % 16 != 0 {
                return Err(format!(
                    "lane {lane} names row {} of matrix {} at {address:#x}, \
                     which is not a multiple of 16",
                    lane % 8,
                    lane / 8
                ));
            }
        }
        Ok(used.to_vec())
    }

    /// Row and column of the element in half `half` of lane `lane`.
    #[inline(always)]
    fn element(&self, lane: usize, half: usize) -> (usize, usize) {
        let (major, minor) = (lane / 4, 2 * (lane % 4) + half);
        if self.transposed { (minor, major) } else { (major, minor) }
    }

    /// Registers of an `ldmatrix`, from the rows in the order of [`Matrices::rows`].
    ///
    /// # Panics
    ///
    /// There are fewer rows than `8 * count`.
    #[must_use]
    pub fn load(&self, rows: &[MatrixRow]) -> [Row; 4] {
        let mut registers = [[0; 32]; 4];
        for (i, register) in registers.iter_mut().enumerate().take(self.count) {
            for lane in 0..32 {
                let mut word = 0;
                for half in 0..2 {
                    let (row, column) = self.element(lane, half);
                    let bytes = &rows[8 * i + row][2 * column..2 * column + 2];
                    word |= u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << (16 * half);
                }
                register[lane] = word;
            }
        }
        registers
    }

    /// Rows of an `stmatrix`, in the order of [`Matrices::rows`], from `count` registers.
    ///
    /// # Panics
    ///
    /// There are fewer registers than matrices.
    #[must_use]
    pub fn store(&self, registers: &[Row]) -> Vec<MatrixRow> {
        let mut rows = vec![[0; 16]; 8 * self.count];
        for (i, register) in registers[..self.count].iter().enumerate() {
            for lane in 0..32 {
                for half in 0..2 {
                    let (row, column) = self.element(lane, half);
                    let value = ((register[lane] >> (16 * half)) as u16).to_le_bytes();
                    rows[8 * i + row][2 * column..2 * column + 2].copy_from_slice(&value);
                }
            }
        }
        rows
    }
}
