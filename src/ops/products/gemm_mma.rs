//! Products of bf16 and f16 on tensor cores: which kernel of `kernels/products/mma_gemm.cuh` a shape takes. All
//! of them add in the same order, so the choice changes speed, never bits.

use bytemuck::Zeroable;

use crate::device::params::mma_gemm::{
    self, CHUNKS, GemmParams, PITCH, SKINNY_ROWS, SKINNY_THREADS, STEPS, TILE_COLUMNS,
};
use crate::device::params::mma_gemm_fan::{FAN, FAN_SHARED, FanParams};
use crate::device::params::nf4_matmul_grouped::GROUPED_ROWS;
use crate::device::params::product::Strided;
use crate::device::{Gpu, Grid, KernelSet, Kernels, LaunchArgs, Ptr, shipped};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::ops::products::gemm_gpu::Direction;

/// More than the size of a 4-bit weight's description.
const GROUPED_WEIGHT: u32 = 256;

/// Tiles from which on a launch fills a large GPU by itself: half the multiprocessors of an H100.
const ENOUGH_TILES: u64 = 66;

/// Rows from which on a 4-bit weight is first written out in 16 bits and then multiplied as a dense one: to expand it
/// once costs less than to expand it again for every 128 rows. The bits are the same. At 4,096² an H200 needs 16 µs
/// for the copy; with 2,048 rows it then multiplies in 161 µs, where tiles that expand take 278. (The least number of
/// rows is predicted from such figures: 512 for weights from 2,048² on.)
const WRITTEN_OUT_ROWS: u64 = 512;

/// Most bytes of such a copy. It is scratch memory, and of one weight at a time.
const WRITTEN_OUT_BYTES: u64 = 512 << 20;

/// Whether a product of `rows` rows with a 4-bit weight `[n, k]` writes it out first: the one place that says so.
pub(super) fn writes_out(rows: u64, [n, k]: [u64; 2]) -> bool {
    rows >= WRITTEN_OUT_ROWS && n.saturating_mul(k).saturating_mul(2) <= WRITTEN_OUT_BYTES
}

impl<T> GemmParams<T, ()> {
    /// With its depth cut into chunks for `cluster` blocks per tile, and its weight.
    pub(super) fn with<W>(self, cluster: u32, right: W) -> GemmParams<T, W> {
        let (chunk, chunks) = chunks(self.depth as u64);
        GemmParams {
            x: self.x,
            x_stride: self.x_stride,
            rows: self.rows,
            columns: self.columns,
            depth: self.depth,
            lora: self.lora,
            parts: self.parts,
            bias: self.bias,
            y: self.y,
            addend: self.addend,
            y_stride: self.y_stride,
            addend_stride: self.addend_stride,
            factor: self.factor,
            factor_parts: self.factor_parts,
            factor_stride: self.factor_stride,
            only: self.only,
            scale: self.scale,
            chunk: chunk as i32,
            chunks: chunks as i32,
            cluster: cluster as i32,
            pad: 0,
            right,
        }
    }
}

/// A weight of a tensor-core product.
pub(super) trait GemmWeight: bytemuck::Pod {
    /// The PTX that its kernels are in; their names begin with that of the PTX.
    const KERNELS: &'static Kernels;
    /// The PTX that those for several products are in; named as it.
    const FAN_KERNELS: &'static Kernels;
    /// Whether the kernels for few rows can read it along a depth.
    fn suits_skinny(&self, depth: u64) -> bool;
    /// Shared memory that the kernels for few rows need beside the sums.
    const SKINNY_SHARED: u64;
}

impl<T: Float> GemmWeight for Strided<T> {
    const KERNELS: &'static Kernels = &shipped::MATMUL;
    const FAN_KERNELS: &'static Kernels = &shipped::MATMUL_FAN;
    const SKINNY_SHARED: u64 = 0;

    fn suits_skinny(&self, depth: u64) -> bool {
        self.at.address().is_multiple_of(8)
            && self.lane_stride % 4 == 0
            && depth.is_multiple_of(STEPS)
    }
}

/// How a product is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TileLaunch {
    kernel: &'static str,
    grid: Grid,
}

/// What the choice of a kernel depends on.
#[derive(Clone, Copy)]
struct Shape {
    rows: u64,
    columns: u64,
    depth: u64,
    /// The skinny kernels can read weight and X.
    skinny: bool,
    skinny_shared: u64,
}

impl Shape {
    /// What a product of x and `right` depends on.
    fn new<T, W: GemmWeight>(
        product: &GemmParams<T, ()>,
        direction: Direction,
        right: &W,
    ) -> Shape {
        let pieces = product.x.address().is_multiple_of(8) && product.x_stride % 4 == 0;
        let depth = product.depth as u64;
        Shape {
            rows: product.rows as u64,
            columns: product.columns as u64,
            depth,
            skinny: direction == Direction::Forward && pieces && right.suits_skinny(depth),
            skinny_shared: W::SKINNY_SHARED,
        }
    }

    /// The kernels for few rows multiply it.
    fn is_skinny(&self) -> bool {
        self.skinny && self.rows <= 16
    }
}

/// Steps of a chunk, and how many chunks a depth has.
pub(super) fn chunks(depth: u64) -> (u64, u64) {
    let steps = depth.div_ceil(CHUNKS * STEPS) * STEPS;
    (steps, depth.div_ceil(steps.max(1)))
}

/// How a product of a shape is launched, or `None` if a grid cannot have as many blocks.
fn tile_launch(set: KernelSet, shape: Shape) -> Option<TileLaunch> {
    if shape.is_skinny() {
        return skinny(set, shape);
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
    Some(TileLaunch { kernel, grid: Grid { blocks, ..tile(set, rows, cluster) } })
}

/// A block of `rows` x 128 outputs, `cluster` of which share a tile.
fn tile(set: KernelSet, rows: u64, cluster: u64) -> Grid {
    let stage = (rows + TILE_COLUMNS) * STEPS * 2;
    let (threads, stages, rings) = match set {
        KernelSet::Sm80 => {
            (mma_gemm::PRODUCERS_SM80, mma_gemm::STAGES_SM80, mma_gemm::PREFETCH_DISTANCE_SM80 + 1)
        }
        KernelSet::Sm90a => (
            rows * 2 + mma_gemm::PRODUCERS_SM90A,
            mma_gemm::STAGES_SM90A,
            mma_gemm::PREFETCH_DISTANCE_SM90A + 1,
        ),
    };
    let staged = stages * stage + rings * mma_gemm::SLOT_BYTES + (256 + 16) * 4 + 16 * stages;
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
    let tiles = (rows as u64).div_ceil(GROUPED_ROWS) + experts as u64;
    let grid_n = (columns as u64).div_ceil(TILE_COLUMNS);
    if tiles > i32::MAX as u64 || grid_n > 65_535 {
        let got = format!("{rows} x {columns}");
        return Err(Error::invalid(op, "y", got, "at most 2^36 x 8388480 outputs on a GPU"));
    }
    let grid = tile(gpu.kernel_set(), GROUPED_ROWS, 1);
    let shared = grid.shared + size_of::<GemmParams<f32, ()>>() as u32 + GROUPED_WEIGHT;
    Ok(Grid { blocks: [tiles as u32, grid_n as u32, 1], shared, ..grid })
}

/// Blocks of a cluster of the kernels for few rows; each has 32 columns.
fn skinny_cluster(set: KernelSet) -> u64 {
    if set == KernelSet::Sm90a { CHUNKS } else { 1 }
}

/// Up to 16 rows of X: each warp takes 32 rows of W and one chunk of the depth.
fn skinny(set: KernelSet, shape: Shape) -> Option<TileLaunch> {
    let cluster = skinny_cluster(set);
    let (kernel, rows) = if shape.rows <= 8 { ("few8", 8) } else { ("few16", 16) };
    let blocks = shape.columns.div_ceil(SKINNY_ROWS * cluster) * cluster;
    let sums = (CHUNKS / cluster + 1) * rows * (SKINNY_ROWS * cluster + 4) * 4;
    let grid = Grid {
        cluster: cluster as u32,
        shared: sums.max(shape.skinny_shared) as u32,
        ..Grid::linear(u32::try_from(blocks).ok()?, SKINNY_THREADS as u32)
    };
    (blocks <= i32::MAX as u64).then_some(TileLaunch { kernel, grid })
}

/// Starts a product of elements of 16 bits.
pub(super) fn launch<T: Float, W: GemmWeight>(
    gpu: &Gpu,
    op: &'static str,
    dtype: &str,
    direction: Direction,
    product: GemmParams<T, ()>,
    right: W,
) -> Result<()> {
    let shape = Shape::new(&product, direction, &right);
    let Some(TileLaunch { kernel, grid }) = tile_launch(gpu.kernel_set(), shape) else {
        return Err(too_large(op, &shape));
    };
    let suffix = if direction == Direction::Backward { "dx_" } else { "" };
    let kernel = format!("{}_{suffix}{kernel}_{dtype}", W::KERNELS.name());
    gpu.launch(W::KERNELS, &kernel, grid, &product.with(grid.cluster, right))
}

fn too_large(op: &'static str, shape: &Shape) -> Error {
    let got = format!("{} x {}", shape.rows, shape.columns);
    Error::invalid(op, "y", got, "at most 2^34 x 8388480 outputs on a GPU")
}

/// Where silu(y\[0\]) ⊙ y\[1\] of a launch goes.
#[derive(Clone, Copy)]
pub(super) struct FanOutput<T> {
    pub y: Ptr<T>,
    pub stride: i64,
}

/// Starts products of one X, up to [`FAN`] a launch, with what is gated behind two. Returns whether it is: not where
/// a launch would have more pieces than there are tickets.
pub(super) fn launch_fan<T: Float, W: GemmWeight>(
    launch: &mut LaunchArgs<'_>,
    gpu: &Gpu,
    op: &'static str,
    products: &[(GemmParams<T, ()>, W)],
    gated: Option<FanOutput<T>>,
) -> Result<bool> {
    let mut gates = false;
    for group in products.chunks(FAN as usize) {
        let (kernel, grid, mut params) = fan_group(gpu, op, group)?;
        if let Some(FanOutput { y, stride }) = gated.filter(|_| products.len() == 2) {
            // A piece is what one block finishes: that of a column of blocks, or of a tile.
            let tiles = if group_is_skinny(group) { 1 } else { params.first[1] as usize };
            let scratch = launch.scratch(0)?;
            if let Some(tickets) = scratch.tickets(grid.blocks[0] as usize * tiles) {
                (params.gated, params.gated_stride, params.tickets) = (y, stride, tickets);
                gates = true;
            }
        }
        gpu.launch(W::FAN_KERNELS, &kernel, grid, &params)?;
    }
    Ok(gates)
}

fn group_is_skinny<T: Float, W: GemmWeight>(group: &[(GemmParams<T, ()>, W)]) -> bool {
    group.iter().all(|(product, right)| Shape::new(product, Direction::Forward, right).is_skinny())
}

/// Kernel, grid and parameters of up to [`FAN`] products.
fn fan_group<T: Float, W: GemmWeight>(
    gpu: &Gpu,
    op: &'static str,
    group: &[(GemmParams<T, ()>, W)],
) -> Result<(String, Grid, FanParams<T, W>)> {
    let (set, skinny) = (gpu.kernel_set(), group_is_skinny(group));
    let columns = if skinny { SKINNY_ROWS * skinny_cluster(set) } else { TILE_COLUMNS };
    let mut first = [i64::MAX; FAN as usize];
    let mut tiles = 0;
    for (first, (product, _)) in first.iter_mut().zip(group) {
        *first = tiles;
        tiles += (product.columns as u64).div_ceil(columns) as i64;
    }
    let (product, right) = &group[0];
    let shape = Shape {
        columns: tiles as u64 * columns,
        skinny,
        ..Shape::new(product, Direction::Forward, right)
    };
    let Some(TileLaunch { kernel, grid }) = tile_launch(set, shape) else {
        return Err(too_large(op, &shape));
    };
    let grid = Grid { shared: grid.shared + FAN_SHARED as u32, ..grid };
    let mut params = FanParams { first, ..FanParams::zeroed() };
    for (map, (product, right)) in params.map.iter_mut().zip(group) {
        *map = product.with(grid.cluster, *right);
    }
    Ok((format!("{}_{kernel}_{}", W::FAN_KERNELS.name(), T::DTYPE.name()), grid, params))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape([rows, columns, depth]: [u64; 3]) -> Shape {
        Shape { rows, columns, depth, skinny: true, skinny_shared: 0 }
    }

    #[test]
    fn launches_of_the_regimes() {
        let got = |set, at| {
            let p = tile_launch(set, shape(at)).unwrap();
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
        assert!(super::tile_launch(Sm80, shape([1 << 20, 1 << 23, 64])).is_none());
    }

    #[test]
    fn weights_are_written_out_for_many_rows() {
        let got = [511, 512, 8192].map(|rows| writes_out(rows, [18_944, 3584]));
        assert_eq!(got, [false, true, true]);
        assert!(!writes_out(8192, [152_064, 3584]), "1.1 GB");
        assert!(!writes_out(8192, [u64::MAX, 3584]));
    }

    #[test]
    fn blocks_fit_the_machines() {
        for (set, most) in [(KernelSet::Sm80, 100 << 10), (KernelSet::Sm90a, 227 << 10)] {
            for rows in [1, 16, 17, 64, 65, 4096] {
                for columns in [16, 4096] {
                    let launch = tile_launch(set, shape([rows, columns, 4096])).unwrap();
                    assert!(launch.grid.shared <= most, "{set:?} {rows}: {launch:?}");
                }
            }
        }
    }
}
