//! Rotary embedding on the GPU.

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::device::params::rope::{RopeParams, RopeStoreParams, RopeTables, THREADS};
use crate::device::{Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::{Rope, RopeStore};
use crate::view::View;

/// Tables and positions as the kernels read them.
fn tables(
    launch: &mut LaunchArgs<'_>,
    positions: &View<'_, i32>,
    [cos, sin]: [&View<'_, f32>; 2],
    sign: f64,
) -> Result<RopeTables> {
    Ok(RopeTables {
        position: launch.column(positions)?,
        cos: launch.input(cos)?,
        sin: launch.input(sin)?,
        cos_stride: cos.stride(0),
        sin_stride: sin.stride(0),
        positions: cos.extent(0) as i64,
        half: cos.extent(1) as i64,
        sign,
    })
}

pub(crate) fn rope<T: Float>(gpu: &Arc<Gpu>, a: Rope<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::ROPE);
    let tokens = a.x.extent(0);
    let sign = if a.inverse { -1.0 } else { 1.0 };
    let params = RopeParams {
        token_stride: a.x.stride(0),
        head_stride: a.x.stride(1),
        heads: a.x.extent(1) as i64,
        x: launch.update(a.x)?,
        tables: tables(&mut launch, &a.positions, [&a.cos, &a.sin], sign)?,
    };
    let kernel = format!("rope_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(tokens as u32, THREADS as u32), &params)?;
    launch.finish()
}

pub(crate) fn rope_store<T: Float>(gpu: &Arc<Gpu>, a: RopeStore<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::ROPE);
    let tokens = a.q.extent(0);
    let mut params = RopeStoreParams {
        q_token: a.q.stride(0),
        q_head: a.q.stride(1),
        q_heads: a.q.extent(1) as i64,
        k_token: a.k.stride(0),
        k_head: a.k.stride(1),
        k_heads: a.k.extent(1) as i64,
        q: launch.update(a.q)?,
        k: launch.update(a.k)?,
        tables: tables(&mut launch, &a.positions, [&a.cos, &a.sin], 1.0)?,
        ..RopeStoreParams::zeroed()
    };
    if let Some(cache) = a.cache {
        params.v = launch.input(&cache.v)?;
        params.row = launch.column(&cache.rows)?;
        (params.v_stride, params.rows) = (cache.v.stride(0), cache.keys.extent(0) as i64);
        (params.keys_stride, params.values_stride) = (cache.keys.stride(0), cache.values.stride(0));
        // Rows that are not named keep their values.
        (params.keys, params.values) = (launch.update(cache.keys)?, launch.update(cache.values)?);
    }
    let kernel = format!("rope_store_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(tokens as u32, THREADS as u32), &params)?;
    launch.finish()
}
