//! Several products of one input: the queries, keys and values of a decoder, or its gate and up with SwiGLU
//! (Shazeer 2020, arXiv:2002.05202, eq. 6) behind them. On a GPU they are one launch, and so are the first factors of
//! their adapters. Each has the bits that it has alone.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::product::{Lora, Product, Weight, check_pair};
use crate::ops::support::dispatch::on_device;
use crate::quant::Nf4View;
use crate::view::{View, ViewMut};

/// One product of a [`ProductFan`].
#[derive(Debug)]
pub struct FanMap<'a, T, W> {
    /// `[N, K]` weight: a [`View`] or an [`Nf4View`].
    pub w: W,
    /// `[N]` added to each row.
    pub bias: Option<View<'a, T>>,
    /// The adapter of all rows.
    pub lora: Option<Lora<'a, T>>,
    /// `[M, r]` scale·X·Aᵀ, if wanted for [`lora_grad`](crate::ops::lora_grad()).
    pub s: Option<ViewMut<'a, f32>>,
    /// `[M, N]` output.
    pub y: ViewMut<'a, T>,
}

impl<'a, T: Float, W: Copy> FanMap<'a, T, W> {
    /// The same product by itself.
    pub(crate) fn alone<'b>(&'b mut self, x: View<'b, T>) -> Product<'b, T, W> {
        Product {
            x,
            w: self.w,
            bias: self.bias,
            lora: self.lora.as_slice(),
            adapter: None,
            s: self.s.as_mut().map(ViewMut::reborrow),
            residual: None,
            y: self.y.reborrow(),
        }
    }
}

/// Arguments of [`matmul_fan`] with dense weights, [`nf4_matmul_fan`] with 4-bit ones.
#[derive(Debug)]
pub struct ProductFan<'a, T, W> {
    /// `[M, K]` input.
    pub x: View<'a, T>,
    /// The products, each with its own number of columns.
    pub maps: Vec<FanMap<'a, T, W>>,
    /// `[M, N]` silu(y\[0\]) ⊙ y\[1\] of exactly two products of one shape, if wanted.
    pub gated: Option<ViewMut<'a, T>>,
}

/// Arguments of [`matmul_fan`].
pub type MatmulFan<'a, T> = ProductFan<'a, T, View<'a, T>>;

/// Arguments of [`nf4_matmul_fan`].
pub type Nf4MatmulFan<'a, T> = ProductFan<'a, T, Nf4View<'a>>;

/// y of every map is x·Wᵀ + bias + s·Bᵀ with s = scale·x·Aᵀ, bit for bit the result of
/// [`matmul`](crate::ops::matmul()); `gated` is that of [`swiglu`](crate::ops::swiglu()).
///
/// # Errors
/// As [`matmul`](crate::ops::matmul()); also `gated` with another number of products than two, or of products of
/// different shapes.
///
/// # Cost
/// That of the products. bf16 and f16 on a GPU take two launches for up to three products, one without adapters.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{FanMap, MatmulFan, matmul_fan}};
/// let (x, gate, up) = ([1f32, 2.0], [0f32, 0.0], [3f32, 4.0]);
/// let (mut a, mut b, mut gated) = ([9f32], [9f32], [9f32]);
/// let map = |w, y| FanMap { w, bias: None, lora: None, s: None, y };
/// matmul_fan(&Device::Cpu, MatmulFan {
///     x: View::new(&x, &[1, 2])?,
///     maps: vec![
///         map(View::new(&gate, &[1, 2])?, ViewMut::new(&mut a, &[1, 1])?),
///         map(View::new(&up, &[1, 2])?, ViewMut::new(&mut b, &[1, 1])?),
///     ],
///     gated: Some(ViewMut::new(&mut gated, &[1, 1])?),
/// })?;
/// assert_eq!((a, b, gated), ([0.0], [11.0], [0.0]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn matmul_fan<T: Float>(device: &Device, args: MatmulFan<'_, T>) -> Result<()> {
    let check = Check("matmul_fan");
    check_fan(check, device, &args)?;
    on_device!(device, check, args: MatmulFan<T: Float> => cpu::fan, gpu::matmul_fan)
}

/// [`matmul_fan`] with 4-bit weights: bit for bit the result of [`nf4_matmul`](crate::ops::nf4_matmul()).
///
/// # Errors
/// As [`matmul_fan`] and [`nf4_matmul`](crate::ops::nf4_matmul()).
///
/// # Cost
/// That of the products; launches as [`matmul_fan`], below the number of rows from which on a weight is written out.
///
/// # Example
/// ```
/// use gradus::{DType, Device, View, ViewMut, ops::{FanMap, Nf4MatmulFan, nf4_matmul_fan}};
/// use gradus::quant::{Absmax, Nf4View};
/// let code: [f32; 16] = std::array::from_fn(|i| i as f32 - 8.0);
/// let (packed, absmax) = ([0x9A_u8], [0.5f32]); // codes 1, 2
/// let (x, mut y) = ([1.0f32, 10.0], [0f32; 1]);
/// let w = Nf4View {
///     packed: View::new(&packed, &[1])?,
///     absmax: Absmax::F32(View::new(&absmax, &[1])?),
///     code: View::new(&code, &[16])?,
///     n: 1,
///     k: 2,
///     blocksize: 64,
///     dtype: DType::Bf16,
/// };
/// nf4_matmul_fan(&Device::Cpu, Nf4MatmulFan {
///     x: View::new(&x, &[1, 2])?,
///     maps: vec![FanMap { w, bias: None, lora: None, s: None, y: ViewMut::new(&mut y, &[1, 1])? }],
///     gated: None,
/// })?;
/// assert_eq!(y, [10.5]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn nf4_matmul_fan<T: Float>(device: &Device, args: Nf4MatmulFan<'_, T>) -> Result<()> {
    let check = Check("nf4_matmul_fan");
    check_fan(check, device, &args)?;
    on_device!(device, check, args: Nf4MatmulFan<T: Float> => cpu::fan, gpu::nf4_matmul_fan)
}

fn check_fan<T: Float, W: Weight<T>>(
    check: Check,
    device: &Device,
    a: &ProductFan<'_, T, W>,
) -> Result<()> {
    check.that(!a.maps.is_empty(), "maps", "no product", "at least one")?;
    let mut shapes = Vec::new();
    for (i, map) in a.maps.iter().enumerate() {
        let [m, n, k] = map.w.check(check, device, &a.x)?;
        let name = |field: &str| format!("maps[{i}].{field}");
        check.opt_shape(device, &name("bias"), &map.bias, &[n])?;
        let rank = map
            .lora
            .as_ref()
            .map(|lora| check_pair(check, device, &name("lora"), lora, None, [n, k]));
        let rank = rank.transpose()?.unwrap_or(0);
        let missing = map.s.is_some() && rank == 0;
        let expected = "None, or an adapter";
        check.that(!missing, &name("s"), "an output without an adapter", expected)?;
        check.opt_shape(device, &name("s"), &map.s, &[m, rank])?;
        check.shape(device, &name("y"), &map.y, &[m, n])?;
        shapes.push([m, n]);
    }
    let Some(gated) = &a.gated else { return Ok(()) };
    let pair = shapes.len() == 2 && shapes[0] == shapes[1];
    check.that(pair, "gated", format!("products of {shapes:?}"), "two products of one shape")?;
    check.shape(device, "gated", gated, &shapes[0])
}
