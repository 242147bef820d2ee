use crate::*; use crate::dtype::Float; use crate::quant::Nf4View; use super::matmul::*;
#[derive(Debug)] pub struct Nf4Matmul<'a, T> { pub x: View<'a,T>, pub w: Nf4View<'a>, pub bias: Option<View<'a,T>>, pub lora: &'a [Lora<'a,T>], pub adapter: Option<View<'a,i32>>, pub s: Option<ViewMut<'a,f32>>, pub y: ViewMut<'a,T> }
pub fn deq(w: &Nf4View<'_>) -> Vec<f32> { let p = w.packed.as_slice().unwrap(); (0..w.n*w.k).map(|i| { let b = p[i/2]; let c = if i%2==0 { b>>4 } else { b&15 }; w.code.at(c as usize)*w.absmax_at(i/w.blocksize) }).collect() }
pub fn nf4_matmul<T: Float>(_: &Device, a: Nf4Matmul<'_,T>) -> Result<()> { let x: Vec<f32> = a.x.as_slice().unwrap().iter().map(|v| v.to_f32()).collect(); fwd(&x, &deq(&a.w), a.w.k, a.bias, a.lora, a.s, a.y); Ok(()) }
