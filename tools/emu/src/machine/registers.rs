//! The registers of a warp: one row of 32 lanes each. Every row has a mask of the lanes that hold
//! a defined value; arithmetic passes the mask on, addresses, branches and stores insist on it.

use crate::text::ast::Class;

/// One 32-bit value of each lane.
pub type Row = [u32; 32];
/// One 64-bit value of each lane.
pub type Row64 = [u64; 32];
/// The mask of all lanes.
pub const ALL: u32 = u32::MAX;

/// All registers of a warp.
#[derive(Default)]
pub struct Registers {
    pub narrow: Vec<Row>,
    pub wide: Vec<Row64>,
    /// A bit per lane.
    pub predicate: Vec<u32>,
    /// Lanes with a defined value, by class.
    pub defined: [Vec<u32>; 3],
}

impl Registers {
    /// As many registers as a program needs, none of them defined.
    pub fn resize(&mut self, counts: [usize; 3]) {
        self.narrow.resize(counts[0], [0; 32]);
        self.wide.resize(counts[1], [0; 32]);
        self.predicate.resize(counts[2], 0);
        for (defined, count) in self.defined.iter_mut().zip(counts) {
            defined.clear();
            defined.resize(count, 0);
        }
    }

    /// Lanes in which a register is defined.
    #[inline(always)]
    pub fn known(&self, class: Class, index: usize) -> u32 {
        self.defined[class as usize][index]
    }

    #[inline(always)]
    pub fn set_narrow(&mut self, index: usize, value: &Row, mask: u32, known: u32) {
        let row = &mut self.narrow[index];
        if mask == ALL {
            *row = *value;
        } else {
            for lane in 0..32 {
                row[lane] = if mask >> lane & 1 != 0 { value[lane] } else { row[lane] };
            }
        }
        mark(&mut self.defined[0][index], mask, known);
    }

    #[inline(always)]
    pub fn set_wide(&mut self, index: usize, value: &Row64, mask: u32, known: u32) {
        let row = &mut self.wide[index];
        if mask == ALL {
            *row = *value;
        } else {
            for lane in 0..32 {
                row[lane] = if mask >> lane & 1 != 0 { value[lane] } else { row[lane] };
            }
        }
        mark(&mut self.defined[1][index], mask, known);
    }

    #[inline(always)]
    pub fn set_predicate(&mut self, index: usize, value: u32, mask: u32, known: u32) {
        mark(&mut self.predicate[index], mask, value);
        mark(&mut self.defined[2][index], mask, known);
    }
}

#[inline(always)]
fn mark(bits: &mut u32, mask: u32, value: u32) {
    *bits = (*bits & !mask) | (value & mask);
}

/// The lanes of a mask, lowest first.
pub fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}
