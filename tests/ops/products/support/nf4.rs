//! 4-bit matrices in every layout, for the tests of the products that read them.

use crate::common::{Golden, normals};
use gradus::dtype::Float;
use gradus::ops::{Lora, Nf4Matmul, Nf4MatmulDx, nf4_matmul, nf4_matmul_dx};
use gradus::quant::{Absmax, Nf4View};
use gradus::{DType, Device, View, ViewMut, bf16, f16};

/// Codes, nested maxima, table and offset of the block maxima, with maxima per nested block.
pub type Nested = (Vec<u8>, Vec<f32>, Vec<f32>, f32, usize);

/// A 4-bit matrix in its parts.
pub struct Weight {
    pub packed: Vec<u8>,
    pub code: Vec<f32>,
    pub absmax: Vec<f32>,
    pub nested: Option<Nested>,
    pub n: usize,
    pub k: usize,
    pub blocksize: usize,
    pub dtype: DType,
}

impl Weight {
    pub fn random(seed: u64, [n, k]: [usize; 2], blocksize: usize, nested: bool) -> Weight {
        let blocks = (n * k).div_ceil(blocksize);
        let bytes = |seed, len| normals(seed, len, 1e4).into_iter().map(|x| x as i64 as u8);
        let f32s = |seed, len| normals(seed, len, 1.0).into_iter().map(|x| x as f32).collect();
        let size = 7;
        Weight {
            packed: bytes(seed, (n * k).div_ceil(2)).collect(),
            code: f32s(seed + 1, 16),
            absmax: f32s(seed + 2, blocks),
            nested: nested.then(|| {
                let codes = bytes(seed + 3, blocks).collect();
                (codes, f32s(seed + 4, blocks.div_ceil(size)), f32s(seed + 5, 256), 0.375, size)
            }),
            n,
            k,
            blocksize,
            dtype: DType::Bf16,
        }
    }

    pub fn golden(file: &Golden) -> Weight {
        let shape = file.shape("weight");
        let nested = file.has("nested_absmax").then(|| {
            let (table, offset) = (file.get("nested_code"), file.get::<f32>("offset")[0]);
            let size = file.number("nested_blocksize").unwrap() as usize;
            (file.get("absmax"), file.get("nested_absmax"), table, offset, size)
        });
        Weight {
            packed: file.get("packed"),
            code: file.get("code"),
            absmax: if nested.is_some() { Vec::new() } else { file.get("absmax") },
            nested,
            n: shape[0],
            k: shape[1],
            blocksize: file.number("blocksize").unwrap() as usize,
            dtype: match file.dtype("weight") {
                safetensors::Dtype::BF16 => DType::Bf16,
                safetensors::Dtype::F16 => DType::F16,
                _ => DType::F32,
            },
        }
    }

    pub fn view(&self) -> Nf4View<'_> {
        let absmax = match &self.nested {
            None => Absmax::F32((&self.absmax).into()),
            Some((codes, nested, table, offset, size)) => Absmax::Nested {
                codes: codes.into(),
                nested: nested.into(),
                table: table.into(),
                offset: *offset,
                nested_blocksize: *size,
            },
        };
        let (n, k, blocksize, dtype) = (self.n, self.k, self.blocksize, self.dtype);
        let (packed, code) = ((&self.packed).into(), (&self.code).into());
        Nf4View { packed, absmax, code, n, k, blocksize, dtype }
    }

    /// The definition, an element at a time.
    pub fn element(&self, row: usize, column: usize) -> f64 {
        let flat = row * self.k + column;
        let byte = self.packed[flat / 2];
        let nibble = if flat.is_multiple_of(2) { byte / 16 } else { byte % 16 };
        let block = flat / self.blocksize;
        let absmax = match &self.nested {
            None => self.absmax[block],
            Some((codes, nested, table, offset, size)) => {
                table[codes[block] as usize] * nested[block / size] + offset
            }
        };
        let product = self.code[nibble as usize] * absmax;
        match self.dtype {
            DType::Bf16 => bf16::from_f32(product).to_f64(),
            DType::F16 => f16::from_f32(product).to_f64(),
            _ => product as f64,
        }
    }

    pub fn dense<T: Float>(&self) -> Vec<T> {
        let all = (0..self.n).flat_map(|row| (0..self.k).map(move |column| (row, column)));
        all.map(|(row, column)| T::from_f64(self.element(row, column))).collect()
    }
}

pub fn nf4_forward_on<T: Float>(
    device: &Device,
    m: usize,
    x: &[T],
    weight: &Weight,
    bias: Option<&[T]>,
    lora: &[Lora<'_, T>],
    adapter: Option<&[i32]>,
) -> Vec<T> {
    let (n, k) = (weight.n, weight.k);
    let mut y = vec![T::from_f64(f64::NAN); m * n];
    let args = Nf4Matmul {
        x: View::new(x, &[m as i64, k as i64]).unwrap(),
        w: weight.view(),
        bias: bias.map(View::from),
        lora,
        adapter: adapter.map(View::from),
        s: None,
        residual: None,
        y: ViewMut::new(&mut y, &[m as i64, n as i64]).unwrap(),
    };
    nf4_matmul(device, args).unwrap();
    y
}

pub fn nf4_backward_on<T: Float>(
    device: &Device,
    m: usize,
    dy: &[T],
    weight: &Weight,
    lora: &[Lora<'_, T>],
    adapter: Option<&[i32]>,
) -> Vec<T> {
    let (n, k) = (weight.n, weight.k);
    let mut dx = vec![T::from_f64(f64::NAN); m * k];
    let args = Nf4MatmulDx {
        dy: View::new(dy, &[m as i64, n as i64]).unwrap(),
        w: weight.view(),
        lora,
        adapter: adapter.map(View::from),
        accumulate: false,
        dx: ViewMut::new(&mut dx, &[m as i64, k as i64]).unwrap(),
    };
    nf4_matmul_dx(device, args).unwrap();
    dx
}
