//! Products and 4-bit weights on the shapes of a decoder of 1.5 billion parameters.

use gradus::DType;
use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::ops::*;

use super::case::{Case, Work, products, shape, wave};
use super::quantize::Weight;

/// Of the adapters.
pub const RANK: usize = 16;

/// `[M, N, K]`: decoding one and many samples, and training, on an attention and an MLP matrix.
const SHAPES: [[usize; 3]; 5] =
    [[1, 1536, 1536], [64, 1536, 1536], [512, 1536, 1536], [1, 8960, 1536], [512, 8960, 1536]];

pub fn cases() -> Vec<Case> {
    #[allow(unused_mut, reason = "bf16 is left out of builds with debug assertions")]
    let mut cases = of::<f32>();
    #[cfg(not(debug_assertions))]
    cases.extend(of::<gradus::bf16>());
    cases
}

pub fn of<T: Float>() -> Vec<Case> {
    let mut cases = Vec::new();
    for mnk in SHAPES {
        cases.push(dense::<T>(mnk, false));
        cases.push(four_bit::<T>(FourBit::forward(mnk)));
        cases.push(four_bit::<T>(FourBit { rank: RANK, residual: true, ..FourBit::forward(mnk) }));
    }
    let training = SHAPES[2];
    cases.push(dense::<T>(training, true));
    let dx = FourBit { dx: true, rank: RANK, ..FourBit::forward(training) };
    cases.push(four_bit::<T>(dx));
    cases.push(weight_gradient::<T>(training));
    cases.push(adapter_gradient::<T>(training));
    cases.push(input_gradient::<T>(training));
    cases
}

fn named([m, n, k]: [usize; 3]) -> String {
    format!("{m} x {n} x {k}")
}

/// `M·K + N·K + M·N` elements (`M·N` more with a residual), `2·M·N·K` flops.
pub fn dense<T: Float>([m, n, k]: [usize; 3], residual: bool) -> Case {
    let elements = m * k + n * k + m * n * (1 + residual as usize);
    let name = named([m, n, k]) + if residual { " residual" } else { "" };
    let costs = [size_of::<T>() * elements, 2 * m * n * k];
    Case::new::<T>(["products", "matmul"], name, costs, products::<T>(), move |device| {
        let (x, w) = (wave::<T>(device, m * k, 1)?, wave::<T>(device, n * k, 2)?);
        let r = wave::<T>(device, if residual { m * n } else { 0 }, 3)?;
        let mut y = Buffer::<T>::new(device, m * n)?;
        Ok(Box::new(move |device| {
            let args = Matmul {
                x: x.view(&shape(m, k))?,
                w: w.view(&shape(n, k))?,
                bias: None,
                lora: &[],
                adapter: None,
                s: None,
                residual: residual.then(|| r.view(&shape(m, n))).transpose()?,
                y: y.view_mut(&shape(m, n))?,
            };
            matmul(device, args)
        }))
    })
}

/// A product with a 4-bit matrix.
#[derive(Clone, Copy)]
pub struct FourBit {
    /// `[M, N, K]`.
    pub mnk: [usize; 3],
    /// The input's gradient instead of the output.
    pub dx: bool,
    /// Of the adapter; 0 = none.
    pub rank: usize,
    /// Added to the output.
    pub residual: bool,
    /// Whether the maxima are quantized too.
    pub nested: bool,
    /// What the weight's values are rounded to.
    pub dtype: DType,
}

impl FourBit {
    /// The plain product, of plain maxima.
    pub fn forward(mnk: [usize; 3]) -> FourBit {
        FourBit { mnk, dx: false, rank: 0, residual: false, nested: false, dtype: DType::Bf16 }
    }

    fn name(&self) -> String {
        let rank = if self.rank > 0 { format!(" r{}", self.rank) } else { String::new() };
        let nested = if self.nested { " dq" } else { "" };
        let residual = if self.residual { " residual" } else { "" };
        format!("{}{nested}{rank}{residual}", named(self.mnk))
    }
}

/// W as [`Weight::bytes`], X, Y and the adapter in elements; as many flops as the dense product and
/// the adapter's `2·M·r·(K + N)`.
pub fn four_bit<T: Float>(product: FourBit) -> Case {
    let FourBit { mnk: [m, n, k], dx, rank, residual, nested, dtype } = product;
    let elements = m * k + m * n * (1 + residual as usize) + rank * (n + k);
    let bytes = Weight::bytes(n, k, nested) + size_of::<T>() * elements;
    let costs = [bytes, 2 * m * n * k + 2 * m * rank * (n + k)];
    let op = if dx { "nf4_matmul_dx" } else { "nf4_matmul" };
    Case::new::<T>(["products", op], product.name(), costs, products::<T>(), move |device| {
        let w = Weight::new(device, n, k, nested)?.of_dtype(dtype);
        // X, or dY; and what is added to Y.
        let input = wave::<T>(device, m * if dx { n } else { k }, 1)?;
        let r = wave::<T>(device, if residual { m * n } else { 0 }, 2)?;
        let (a, b) = (wave::<T>(device, rank * k, 3)?, wave::<T>(device, rank * n, 4)?);
        let mut out = Buffer::<T>::new(device, m * if dx { k } else { n })?;
        Ok(Box::new(move |device| {
            let pair =
                Lora { a: a.view(&shape(rank, k))?, b: b.view(&shape(n, rank))?, scale: 0.5 };
            let lora = if rank > 0 { &[pair][..] } else { &[] };
            let (w, adapter) = (w.view()?, None);
            if dx {
                let (dy, dx) = (input.view(&shape(m, n))?, out.view_mut(&shape(m, k))?);
                let args = Nf4MatmulDx { dy, w, lora, adapter, accumulate: false, dx };
                return nf4_matmul_dx(device, args);
            }
            let args = Nf4Matmul {
                x: input.view(&shape(m, k))?,
                w,
                bias: None,
                lora,
                adapter,
                s: None,
                residual: residual.then(|| r.view(&shape(m, n))).transpose()?,
                y: out.view_mut(&shape(m, n))?,
            };
            nf4_matmul(device, args)
        }))
    })
}

/// dY and X, dW read and written in f32; `2·M·N·K` flops.
fn weight_gradient<T: Float>([m, n, k]: [usize; 3]) -> Case {
    let costs = [size_of::<T>() * m * (n + k) + 8 * n * k, 2 * m * n * k];
    Case::new::<T>(
        ["products", "matmul_dw"],
        named([m, n, k]),
        costs,
        products::<T>(),
        move |device| {
            let (dy, x) = (wave::<T>(device, m * n, 1)?, wave::<T>(device, m * k, 2)?);
            let mut dw = wave::<f32>(device, n * k, 3)?;
            Ok(Box::new(move |device| {
                let (dy, x) = (dy.view(&shape(m, n))?, x.view(&shape(m, k))?);
                matmul_dw(device, MatmulDw { dy, x, dw: dw.view_mut(&shape(n, k))?, dbias: None })
            }))
        },
    )
}

/// `M·(K + 2·N)` elements and f32 S and gradients; `2·M·r·(K + 2·N)` flops, in f32.
fn adapter_gradient<T: Float>([m, n, k]: [usize; 3]) -> Case {
    let r = RANK;
    let bytes = size_of::<T>() * (m * (k + 2 * n) + r * n) + 4 * m * r + 8 * r * (k + n);
    let name = format!("{} r{r}", named([m, n, k]));
    let costs = [bytes, 2 * m * r * (k + 2 * n)];
    Case::new::<T>(["products", "lora_grad"], name, costs, Work::F32, move |device| {
        let (x, dy) = (wave::<T>(device, m * k, 1)?, wave::<T>(device, m * n, 2)?);
        let (a, b) = (wave::<T>(device, r * k, 3)?, wave::<T>(device, r * n, 4)?);
        let s = wave::<f32>(device, m * r, 5)?;
        let (mut da, mut db) = (wave::<f32>(device, r * k, 6)?, wave::<f32>(device, n * r, 7)?);
        Ok(Box::new(move |device| {
            let args = LoraGrad {
                x: x.view(&shape(m, k))?,
                dy: dy.view(&shape(m, n))?,
                s: s.view(&shape(m, r))?,
                lora: Lora { a: a.view(&shape(r, k))?, b: b.view(&shape(n, r))?, scale: 0.5 },
                adapter: None,
                index: 0,
                da: da.view_mut(&shape(r, k))?,
                db: db.view_mut(&shape(n, r))?,
            };
            lora_grad(device, args)
        }))
    })
}

/// As many bytes and flops as the product.
fn input_gradient<T: Float>([m, n, k]: [usize; 3]) -> Case {
    let costs = [size_of::<T>() * (m * k + n * k + m * n), 2 * m * n * k];
    Case::new::<T>(
        ["products", "matmul_dx"],
        named([m, n, k]),
        costs,
        products::<T>(),
        move |device| {
            let (dy, w) = (wave::<T>(device, m * n, 1)?, wave::<T>(device, n * k, 2)?);
            let mut dx = Buffer::<T>::new(device, m * k)?;
            Ok(Box::new(move |device| {
                let args = MatmulDx {
                    dy: dy.view(&shape(m, n))?,
                    w: w.view(&shape(n, k))?,
                    lora: &[],
                    adapter: None,
                    accumulate: false,
                    dx: dx.view_mut(&shape(m, k))?,
                };
                matmul_dx(device, args)
            }))
        },
    )
}
