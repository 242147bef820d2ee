//! Y = R + X·Wᵀ + bias + scale·(X·Aᵀ)·Bᵀ: a linear layer with low-rank adapters (Hu et al. 2021,
//! LoRA, arXiv:2106.09685, eq. 3) and the residual it is added to, its gradients, and one set of
//! numerics for every number of rows.
//!
//! For f32 and f64 on a GPU each output element is one chain of fused multiply-adds, started from 0: K
//! steps of the weight in increasing k, then the r steps of the row's adapter on S = scale·X·Aᵀ, which is itself
//! such a chain rounded to f32. On the CPU it is 16 such chains, one for each k mod 16, and a tree over
//! them; gradients are one. Products of bf16 and f16 on a GPU go
//! through tensor cores in the one order that `kernels/products/mma_gemm.cuh` begins with. Then the bias is
//! added, then the residual, and the sum is rounded once to the output's dtype: in f32 those are the
//! bits of an addition afterwards. Nothing else enters, so a row's result has the same bits alone, in
//! any batch, at any position, on any number of threads. f64 operands are accumulated in f64.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::product::{Product, ProductDx, Weight, check_product, check_product_dx};
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`matmul`].
pub type Matmul<'a, T> = Product<'a, T, View<'a, T>>;

/// Arguments of [`matmul_dx`].
pub type MatmulDx<'a, T> = ProductDx<'a, T, View<'a, T>>;

impl<T: Float> Weight<T> for View<'_, T> {
    fn check(&self, check: Check, device: &Device, x: &View<'_, T>) -> Result<[usize; 3]> {
        check.rank(device, "x", x, 2)?;
        check.rank(device, "w", self, 2)?;
        let [m, n, k] = [x.extent(0), self.extent(0), x.extent(1)];
        check_dense(check, device, self, [n, k]).map(|()| [m, n, k])
    }

    fn check_dx(&self, check: Check, device: &Device, dy: &View<'_, T>) -> Result<[usize; 3]> {
        check.rank(device, "dy", dy, 2)?;
        check.rank(device, "w", self, 2)?;
        let [m, n, k] = [dy.extent(0), dy.extent(1), self.extent(1)];
        check_dense(check, device, self, [n, k]).map(|()| [m, n, k])
    }
}

/// The weight has the shape `[n, k]`, and at least one element.
fn check_dense<T: Float>(
    check: Check,
    device: &Device,
    w: &View<'_, T>,
    [n, k]: [usize; 2],
) -> Result<()> {
    let expected = "at least one row and column";
    check.that(n > 0 && k > 0, "w", format!("shape [{n}, {k}]"), expected)?;
    check.shape(device, "w", w, &[n, k])
}

/// y\[i, j\] = Σ_k x\[i, k\]·w\[j, k\] + Σ_q s\[i, q\]·b\[j, q\] + bias\[j\] + residual\[i, j\] with
/// s\[i, q\] = scale·Σ_k x\[i, k\]·a\[q, k\].
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, a non-contiguous last dimension, adapters of
/// different ranks, a scale that is not finite, an adapter index out of range or a residual that
/// shares memory with `y`.
///
/// # Cost
/// Reads X, W and the adapters, writes Y: `M·K + N·K + r·(K + N) + M·N` elements, `M·N` more with a
/// residual; `2·M·N·K + 2·M·r·(K + N)` flops.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{Lora, Matmul, matmul}};
/// let (x, w) = ([1.0f32, 2.0], [3.0f32, 4.0, 5.0, 6.0]);
/// let (a, b) = ([1.0f32, 0.0], [0.0f32, 1.0]);
/// let lora = [Lora { a: View::new(&a, &[1, 2])?, b: View::new(&b, &[2, 1])?, scale: 0.5 }];
/// let mut y = [0f32; 2];
/// matmul(&Device::Cpu, Matmul {
///     x: View::new(&x, &[1, 2])?,
///     w: View::new(&w, &[2, 2])?,
///     bias: None,
///     lora: &lora,
///     adapter: None,
///     s: None,
///     residual: None,
///     y: ViewMut::new(&mut y, &[1, 2])?,
/// })?;
/// assert_eq!(y, [11.0, 17.5]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn matmul<T: Float>(device: &Device, args: Matmul<'_, T>) -> Result<()> {
    let check = Check("matmul");
    check_product(check, device, &args)?;
    on_device!(device, check, args: Matmul<T: Float> => cpu::matmul, gpu::matmul)
}

/// dx\[i, k\] = Σ_j dy\[i, j\]·w\[j, k\] + Σ_q ds\[i, q\]·a\[q, k\] with
/// ds\[i, q\] = scale·Σ_j dy\[i, j\]·b\[j, q\]: the gradient of [`matmul`] with respect to `x`.
/// With `accumulate` the old value is added last, before the rounding.
///
/// # Errors
/// As [`matmul`].
///
/// # Cost
/// That of [`matmul`], plus reading dX when accumulating.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{MatmulDx, matmul_dx}};
/// let (dy, w, mut dx) = ([1f32, 2.0], [3f32, 4.0, 5.0, 6.0], [0f32; 2]);
/// matmul_dx(&Device::Cpu, MatmulDx {
///     dy: View::new(&dy, &[1, 2])?,
///     w: View::new(&w, &[2, 2])?,
///     lora: &[],
///     adapter: None,
///     accumulate: false,
///     dx: ViewMut::new(&mut dx, &[1, 2])?,
/// })?;
/// assert_eq!(dx, [13.0, 16.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn matmul_dx<T: Float>(device: &Device, args: MatmulDx<'_, T>) -> Result<()> {
    let check = Check("matmul_dx");
    check_product_dx(check, device, &args)?;
    on_device!(device, check, args: MatmulDx<T: Float> => cpu::matmul_dx, gpu::matmul_dx)
}

/// Arguments of [`matmul_dw`].
#[derive(Debug)]
pub struct MatmulDw<'a, T> {
    /// `[M, N]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[M, K]` input of the forward pass.
    pub x: View<'a, T>,
    /// `[N, K]` gradient of the weight; added to what is there.
    pub dw: ViewMut<'a, f32>,
    /// `[N]` gradient of the bias, if wanted; added to what is there.
    pub dbias: Option<ViewMut<'a, f32>>,
}

/// dw\[j, k\] += Σ_i dy\[i, j\]·x\[i, k\], dbias\[j\] += Σ_i dy\[i, j\]. The chain runs over the rows in
/// order and the old value is added last; `dbias` is summed in f64.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit or a non-contiguous last dimension.
///
/// # Cost
/// Reads dY and X, reads and writes dW: `M·(N + K) + 2·N·K` elements, `2·M·N·K` flops.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{MatmulDw, matmul_dw}};
/// let (dy, x, mut dw, mut dbias) = ([1f32, 2.0], [3f32, 4.0], [0f32; 4], [0f32; 2]);
/// matmul_dw(&Device::Cpu, MatmulDw {
///     dy: View::new(&dy, &[1, 2])?,
///     x: View::new(&x, &[1, 2])?,
///     dw: ViewMut::new(&mut dw, &[2, 2])?,
///     dbias: Some(ViewMut::new(&mut dbias, &[2])?),
/// })?;
/// assert_eq!((dw, dbias), ([3.0, 4.0, 6.0, 8.0], [1.0, 2.0]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn matmul_dw<T: Float>(device: &Device, args: MatmulDw<'_, T>) -> Result<()> {
    let check = Check("matmul_dw");
    check.rank(device, "dy", &args.dy, 2)?;
    check.rank(device, "x", &args.x, 2)?;
    let (m, n, k) = (args.dy.extent(0), args.dy.extent(1), args.x.extent(1));
    check.that(n > 0, "dy", "0 columns", "at least one column")?;
    check.that(k > 0, "x", "0 columns", "at least one column")?;
    check.shape(device, "x", &args.x, &[m, k])?;
    check.shape(device, "dw", &args.dw, &[n, k])?;
    check.opt_shape(device, "dbias", &args.dbias, &[n])?;
    on_device!(device, check, args: MatmulDw<T: Float> => cpu::matmul_dw, gpu::matmul_dw)
}
