//! Products of bf16 and f16 on tensor cores: which kernel of `kernels/products/mma_gemm.cuh` a shape takes. All
//! of them add in the same order, so the choice changes speed, never bits.

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, KernelSet, Kernels, shipped};
use crate::error::{Error, Result};
use crate::ops::products::gemm_gpu::{Adapters, Dense, Way};

/// Steps of a block, and most chunks of a depth.
pub(super) const STEPS: u64 = 64;
const CHUNKS: u64 = 8;

/// Rows of W of a warp in the kernels for few rows, and threads of their blocks.
const FEW_ROWS: u64 = 32;
const FEW_THREADS: u32 = 256;

/// Columns of a tile, and words of a row of its sums.
const TILE_COLUMNS: u64 = 128;
const PITCH: u64 = TILE_COLUMNS + 8;

/// Rows of a tile of a grouped product, and more than the size of a 4-bit weight's description.
const GROUPED_ROWS: usize = 64;
const GROUPED_WEIGHT: u32 = 256;

/// Tiles from which on a launch fills a large GPU by itself: half the multiprocessors of an H100.
const ENOUGH_TILES: u64 = 66;

/// `TensorParams` of `kernels/products/mma_gemm.cuh` up to the weight.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct TensorProduct {
    pub x: u64,
    pub x_stride: i64,
    pub rows: i64,
    pub columns: i64,
    pub depth: i64,
    pub lora: Adapters,
    pub parts: u64,
    pub bias: Column,
    pub y: u64,
    pub addend: u64,
    pub y_stride: i64,
    pub addend_stride: i64,
    pub factor: u64,
    pub factor_parts: u64,
    pub factor_stride: i64,
    pub only: i64,
    pub scale: f64,
    pub chunk: i32,
    pub chunks: i32,
    pub cluster: i32,
    pub pad: i32,
}

impl TensorProduct {
    /// With its depth cut into chunks, for `cluster` blocks a tile.
    pub fn cut(self, cluster: u32) -> TensorProduct {
        let (chunk, chunks) = chunks(self.depth as u64);
        TensorProduct {
            chunk: chunk as i32,
            chunks: chunks as i32,
            cluster: cluster as i32,
            ..self
        }
    }
}

/// `TensorParams<T, W>`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Params<W> {
    pub product: TensorProduct,
    pub right: W,
}

// SAFETY: both parts may be all zeros.
unsafe impl<W: Zeroable> Zeroable for Params<W> {}
// SAFETY: both parts are plain data in C's order, of sizes that are multiples of 8 and no larger
// alignment, so there is no padding.
unsafe impl<W: Pod> Pod for Params<W> {}

/// A weight of a tensor-core product.
pub(super) trait TensorWeight: Pod {
    /// The PTX that its kernels are in; their names begin with that of the PTX.
    const KERNELS: &'static Kernels;
    /// Whether the kernels for few rows can read it along a depth.
    fn suits_few_rows(&self, depth: u64) -> bool;
    /// Shared memory that the kernels for few rows need beside the sums.
    const FEW_SHARED: u64;
}

impl TensorWeight for Dense {
    const KERNELS: &'static Kernels = &shipped::MATMUL;
    const FEW_SHARED: u64 = 0;

    fn suits_few_rows(&self, depth: u64) -> bool {
        self.at.is_multiple_of(8) && self.lane % 4 == 0 && depth.is_multiple_of(STEPS)
    }
}

/// How a product is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    kernel: &'static str,
    grid: Grid,
}

/// A shape as far as the plan looks at it.
#[derive(Clone, Copy)]
struct Shape {
    rows: u64,
    columns: u64,
    depth: u64,
    /// The weight is read along its rows, which it and X allow in pieces.
    few: bool,
    few_shared: u64,
}

/// Steps of a chunk, and how many chunks a depth has.
pub(super) fn chunks(depth: u64) -> (u64, u64) {
    let steps = depth.div_ceil(CHUNKS * STEPS) * STEPS;
    (steps, depth.div_ceil(steps.max(1)))
}

/// The plan of a shape, or `None` if a grid cannot have as many blocks.
fn plan(set: KernelSet, shape: Shape) -> Option<Plan> {
    if shape.few && shape.rows <= 16 {
        return few(set, shape);
    }
    let splits = set == KernelSet::Sm90a && chunks(shape.depth).1 > CHUNKS / 2;
    let (kernel, rows) = if shape.rows <= 64 { ("tile64", 64) } else { ("tile128", 128) };
    let tiles = [shape.rows.div_ceil(rows), shape.columns.div_ceil(TILE_COLUMNS)];
    let cluster = if splits && tiles[0] * tiles[1] < ENOUGH_TILES { CHUNKS } else { 1 };
    let blocks = [tiles[0] * cluster, tiles[1]];
    if blocks[0] > i32::MAX as u64 || blocks[1] > 65_535 {
        return None;
    }
    let blocks = [blocks[0] as u32, blocks[1] as u32, 1];
    Some(Plan { kernel, grid: Grid { blocks, ..tile(set, rows, cluster) } })
}

/// A block of `rows` x 128 outputs, `cluster` of which share a tile.
fn tile(set: KernelSet, rows: u64, cluster: u64) -> Grid {
    let stage = (rows + TILE_COLUMNS) * STEPS * 2;
    let (threads, stages, rings) = match set {
        KernelSet::Sm80 => (256, 2, 1),
        KernelSet::Sm90a => (rows * 2 + 128, 6, 4),
    };
    let staged = stages * stage + rings * 4096 + (256 + 16) * 4 + 16 * stages;
    // The sums take the place of the stages: in a cluster, those of the low-rank chunk as well.
    let sums = rows * PITCH * 4 * if cluster > 1 { 2 } else { 1 };
    let shared = staged.max(sums) as u32;
    Grid { cluster: cluster as u32, shared, ..Grid::linear(1, threads as u32) }
}

/// The grid of a grouped product: every expert may have one tile of rows that is not full. Its blocks
/// hold the parameters of their expert.
pub(super) fn grouped(
    gpu: &Gpu,
    op: &'static str,
    [rows, columns]: [usize; 2],
    experts: usize,
) -> Result<Grid> {
    let tiles = rows.div_ceil(GROUPED_ROWS) as u64 + experts as u64;
    let across = (columns as u64).div_ceil(TILE_COLUMNS);
    if tiles > i32::MAX as u64 || across > 65_535 {
        let got = format!("{rows} x {columns}");
        return Err(Error::invalid(op, "y", got, "at most 2^36 x 8388480 outputs on a GPU"));
    }
    let grid = tile(gpu.kernel_set(), GROUPED_ROWS as u64, 1);
    let shared = grid.shared + size_of::<TensorProduct>() as u32 + GROUPED_WEIGHT;
    Ok(Grid { blocks: [tiles as u32, across as u32, 1], shared, ..grid })
}

/// Up to 16 rows: a warp of W's rows and a chunk each.
fn few(set: KernelSet, shape: Shape) -> Option<Plan> {
    let cluster = if set == KernelSet::Sm90a { CHUNKS } else { 1 };
    let (kernel, rows) = if shape.rows <= 8 { ("few8", 8) } else { ("few16", 16) };
    let blocks = shape.columns.div_ceil(FEW_ROWS * cluster) * cluster;
    let sums = (CHUNKS / cluster + 1) * rows * (FEW_ROWS * cluster + 4) * 4;
    let grid = Grid {
        cluster: cluster as u32,
        shared: sums.max(shape.few_shared) as u32,
        ..Grid::linear(u32::try_from(blocks).ok()?, FEW_THREADS)
    };
    (blocks <= i32::MAX as u64).then_some(Plan { kernel, grid })
}

/// Starts a product of elements of 16 bits.
pub(super) fn launch<W: TensorWeight>(
    gpu: &Gpu,
    op: &'static str,
    dtype: &str,
    way: Way,
    product: TensorProduct,
    right: W,
) -> Result<()> {
    let TensorProduct { x, x_stride, rows, columns, depth, .. } = product;
    let pieces = x.is_multiple_of(8) && x_stride % 4 == 0;
    let shape = Shape {
        rows: rows as u64,
        columns: columns as u64,
        depth: depth as u64,
        few: way == Way::Forward && pieces && right.suits_few_rows(depth as u64),
        few_shared: W::FEW_SHARED,
    };
    let Some(Plan { kernel, grid }) = plan(gpu.kernel_set(), shape) else {
        let got = format!("{rows} x {columns}");
        return Err(Error::invalid(op, "y", got, "at most 2^34 x 8388480 outputs on a GPU"));
    };
    let product = product.cut(grid.cluster);
    let across = if way == Way::Backward { "dx_" } else { "" };
    let kernel = format!("{}_{across}{kernel}_{dtype}", W::KERNELS.name());
    gpu.launch(W::KERNELS, &kernel, grid, &Params { product, right })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape([rows, columns, depth]: [u64; 3]) -> Shape {
        Shape { rows, columns, depth, few: true, few_shared: 0 }
    }

    #[test]
    fn plans_of_the_regimes() {
        let plan = |set, at| plan(set, shape(at)).unwrap();
        let got = |set, at| {
            let p = plan(set, at);
            (p.kernel, p.grid.blocks[0], p.grid.blocks[1], p.grid.cluster)
        };
        use KernelSet::{Sm80, Sm90a};
        assert_eq!(got(Sm90a, [1, 4096, 4096]), ("few8", 128, 1, 8));
        assert_eq!(got(Sm80, [1, 4096, 4096]), ("few8", 128, 1, 1));
        assert_eq!(got(Sm90a, [16, 14336, 4096]), ("few16", 448, 1, 8));
        assert_eq!(got(Sm90a, [64, 4096, 4096]), ("tile64", 8, 32, 8));
        assert_eq!(got(Sm90a, [64, 14336, 4096]), ("tile64", 1, 112, 1));
        assert_eq!(got(Sm90a, [2048, 4096, 4096]), ("tile128", 16, 32, 1));
        assert_eq!(got(Sm80, [65, 100, 4096]), ("tile128", 1, 1, 1));
        assert_eq!(got(Sm90a, [65, 100, 192]), ("tile128", 1, 1, 1));
        assert!(super::plan(Sm80, shape([1 << 20, 1 << 23, 64])).is_none());
    }

    #[test]
    fn blocks_fit_the_machines() {
        for (set, most) in [(KernelSet::Sm80, 100 << 10), (KernelSet::Sm90a, 227 << 10)] {
            for rows in [1, 16, 17, 64, 65, 4096] {
                for columns in [16, 4096] {
                    let plan = plan(set, shape([rows, columns, 4096])).unwrap();
                    assert!(plan.grid.shared <= most, "{set:?} {rows}: {plan:?}");
                }
            }
        }
    }
}
