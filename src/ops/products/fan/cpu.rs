//! Several products of one input on the CPU: one after another.

use crate::dtype::Float;
use crate::ops::decoder::swiglu::{Swiglu, cpu::swiglu};
use crate::ops::products::fan::ProductFan;
use crate::ops::products::gemm_cpu::{CpuWeight, product_forward};

pub(crate) fn fan<T: Float, W: CpuWeight>(args: ProductFan<'_, T, W>) {
    let ProductFan { x, mut maps, gated } = args;
    maps.iter_mut().for_each(|map| product_forward(map.alone(x)));
    if let (Some(y), [gate, up]) = (gated, &maps[..]) {
        swiglu(Swiglu { gate: gate.y.as_view(), up: up.y.as_view(), y });
    }
}
