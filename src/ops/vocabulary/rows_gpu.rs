//! What the launches of all row kernels share (`kernels/vocabulary/rows.cuh`): the transform in the kernel's
//! terms, and how a row is spread over blocks and staged in shared memory.

use crate::device::params::rows::{RowSet, THREADS, TILE, Transform};
use crate::device::{Grid, KernelSet};
use crate::dtype::{DType, Float};
use crate::error::{Error, Result};
use crate::ops::vocabulary::logprob::LogitTransform;

/// Bytes of a row from which another block helps, on devices with clusters: two such slices fit
/// into the 227 KiB of a multiprocessor, so that one block loads while the other stores.
const SLICE_BYTES: i64 = 96 << 10;

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
    pub tiles_per_block: i64,
    /// 16-byte words of each row in a block's shared memory; 0 = rows are read twice.
    pub staged_words: i64,
    /// Rows that a block reads side by side.
    pub rows_per_block: i64,
}

impl Plan {
    /// The plan for kernels that read `rows_per_block` rows of `vocab` columns at once. The cluster, on
    /// which the order of sums depends, follows from the extent and the kernel set alone; whether
    /// the row is staged also from the device's shared memory.
    pub fn new(
        vocab: i64,
        size: usize,
        set: KernelSet,
        shared_limit: u32,
        rows_per_block: i64,
    ) -> Plan {
        let tiles = (vocab as u64).div_ceil(TILE * (16 / size as u64)) as i64;
        let bytes = tiles.saturating_mul((TILE * 16) as i64);
        let mut cluster = 1;
        while set == KernelSet::Sm90a
            && cluster < MAX_CLUSTER
            && bytes.saturating_mul(rows_per_block) > cluster * SLICE_BYTES
        {
            cluster *= 2;
        }
        // One word more: a row that is not aligned ends in the middle of one.
        let tiles_per_block = (tiles as u64).div_ceil(cluster as u64) as i64;
        let words = tiles_per_block.saturating_mul(TILE as i64).saturating_add(1);
        let fits = words.saturating_mul(16 * rows_per_block) <= shared_limit as i64 - STATIC_SHARED;
        Plan {
            cluster,
            tiles_per_block,
            staged_words: if fits { words } else { 0 },
            rows_per_block,
        }
    }

    /// This plan for kernels that read rows once and stage none.
    pub fn streaming(mut self) -> Plan {
        self.staged_words = 0;
        self
    }

    /// One cluster per row.
    pub fn grid(&self, op: &'static str, rows: usize) -> Result<Grid> {
        let blocks = (rows as u64).saturating_mul(self.cluster as u64);
        if blocks > i32::MAX as u64 {
            let reason = format!("{rows} rows of {} blocks; a grid has 2^31 - 1", self.cluster);
            return Err(Error::Unsupported { op, reason });
        }
        let shared = (self.staged_words * 16 * self.rows_per_block) as u32;
        let grid = Grid::linear(blocks as u32, THREADS as u32);
        Ok(Grid { cluster: self.cluster as u32, shared, ..grid })
    }

    /// The kernel's words for the rows.
    pub fn row_set(&self, vocab: i64, columns: usize, t: &LogitTransform) -> RowSet {
        let (transform, inner, scale) = if t.softcap.is_finite() {
            (Transform::Softcap, t.scale / t.softcap, t.softcap / t.temperature)
        } else if t.scale < 0.0 {
            (Transform::Negate, -1.0, -t.scale / t.temperature)
        } else {
            (Transform::Identity, 1.0, t.scale / t.temperature)
        };
        let log2_scale = (scale * std::f64::consts::LOG2_E) as f32;
        RowSet {
            vocab,
            columns: columns as i64,
            logit_scale: scale,
            log2_scale: log2_scale.clamp(f32::MIN_POSITIVE, f32::MAX),
            inner_scale: inner as f32,
            transform,
            cluster: self.cluster as i32,
            cluster_shift: self.cluster.trailing_zeros() as i32,
            unused: 0,
            tiles_per_block: self.tiles_per_block,
            staged_words: self.staged_words,
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
            assert!(
                hopper.staged_words >= words && hopper.staged_words <= words + 130 * cluster,
                "{hopper:?}"
            );
            assert_eq!(plan(vocab, size, KernelSet::Sm80).cluster, 1);
        }
        assert_eq!(
            plan(151_937, 2, KernelSet::Sm80).staged_words,
            0,
            "304 KB do not fit into one block"
        );
        let huge = plan(i64::MAX, 4, KernelSet::Sm90a);
        assert_eq!((huge.cluster, huge.staged_words), (8, 0));
        assert!(plan(32_000, 2, KernelSet::Sm90a).grid("test", 1 << 40).is_err());
    }

    #[test]
    fn the_transform_in_the_kernels_terms() {
        let plan = Plan::new(100, 4, KernelSet::Sm80, 0, 1);
        let t = LogitTransform { temperature: 1e-60, scale: 1.0, softcap: f64::INFINITY };
        assert_eq!(plan.row_set(100, 100, &t).log2_scale, f32::MAX);
        let t = LogitTransform { temperature: 1e60, ..t };
        assert_eq!(plan.row_set(100, 100, &t).log2_scale, f32::MIN_POSITIVE);
        let t = LogitTransform { temperature: 0.5, scale: -3.0, softcap: f64::INFINITY };
        let set = plan.row_set(100, 100, &t);
        assert_eq!(
            (set.transform, set.inner_scale, set.logit_scale),
            (Transform::Negate, -1.0, 6.0)
        );
        let t = LogitTransform { temperature: 2.0, scale: 3.0, softcap: 30.0 };
        let set = plan.row_set(100, 100, &t);
        assert_eq!(
            (set.transform, set.inner_scale, set.logit_scale),
            (Transform::Softcap, 0.1, 15.0)
        );
    }
}
