//! A row of a layer has the same bits however rows are put together: alone, in any order, beside any
//! others, cut into any chunks, on any number of threads. The layer is what QLoRA runs: a 4-bit weight,
//! an adapter per row, a bias and a residual.

use std::sync::OnceLock;

use crate::common::{bits_of, in_pool};
use crate::products::support::*;
use gradus::dtype::Float;
use gradus::ops::{CopyRows, Lora, Nf4Matmul, Nf4MatmulDx, copy_rows, nf4_matmul, nf4_matmul_dx};
use gradus::quant::{Nf4Options, Nf4Tensor};
use gradus::{View, ViewMut, bf16, f16};
use proptest::prelude::*;

/// Rows there are, columns, depth, rank: beyond one tile, panel and block of each.
const ROWS: usize = 150;
const N: usize = 70;
const K: usize = 320;
const R: usize = 5;

struct Layer<T> {
    x: Vec<T>,
    dy: Vec<T>,
    residual: Vec<T>,
    bias: Vec<T>,
    w: Nf4Tensor,
    adapters: [Adapter<T>; 3],
    index: Vec<i32>,
    /// What each row gives alone.
    alone: Outputs,
}

/// Bits of y, s and dx, row after row.
#[derive(Debug, Default, PartialEq)]
struct Outputs {
    y: Vec<u64>,
    s: Vec<u64>,
    dx: Vec<u64>,
}

impl Outputs {
    fn extend(&mut self, other: Outputs) {
        self.y.extend(other.y);
        self.s.extend(other.s);
        self.dx.extend(other.dx);
    }

    /// The given rows of them.
    fn pick(&self, rows: &[i32]) -> Outputs {
        let of = |from: &[u64], width: usize| -> Vec<u64> {
            rows.iter().flat_map(|&i| from[i as usize * width..][..width].to_vec()).collect()
        };
        Outputs { y: of(&self.y, N), s: of(&self.s, R), dx: of(&self.dx, K) }
    }
}

impl<T: Float> Layer<T> {
    /// Rows from all scales: a sum in another order would show.
    fn new() -> Layer<T> {
        let rough = |seed, n| -> Vec<T> {
            let scale = |i: usize| 2f64.powi((i * 7 % 11) as i32 - 5);
            let values = random::<f64>(seed, n).into_iter().enumerate();
            values.map(|(i, x)| T::from_f64(x * scale(i))).collect()
        };
        let w = random::<f32>(4, N * K);
        let w = View::rows_of(&w, K).unwrap();
        let mut layer = Layer {
            x: rough(1, ROWS * K),
            dy: rough(2, ROWS * N),
            residual: rough(3, ROWS * N),
            bias: rough(5, N),
            w: Nf4Tensor::quantize(&CPU, w, &Nf4Options::default()).unwrap(),
            adapters: [(6, 0.5), (8, -1.5), (10, 3.0)]
                .map(|(s, scale)| adapter(s, [N, K, R], scale)),
            index: (0..ROWS).map(|i| (i * 5 % 4) as i32 - 1).collect(),
            alone: Outputs::default(),
        };
        for i in 0..ROWS {
            let row = layer.run(&[i as i32]);
            layer.alone.extend(row);
        }
        layer
    }

    fn rows(&self, data: &[T], width: usize, rows: &[i32]) -> Vec<T> {
        let mut picked = vec![T::from_f64(f64::NAN); rows.len() * width];
        let args = CopyRows {
            x: View::rows_of(data, width).unwrap(),
            from_rows: Some(rows.into()),
            to_rows: None,
            y: ViewMut::rows_of(&mut picked, width).unwrap(),
        };
        copy_rows(&CPU, args).unwrap();
        picked
    }

    /// Forward and backward of these rows as one batch.
    fn run(&self, rows: &[i32]) -> Outputs {
        let m = rows.len();
        let (x, dy) = (self.rows(&self.x, K, rows), self.rows(&self.dy, N, rows));
        let (residual, mut dx) = (self.rows(&self.residual, N, rows), self.rows(&self.x, K, rows));
        let index: Vec<i32> = rows.iter().map(|&i| self.index[i as usize]).collect();
        let lora: Vec<Lora<'_, T>> = self.adapters.iter().map(|a| a.view([N, K, R])).collect();
        let (mut y, mut s) = (vec![T::from_f64(f64::NAN); m * N], vec![f32::NAN; m * R]);
        let args = Nf4Matmul {
            x: View::rows_of(&x, K).unwrap(),
            w: self.w.view(),
            bias: Some((&self.bias).into()),
            lora: &lora,
            adapter: Some((&index).into()),
            s: Some(ViewMut::rows_of(&mut s, R).unwrap()),
            residual: Some(View::rows_of(&residual, N).unwrap()),
            y: ViewMut::rows_of(&mut y, N).unwrap(),
        };
        nf4_matmul(&CPU, args).unwrap();
        let args = Nf4MatmulDx {
            dy: View::rows_of(&dy, N).unwrap(),
            w: self.w.view(),
            lora: &lora,
            adapter: Some((&index).into()),
            accumulate: true,
            dx: ViewMut::rows_of(&mut dx, K).unwrap(),
        };
        nf4_matmul_dx(&CPU, args).unwrap();
        Outputs { y: bits_of(&y), s: bits_of(&s), dx: bits_of(&dx) }
    }

    /// The rows in chunks that end at `cuts`, on a pool of `threads`.
    fn chunked(&self, rows: &[i32], cuts: &[usize], threads: usize) -> Outputs {
        in_pool(threads, || {
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (rows.len() + 1)).collect();
            ends.extend([0, rows.len()]);
            ends.sort_unstable();
            let mut all = Outputs::default();
            ends.windows(2).for_each(|pair| all.extend(self.run(&rows[pair[0]..pair[1]])));
            all
        })
    }
}

static F32: OnceLock<Layer<f32>> = OnceLock::new();
static BF16: OnceLock<Layer<bf16>> = OnceLock::new();
static F16: OnceLock<Layer<f16>> = OnceLock::new();

/// Rows of the layer in any order, some of them more than once.
fn any_rows() -> impl Strategy<Value = Vec<i32>> {
    prop_oneof![
        prop::collection::vec(0..ROWS as i32, 1..40),
        prop::collection::vec(0..ROWS as i32, 40..200),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn rows_keep_their_bits_in_every_arrangement(
        rows in any_rows(), cuts in prop::collection::vec(0..200usize, 0..6), threads in 1..6usize,
    ) {
        let (f32s, bf16s, f16s) = (
            F32.get_or_init(Layer::new), BF16.get_or_init(Layer::new), F16.get_or_init(Layer::new),
        );
        prop_assert!(f32s.chunked(&rows, &cuts, threads) == f32s.alone.pick(&rows), "f32");
        prop_assert!(bf16s.chunked(&rows, &cuts, threads) == bf16s.alone.pick(&rows), "bf16");
        prop_assert!(f16s.chunked(&rows, &cuts, threads) == f16s.alone.pick(&rows), "f16");
    }
}
