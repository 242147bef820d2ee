//! matmul: bound by flops, `2·M·N·K`; at M = 1 by the bytes of W. matmul_dx and matmul_dw do the
//! same flops, nf4_matmul reads W as half a byte per element.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{
    Matmul, MatmulDw, MatmulDx, Nf4Matmul, Nf4MatmulDx, matmul, matmul_dw, matmul_dx, nf4_matmul,
    nf4_matmul_dx,
};
use gradus::quant::{Absmax, Nf4View};
use gradus::{DType, Device, View, ViewMut};

/// `[M, N, K]`: decode, the demo model's layers, training.
const SHAPES: [[usize; 3]; 8] = [
    [1, 256, 256],
    [8, 256, 256],
    [64, 64, 64],
    [64, 256, 256],
    [256, 256, 256],
    [64, 1024, 1024],
    [1024, 1024, 1024],
    [1, 4096, 4096],
];

struct Data {
    x: Vec<f32>,
    w: Vec<f32>,
    dy: Vec<f32>,
    packed: Vec<u8>,
    absmax: Vec<f32>,
    code: Vec<f32>,
}

fn data([m, n, k]: [usize; 3]) -> Data {
    let wave = |n: usize| (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    Data {
        x: wave(m * k),
        w: wave(n * k),
        dy: wave(m * n),
        packed: (0..n * k / 2).map(|i| (i * 151 % 256) as u8).collect(),
        absmax: vec![0.125; n * k / 64],
        code: (0..16).map(|i| i as f32 / 8.0 - 1.0).collect(),
    }
}

impl Data {
    fn nf4(&self, [_, n, k]: [usize; 3]) -> Nf4View<'_> {
        Nf4View {
            packed: (&self.packed).into(),
            absmax: Absmax::F32((&self.absmax).into()),
            code: (&self.code).into(),
            n,
            k,
            blocksize: 64,
            dtype: DType::Bf16,
        }
    }
}

pub fn bench(c: &mut Criterion) {
    let device = Device::Cpu;
    for op in ["matmul", "matmul_dx", "matmul_dw", "nf4_matmul", "nf4_matmul_dx"] {
        let mut group = c.benchmark_group(op);
        for shape in SHAPES {
            let [m, n, k] = shape;
            let data = data(shape);
            let mut out = vec![0f32; (m * n).max(m * k).max(n * k)];
            let name = BenchmarkId::from_parameter(format!("{m}x{n}x{k}"));
            group.throughput(Throughput::Elements((2 * m * n * k) as u64));
            group.bench_function(name, |b| b.iter(|| run(&device, op, shape, &data, &mut out)));
        }
        group.finish();
    }
}

fn run(device: &Device, op: &str, shape: [usize; 3], data: &Data, out: &mut [f32]) {
    let [m, n, k] = shape;
    let x = View::rows_of(&data.x, k).unwrap();
    let w = View::rows_of(&data.w, k).unwrap();
    let dy = View::rows_of(&data.dy, n).unwrap();
    let (lora, adapter, bias, s) = (&[], None, None, None);
    let y = |out| ViewMut::new(out, &[m as i64, n as i64]).unwrap();
    let dx = |out| ViewMut::new(out, &[m as i64, k as i64]).unwrap();
    let nf4 = data.nf4(shape);
    let accumulate = false;
    match op {
        "matmul" => matmul(device, Matmul { x, w, bias, lora, adapter, s, residual: None, y: y(out) }),
        "matmul_dx" => {
            matmul_dx(device, MatmulDx { dy, w, lora, adapter, accumulate, dx: dx(out) })
        }
        "matmul_dw" => {
            let dw = ViewMut::new(out, &[n as i64, k as i64]).unwrap();
            matmul_dw(device, MatmulDw { dy, x, dw, dbias: None })
        }
        "nf4_matmul" => {
            nf4_matmul(device, Nf4Matmul { x, w: nf4, bias, lora, adapter, s, residual: None, y: y(out) })
        }
        _ => {
            let args = Nf4MatmulDx { dy, w: nf4, lora, adapter, accumulate, dx: dx(out) };
            nf4_matmul_dx(device, args)
        }
    }
    .unwrap();
}
