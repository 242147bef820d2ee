//! Rotary embedding on the GPU.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, Gpu, Grid, LaunchArgs, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::Rope;

/// `RopeParams` of `kernels/decoder/rope.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    x: u64,
    token_stride: i64,
    head_stride: i64,
    heads: i64,
    half: i64,
    positions: i64,
    position: Column,
    cos: u64,
    sin: u64,
    cos_stride: i64,
    sin_stride: i64,
    sign: f64,
}

pub(crate) fn rope<T: Float>(gpu: &Arc<Gpu>, a: Rope<'_, T>) -> Result<()> {
    let mut launch = LaunchArgs::new(gpu, &shipped::ROPE);
    let tokens = a.x.extent(0);
    let params = Params {
        token_stride: a.x.stride(0),
        head_stride: a.x.stride(1),
        heads: a.x.extent(1) as i64,
        half: a.x.extent(2) as i64 / 2,
        x: launch.update(a.x)?,
        positions: a.cos.extent(0) as i64,
        position: launch.column(&a.positions)?,
        cos: launch.input(&a.cos)?,
        sin: launch.input(&a.sin)?,
        cos_stride: a.cos.stride(0),
        sin_stride: a.sin.stride(0),
        sign: if a.inverse { -1.0 } else { 1.0 },
    };
    let kernel = format!("rope_{}", T::DTYPE.name());
    launch.start(&kernel, Grid::linear(tokens as u32, 128), &params)?;
    launch.finish()
}
