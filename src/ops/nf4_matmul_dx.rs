use crate::*; use crate::dtype::Float; use crate::quant::Nf4View; use super::matmul::*;
#[derive(Debug)] pub struct Nf4MatmulDx<'a, T> { pub dy: View<'a,T>, pub w: Nf4View<'a>, pub lora: &'a [Lora<'a,T>], pub adapter: Option<View<'a,i32>>, pub accumulate: bool, pub dx: ViewMut<'a,T> }
pub fn nf4_matmul_dx<T: Float>(_: &Device, a: Nf4MatmulDx<'_,T>) -> Result<()> { let x: Vec<f32> = a.dy.as_slice().unwrap().iter().map(|v| v.to_f32()).collect(); dxf(&x, &super::nf4_matmul::deq(&a.w), a.w.k, a.lora, a.accumulate, a.dx); Ok(()) }
