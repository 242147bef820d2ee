//! Several products of one input on tensor cores: the first factors of all adapters in one launch, the products in
//! another.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::mma_gemm::GemmParams;
use crate::device::params::product::Strided;
use crate::device::{Column, Gpu, LaunchArgs, Ptr, Scratch, Void};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::decoder::swiglu::gpu::swiglu;
use crate::ops::products::fan::{FanMap, ProductFan};
use crate::ops::products::gemm_gpu::pass::{self, GpuWeight};
use crate::ops::products::gemm_gpu::{Direction, LowRank, factor_product, factors, is_half};
use crate::ops::products::gemm_mma::{self, FanOutput, GemmWeight};
use crate::ops::{Lora, Swiglu};
use crate::view::{View, ViewMut};

/// All products of one input, and what is gated.
pub(in crate::ops::products) fn fan<T: Float, W: GpuWeight<T> + Copy>(
    gpu: &Arc<Gpu>,
    op: &'static str,
    a: ProductFan<'_, T, W>,
) -> Result<()> {
    let ProductFan { x, mut maps, mut gated } = a;
    if x.extent(0) == 0 {
        return Ok(());
    }
    let gates = if is_half::<T>() && maps.iter().all(|map| map.w.suits_tensor_cores()) {
        together(gpu, op, x, &mut maps, gated.as_mut())?
    } else {
        maps.iter_mut().try_for_each(|map| pass::forward(gpu, op, map.alone(x)))?;
        false
    };
    match (gated, &maps[..]) {
        (Some(y), [gate, up]) if !gates => {
            swiglu(gpu, Swiglu { gate: gate.y.as_view(), up: up.y.as_view(), y })
        }
        (Some(_) | None, _) => Ok(()),
    }
}

/// The products in as few launches as can be. Returns whether they gated, too.
fn together<T: Float, W: GpuWeight<T> + Copy>(
    gpu: &Arc<Gpu>,
    op: &'static str,
    x: View<'_, T>,
    maps: &mut [FanMap<'_, T, W>],
    gated: Option<&mut ViewMut<'_, T>>,
) -> Result<bool> {
    let mut launch = LaunchArgs::new(gpu, W::Params::KERNELS);
    let left = Strided::rows(&mut launch, &x)?;
    let (rows, depth) = (x.extent(0), x.extent(1));
    let weights: Vec<W> = maps.iter().map(|map| map.w).collect();
    let (mut products, mut factors, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for map in maps {
        let mut product = GemmParams {
            x: left.at,
            x_stride: left.lane_stride,
            rows: rows as i64,
            columns: map.y.extent(1) as i64,
            depth: depth as i64,
            bias: launch.opt_column(&map.bias)?,
            y_stride: map.y.stride(0),
            ..GemmParams::zeroed()
        };
        if let Some(lora) = map.lora {
            let s = map.s.as_mut().map(ViewMut::reborrow);
            let (first, scratch) = first_factor(&mut launch, left, &mut product, lora, s)?;
            factors.push(first);
            kept.push(scratch);
        }
        product.y = launch.output(map.y.reborrow())?;
        products.push(product);
    }
    gemm_mma::launch_fan(&mut launch, gpu, op, &factors, None)?;
    if weights.iter().any(|w| w.is_written_out(rows as u64)) {
        for (product, w) in products.into_iter().zip(&weights) {
            pass::multiply(&mut launch, gpu, op, w, Direction::Forward, product)?;
        }
        launch.finish()?;
        return Ok(false);
    }
    let rights: Vec<_> =
        weights.iter().map(|w| w.params(&mut launch, Direction::Forward)).collect::<Result<_>>()?;
    let gated = match gated {
        Some(y) => Some(FanOutput { stride: y.stride(0), y: launch.output(y.reborrow())? }),
        None => None,
    };
    let products: Vec<_> = products.into_iter().zip(rights).collect();
    let gates = gemm_mma::launch_fan(&mut launch, gpu, op, &products, gated)?;
    launch.finish()?;
    Ok(gates)
}

/// A product and what it multiplies with.
type Factored<T> = (GemmParams<T, ()>, Strided<T>);

/// S of a map, which `product` then multiplies with the adapter's second factor; and where it lies.
fn first_factor<'a, T: Float>(
    launch: &mut LaunchArgs<'a>,
    left: Strided<T>,
    product: &mut GemmParams<T, ()>,
    lora: Lora<'_, T>,
    s: Option<ViewMut<'a, f32>>,
) -> Result<(Factored<T>, Scratch<'a>)> {
    let (rows, rank) = (product.rows as usize, lora.a.extent(0));
    let low_bytes = (rows * rank * size_of::<f32>()).next_multiple_of(16);
    let scratch = launch.scratch(low_bytes + LowRank::<T>::parts_bytes(rows, rank, 1))?;
    let parts: Ptr<T> = scratch.ptr::<Void>().byte_add(low_bytes).cast();
    let (down, up) = factors(launch, Direction::Forward, &[lora])?;
    product.parts = parts.as_const();
    (product.lora.count, product.lora.rank) = (1, rank as i64);
    product.lora.list = launch.table(&up)?;
    let (low_stride, low) = match s {
        Some(s) => (s.stride(0), launch.output(s)?.cast()),
        None => (rank as i64, scratch.ptr()),
    };
    let low = LowRank {
        direction: Direction::Forward,
        left,
        rows: product.rows,
        depth: product.depth,
        rank: rank as i64,
        factors: &down,
        index: Column::NONE,
        low,
        low_stride,
        s: Ptr::NULL,
        s_stride: 0,
        parts,
    };
    Ok((factor_product(&low, 0), scratch))
}
