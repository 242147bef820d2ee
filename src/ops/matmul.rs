use crate::*; use crate::dtype::Float; use rayon::prelude::*;
#[derive(Debug, Clone, Copy)] pub struct Lora<'a, T> { pub a: View<'a, T>, pub b: View<'a, T>, pub scale: f64 }
#[derive(Debug)] pub struct Matmul<'a, T> { pub x: View<'a,T>, pub w: View<'a,T>, pub bias: Option<View<'a,T>>, pub lora: &'a [Lora<'a,T>], pub adapter: Option<View<'a,i32>>, pub s: Option<ViewMut<'a,f32>>, pub y: ViewMut<'a,T> }
#[derive(Debug)] pub struct MatmulDx<'a, T> { pub dy: View<'a,T>, pub w: View<'a,T>, pub lora: &'a [Lora<'a,T>], pub adapter: Option<View<'a,i32>>, pub accumulate: bool, pub dx: ViewMut<'a,T> }
#[derive(Debug)] pub struct MatmulDw<'a, T> { pub dy: View<'a,T>, pub x: View<'a,T>, pub dw: ViewMut<'a,f32>, pub dbias: Option<ViewMut<'a,f32>> }
#[derive(Debug)] pub struct LoraGrad<'a, T> { pub x: View<'a,T>, pub dy: View<'a,T>, pub s: View<'a,f32>, pub lora: Lora<'a,T>, pub adapter: Option<View<'a,i32>>, pub index: i32, pub da: ViewMut<'a,f32>, pub db: ViewMut<'a,f32> }
fn f32s<T: Float>(v: &View<'_,T>) -> Vec<f32> { v.as_slice().unwrap().iter().map(|x| x.to_f32()).collect() }
// C[M,J] += A[M,P] B[P,J]
#[inline(always)] fn body(a: &[f32], b: &[f32], c: &mut [f32], p: usize, j: usize) {
    let m = a.len() / p;
    let mut i = 0;
    while i < m { let h = (m - i).min(4);
        let mut q = 0; while q < j { let w = (j - q).min(32);
            if w == 32 && h == 4 {
                let mut acc = [[0f32;32];4];
                for r in 0..4 { acc[r].copy_from_slice(&c[(i+r)*j+q..(i+r)*j+q+32]); }
                for k in 0..p { let brow: &[f32;32] = b[k*j+q..k*j+q+32].try_into().unwrap();
                    for r in 0..4 { let x = a[(i+r)*p+k]; for l in 0..32 { acc[r][l] = x.mul_add(brow[l], acc[r][l]); } } }
                for r in 0..4 { c[(i+r)*j+q..(i+r)*j+q+32].copy_from_slice(&acc[r]); }
            } else { for r in 0..h { let mut acc = [0f32;32]; acc[..w].copy_from_slice(&c[(i+r)*j+q..(i+r)*j+q+w]);
                for k in 0..p { let x = a[(i+r)*p+k]; for l in 0..w { acc[l] = x.mul_add(b[k*j+q+l], acc[l]); } }
                c[(i+r)*j+q..(i+r)*j+q+w].copy_from_slice(&acc[..w]); } }
            q += w; }
        i += h; }
}
crate::cpu::math::dispatch_simd! { fn mm1(a: &[f32], b: &[f32], c: &mut [f32], p: usize, j: usize) = body }
pub fn mm(a: &[f32], b: &[f32], c: &mut [f32], p: usize, j: usize) { if p==0||j==0 {return}
  if (a.len()/p)*p*j > 2_000_000 { c.par_chunks_mut(64*j).zip(a.par_chunks(64*p)).for_each(|(c,a)| mm1(a,b,c,p,j)) } else { mm1(a,b,c,p,j) } }
fn tr(w: &[f32], k: usize) -> Vec<f32> { let n = w.len()/k; let mut t = vec![0f32; w.len()]; for i in 0..n { for j in 0..k { t[j*n+i]=w[i*k+j]; } } t }
pub fn fwd<T: Float>(x: &[f32], w: &[f32], k: usize, bias: Option<View<'_,T>>, lora: &[Lora<'_,T>], s: Option<ViewMut<'_,f32>>, mut y: ViewMut<'_,T>) {
    let (n, m) = (w.len()/k, x.len()/k); let mut c = vec![0f32; m*n]; mm(x, &tr(w,k), &mut c, k, n);
    if let Some(l) = lora.first() { let r = l.a.extent(0); let mut sv = vec![0f32; m*r]; mm(x, &tr(&f32s(&l.a),k), &mut sv, k, r); sv.iter_mut().for_each(|v| *v *= l.scale as f32);
        mm(&sv, &tr(&f32s(&l.b), r), &mut c, r, n); if let Some(mut so) = s { so.as_mut_slice().unwrap().copy_from_slice(&sv); } }
    if let Some(b) = bias { for row in c.chunks_mut(n) { for j in 0..n { row[j] += b.at(j).to_f32(); } } }
    for (o, v) in y.as_mut_slice().unwrap().iter_mut().zip(&c) { *o = T::from_f32(*v); }
}
pub fn dxf<T: Float>(dy: &[f32], w: &[f32], k: usize, lora: &[Lora<'_,T>], accumulate: bool, mut dx: ViewMut<'_,T>) {
    let n = w.len()/k; let m = dy.len()/n; let mut c = vec![0f32; m*k]; mm(dy, w, &mut c, n, k);
    if let Some(l) = lora.first() { let r = l.a.extent(0); let mut ds = vec![0f32; m*r]; mm(dy, &f32s(&l.b), &mut ds, n, r); ds.iter_mut().for_each(|v| *v *= l.scale as f32); mm(&ds, &f32s(&l.a), &mut c, r, k); }
    for (o, v) in dx.as_mut_slice().unwrap().iter_mut().zip(&c) { *o = T::from_f32(if accumulate { o.to_f32() + *v } else { *v }); }
}
pub fn matmul<T: Float>(_: &Device, a: Matmul<'_,T>) -> Result<()> { let k = a.w.extent(1); fwd(&f32s(&a.x), &f32s(&a.w), k, a.bias, a.lora, a.s, a.y); Ok(()) }
pub fn matmul_dx<T: Float>(_: &Device, a: MatmulDx<'_,T>) -> Result<()> { let k = a.w.extent(1); dxf(&f32s(&a.dy), &f32s(&a.w), k, a.lora, a.accumulate, a.dx); Ok(()) }
pub fn matmul_dw<T: Float>(_: &Device, mut a: MatmulDw<'_,T>) -> Result<()> { let k = a.x.extent(1); let n = a.dy.extent(1); let dyt = tr(&f32s(&a.dy), n); mm(&dyt, &f32s(&a.x), a.dw.as_mut_slice().unwrap(), a.x.extent(0), k); Ok(()) }
pub fn lora_grad<T: Float>(_: &Device, mut a: LoraGrad<'_,T>) -> Result<()> { let (n,k,r,m) = (a.dy.extent(1), a.x.extent(1), a.s.extent(1), a.x.extent(0)); let dy = f32s(&a.dy);
    mm(&tr(&dy,n), &f32s(&a.s), a.db.as_mut_slice().unwrap(), m, r);
    let mut ds = vec![0f32; m*r]; mm(&dy, &f32s(&a.lora.b), &mut ds, n, r); ds.iter_mut().for_each(|v| *v *= a.lora.scale as f32);
    mm(&tr(&ds, r), &f32s(&a.x), a.da.as_mut_slice().unwrap(), m, k); Ok(()) }
