//! What the launches of all row kernels share (`kernels/vocabulary/rows.cuh`): the transform in the kernel's
//! terms, and how a row is spread over blocks and held on chip.

use crate::device::params::rows::{RowSet, THREADS, TILE};
use crate::device::{Grid, KernelSet};
use crate::dtype::{DType, Float};
use crate::error::{Error, Result};
use crate::ops::vocabulary::logprob::LogitTransform;

/// Bytes of a row from which another block helps, on devices with clusters: two such parts fit
/// into the 227 KiB of a multiprocessor, so that one block loads while the other stores.
const PART_BYTES: i64 = 96 << 10;

/// Most blocks of a cluster that every device with clusters can place.
const MAX_CLUSTER: i64 = 8;

/// Static shared memory of a row kernel, rounded up.
const STATIC_SHARED: i64 = 4096;

/// How rows of one extent are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Blocks that share a row.
    pub cluster: i64,
    /// Tiles of a block.
    pub share: i64,
    /// 16-byte words of each row in a block's shared memory; 0 = rows are read twice.
    pub held: i64,
    /// Rows that are held side by side.
    pub together: i64,
}

impl Plan {
    /// The plan for kernels that read `together` rows of `vocab` columns at once. The cluster, on
    /// which the order of sums depends, follows from the extent and the kernel set alone; whether
    /// the row is held also from the device's shared memory.
    pub fn new(vocab: i64, size: usize, set: KernelSet, shared_limit: u32, together: i64) -> Plan {
        let tiles = (vocab as u64).div_ceil(TILE * (16 / size as u64)) as i64;
        let bytes = tiles.saturating_mul((TILE * 16) as i64);
        let mut cluster = 1;
        while set == KernelSet::Sm90a
            && cluster < MAX_CLUSTER
            && bytes.saturating_mul(together) > cluster * PART_BYTES
        {
            cluster *= 2;
        }
        // One word more: a row that is not aligned ends in the middle of one.
        let share = (tiles as u64).div_ceil(cluster as u64) as i64;
        let words = share.saturating_mul(TILE as i64).saturating_add(1);
        let fits = words.saturating_mul(16 * together) <= shared_limit as i64 - STATIC_SHARED;
        Plan { cluster, share, held: if fits { words } else { 0 }, together }
    }

    /// The same, reading rows once and holding none.
    pub fn streaming(mut self) -> Plan {
        self.held = 0;
        self
    }

    /// One cluster a row.
    pub fn grid(&self, op: &'static str, rows: usize) -> Result<Grid> {
        let blocks = (rows as u64).saturating_mul(self.cluster as u64);
        if blocks > i32::MAX as u64 {
            let reason = format!("{rows} rows of {} blocks; a grid has 2^31 - 1", self.cluster);
            return Err(Error::Unsupported { op, reason });
        }
        let shared = (self.held * 16 * self.together) as u32;
        let grid = Grid::linear(blocks as u32, THREADS as u32);
        Ok(Grid { cluster: self.cluster as u32, shared, ..grid })
    }

    /// The kernel's words for the rows.
    pub fn row_set(&self, vocab: i64, columns: usize, t: &LogitTransform) -> RowSet {
        let (bend, a, k) = if t.softcap.is_finite() {
            (2, t.scale / t.softcap, t.softcap / t.temperature)
        } else if t.scale < 0.0 {
            (1, -1.0, -t.scale / t.temperature)
        } else {
            (0, 1.0, t.scale / t.temperature)
        };
        let c = (k * std::f64::consts::LOG2_E) as f32;
        RowSet {
            vocab,
            columns: columns as i64,
            k,
            c: c.clamp(f32::MIN_POSITIVE, f32::MAX),
            a: a as f32,
            bend,
            cluster: self.cluster as i32,
            shift: self.cluster.trailing_zeros() as i32,
            unused: 0,
            share: self.share,
            held: self.held,
        }
    }
}

/// Row kernels hold logits of at most 32 bits.
pub(crate) fn check_dtype<T: Float>(op: &'static str) -> Result<()> {
    if T::DTYPE == DType::F64 {
        let reason = "rows of f64 logits run on the CPU only".to_string();
        return Err(Error::Unsupported { op, reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_of_known_vocabularies() {
        let plan = |vocab, size, set| Plan::new(vocab, size, set, 232_448, 1);
        for (vocab, size, cluster) in [
            (1, 2, 1),
            (32_000, 2, 1),
            (32_000, 4, 2),
            (128_256, 2, 4),
            (151_937, 2, 4),
            (151_937, 4, 8),
            (262_144, 4, 8),
        ] {
            let hopper = plan(vocab, size, KernelSet::Sm90a);
            assert_eq!(hopper.cluster, cluster, "{vocab}");
            let words = (vocab as u64 * size as u64).div_ceil(16 * cluster as u64) as i64;
            assert!(hopper.held >= words && hopper.held <= words + 130 * cluster, "{hopper:?}");
            assert_eq!(plan(vocab, size, KernelSet::Sm80).cluster, 1);
        }
        assert_eq!(plan(151_937, 2, KernelSet::Sm80).held, 0, "304 KB do not fit into one block");
        let huge = plan(i64::MAX, 4, KernelSet::Sm90a);
        assert_eq!((huge.cluster, huge.held), (8, 0));
        assert!(plan(32_000, 2, KernelSet::Sm90a).grid("test", 1 << 40).is_err());
    }

    #[test]
    fn the_transform_in_the_kernels_terms() {
        let plan = Plan::new(100, 4, KernelSet::Sm80, 0, 1);
        let t = LogitTransform { temperature: 1e-60, scale: 1.0, softcap: f64::INFINITY };
        assert_eq!(plan.row_set(100, 100, &t).c, f32::MAX);
        let t = LogitTransform { temperature: 1e60, ..t };
        assert_eq!(plan.row_set(100, 100, &t).c, f32::MIN_POSITIVE);
        let t = LogitTransform { temperature: 0.5, scale: -3.0, softcap: f64::INFINITY };
        let set = plan.row_set(100, 100, &t);
        assert_eq!((set.bend, set.a, set.k), (1, -1.0, 6.0));
        let t = LogitTransform { temperature: 2.0, scale: 3.0, softcap: 30.0 };
        let set = plan.row_set(100, 100, &t);
        assert_eq!((set.bend, set.a, set.k), (2, 0.1, 15.0));
    }
}
