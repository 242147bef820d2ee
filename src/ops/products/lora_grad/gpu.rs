//! Gradients of low-rank adapters on the GPU.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::lora_grad::{
    ADDERS, CHUNK, COLUMNS, LANES, LoraAddParams, LoraGradParams, LoraPickParams, Operands,
    PICKERS, Picked, THREADS, Target,
};
use crate::device::params::product::Strided;
use crate::device::{Column, Const, Gpu, Grid, LaunchArgs, Ptr, Scratch, Void, shipped};
use crate::dtype::{DType, Element, Float};
use crate::error::{Error, Result};
use crate::ops::LoraGrad;
use crate::ops::products::gemm_gpu::{Direction, LowRank, factor, low_rank};
use crate::ops::products::lora_grad::cpu;
use crate::view::{View, ViewMut};

/// Chunks of a launch: bounds the memory of their sums to that of a few activations.
const WINDOW: usize = 32;
/// Multiprocessors of an H200. Blocks of 16 lanes on less than half of them become twice as many of 8
/// lanes, which take a fifth more instructions. No bit depends on it.
const MULTIPROCESSORS: usize = 132;

// The CPU has the same chains.
const _: () = assert!(CHUNK == cpu::CHUNK as u64);

pub(crate) fn lora_grad<T: Float>(gpu: &Arc<Gpu>, a: LoraGrad<'_, T>) -> Result<()> {
    let LoraGrad { x, dy, s, lora, adapter, index, da, db } = a;
    let (m, k, n, rank) = (x.extent(0), x.extent(1), dy.extent(1), s.extent(1));
    if m == 0 {
        return Ok(());
    }
    let mut launch = LaunchArgs::new(gpu, &shipped::LORA_GRAD);
    let pass = Pass::new::<T>([m, k, n], rank)?;
    let ds = launch.scratch(m * rank * pass.size)?;
    let gradient = Strided::rows(&mut launch, &dy)?;
    let low = LowRank {
        direction: Direction::Backward,
        left: gradient,
        rows: m as i64,
        depth: n as i64,
        rank: rank as i64,
        factors: &[factor(Strided::columns(&mut launch, &lora.b)?, lora.scale)],
        index: Column::NONE,
        low: ds.ptr(),
        low_stride: rank as i64,
        s: Ptr::NULL,
        s_stride: 0,
        parts: Ptr::NULL,
    };
    low_rank::<T>(&mut launch, gpu, "lora_grad", &low)?;
    let (picked, _list) = pick(&mut launch, &adapter, index, m)?;
    let sums = launch.scratch((1 + pass.window()) * pass.slot())?;
    let first = Operands {
        left: ds.ptr(),
        left_lane: 1,
        left_row: rank as i64,
        ..pass.right(launch.input(&x)?, &x, 0)
    };
    let second = Operands {
        left: launch.input(&s)?.untyped().cast(),
        left_lane: 1,
        left_row: s.stride(0),
        ..pass.right(launch.input(&dy)?, &dy, pass.second())
    };
    let [da, db] = [target(&mut launch, da, false)?, target(&mut launch, db, true)?];
    pass.run(&launch, [first, second], [da, db], picked, sums.ptr())?;
    launch.finish()
}

/// The rows that took the adapter, listed where not all did.
fn pick<'a>(
    launch: &mut LaunchArgs<'a>,
    adapter: &Option<View<'_, i32>>,
    index: i32,
    rows: usize,
) -> Result<(Picked, Option<Scratch<'a>>)> {
    let all = Picked { rows: rows as i64, ..Picked::zeroed() };
    let Some(adapter) = adapter else { return Ok((all, None)) };
    let room = launch.scratch(8 + 4 * rows)?;
    let (count, list) = (room.ptr::<i64>(), room.ptr::<i32>().byte_add(8));
    let picked = Picked { count: count.as_const(), list: list.as_const(), ..all };
    let params = LoraPickParams {
        adapter: launch.column(adapter)?,
        index: index as i64,
        rows: rows as i64,
        count,
        list,
    };
    launch.start("lora_grad_pick", Grid::linear(1, PICKERS as u32), &params)?;
    Ok((picked, Some(room)))
}

/// A gradient that is added to; `transposed` if its rows are columns of the product.
fn target<'a>(
    launch: &mut LaunchArgs<'a>,
    out: ViewMut<'a, f32>,
    transposed: bool,
) -> Result<Target> {
    let (rows, columns) = (out.extent(0) as i64, out.extent(1) as i64);
    let (row, column) = (out.stride(0), out.stride(1));
    let out = launch.update(out)?;
    let whole = Target { out, lane_stride: row, column_stride: column, columns, base: 0 };
    let across = Target { lane_stride: column, column_stride: row, columns: rows, ..whole };
    Ok(if transposed { across } else { whole })
}

/// Extents of both products, and how they are cut.
struct Pass {
    rows: usize,
    rank: usize,
    /// Columns of the products.
    columns: [usize; 2],
    /// Bytes of a sum.
    size: usize,
    /// Neighboring columns and lanes of a thread.
    width: usize,
    lanes: usize,
}

impl Pass {
    fn new<T: Float>([rows, k, n]: [usize; 3], rank: usize) -> Result<Pass> {
        let wide = T::DTYPE == DType::F64;
        let (size, width) = if wide { (8, 2) } else { (4, 4) };
        let tiles = k.div_ceil(THREADS as usize * width) + n.div_ceil(THREADS as usize * width);
        let few = tiles * rank.div_ceil(16) * rows.div_ceil(CHUNK as usize) <= MULTIPROCESSORS / 2;
        let lanes = if !wide && (rank <= 8 || few) { 8 } else { 16 };
        if rank.div_ceil(lanes) > 65_535 || rows > i32::MAX as usize {
            let got = format!("{rows} rows, rank {rank}");
            return Err(Error::invalid("lora_grad", "s", got, "2^31 rows, rank 524280 at most"));
        }
        Ok(Pass { rows, rank, columns: [k, n], size, width, lanes })
    }

    /// First column of the second product in a line of sums.
    fn second(&self) -> usize {
        self.columns[0].next_multiple_of(4)
    }

    /// Sums of a lane of both products, each from 16 bytes on.
    fn line(&self) -> usize {
        self.second() + self.columns[1].next_multiple_of(4)
    }

    /// Bytes of the sums of a chunk.
    fn slot(&self) -> usize {
        self.rank * self.line() * self.size
    }

    fn chunks(&self) -> usize {
        self.rows.div_ceil(CHUNK as usize)
    }

    /// Chunks of a launch.
    fn window(&self) -> usize {
        self.chunks().min(WINDOW)
    }

    fn right<T: Element>(
        &self,
        at: Ptr<Const<T>>,
        matrix: &View<'_, T>,
        base: usize,
    ) -> Operands<T, Void> {
        let bytes = (self.width * size_of::<T>()) as u64;
        let row = matrix.stride(0);
        let apart = (row as u64).wrapping_mul(size_of::<T>() as u64);
        Operands {
            right: at,
            right_row: row,
            columns: matrix.extent(1) as i64,
            base: base as i64,
            whole: (at.address().is_multiple_of(bytes) && apart.is_multiple_of(bytes)) as i64,
            ..Operands::zeroed()
        }
    }

    /// Blocks for both products in tiles of `columns` and `lanes`.
    fn grid<T>(
        &self,
        sides: &[Operands<T, Void>; 2],
        columns: usize,
        lanes: usize,
        deep: usize,
    ) -> [u32; 3] {
        let tiles: u64 = sides.iter().map(|s| (s.columns as u64).div_ceil(columns as u64)).sum();
        [tiles as u32, self.rank.div_ceil(lanes) as u32, deep as u32]
    }

    fn run<T: Float>(
        &self,
        launch: &LaunchArgs<'_>,
        sides: [Operands<T, Void>; 2],
        targets: [Target; 2],
        picked: Picked,
        sums: Ptr<Void>,
    ) -> Result<()> {
        let (carry, sums) = (sums, sums.byte_add(self.slot()));
        let dtype = T::DTYPE;
        let (name, none) = (dtype.name(), Operands::zeroed());
        // dS is f64 where S is f32: two launches.
        let launches = match (dtype, self.lanes) {
            (DType::F64, _) => vec![
                ("lora_grad_f64".to_string(), [sides[0], none]),
                ("lora_grad_kept_f64".to_string(), [none, sides[1]]),
            ],
            (_, 8) => vec![(format!("lora_grad_8_{name}"), sides)],
            _ => vec![(format!("lora_grad_{name}"), sides)],
        };
        let adder = if self.size == 8 { "lora_grad_add_f64" } else { "lora_grad_add_f32" };
        let (rank, line) = (self.rank as i64, self.line() as i64);
        for chunk in (0..self.chunks()).step_by(WINDOW) {
            let deep = WINDOW.min(self.chunks() - chunk);
            let chunk = chunk as i64;
            for (kernel, sides) in &launches {
                let [first, second] = *sides;
                let params = LoraGradParams { first, second, picked, rank, chunk, sums, line };
                let blocks = self.grid(sides, THREADS as usize * self.width, self.lanes, deep);
                let grid = Grid { blocks, ..Grid::linear(1, THREADS as u32) };
                launch.start(kernel, grid, &params)?;
            }
            let params = LoraAddParams {
                first: Target { base: sides[0].base, ..targets[0] },
                second: Target { base: sides[1].base, ..targets[1] },
                count: picked.count,
                rows: picked.rows,
                rank,
                chunk,
                chunks: deep as i64,
                sums: sums.as_const(),
                carry,
                line,
            };
            let blocks = self.grid(&sides, COLUMNS as usize, LANES as usize, 1);
            launch.start(adder, Grid { blocks, ..Grid::linear(1, ADDERS as u32) }, &params)?;
        }
        Ok(())
    }
}
