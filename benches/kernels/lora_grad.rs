//! lora_grad: `2·M·r·(K + 2·N)` flops over `M·(K + 2·N)` elements; and what an adapter adds to a
//! forward pass.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{Lora, LoraGrad, Matmul, lora_grad, matmul};
use gradus::{Device, View, ViewMut};

const RANK: usize = 8;

pub fn bench(c: &mut Criterion) {
    let device = Device::Cpu;
    let mut group = c.benchmark_group("lora_grad");
    for [m, n, k] in [[64usize, 256usize, 256usize], [512, 256, 256], [512, 1024, 1024]] {
        let wave =
            |n: usize| (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect::<Vec<f32>>();
        let (x, dy, w) = (wave(m * k), wave(m * n), wave(n * k));
        let (a, b, s) = (wave(RANK * k), wave(n * RANK), wave(m * RANK));
        let (mut da, mut db) = (vec![0f32; RANK * k], vec![0f32; n * RANK]);
        let lora = Lora {
            a: View::rows_of(&a, k).unwrap(),
            b: View::rows_of(&b, RANK).unwrap(),
            scale: 2.0,
        };
        let shape = format!("{m}x{n}x{k}");
        group.throughput(Throughput::Elements((2 * m * RANK * (k + 2 * n)) as u64));
        group.bench_function(BenchmarkId::new("gradients", &shape), |bench| {
            bench.iter(|| {
                let args = LoraGrad {
                    x: View::rows_of(&x, k).unwrap(),
                    dy: View::rows_of(&dy, n).unwrap(),
                    s: View::rows_of(&s, RANK).unwrap(),
                    lora,
                    adapter: None,
                    index: 0,
                    da: ViewMut::rows_of(&mut da, k).unwrap(),
                    db: ViewMut::rows_of(&mut db, RANK).unwrap(),
                };
                lora_grad(&device, args).unwrap();
            })
        });
        let mut y = vec![0f32; m * n];
        group.throughput(Throughput::Elements((2 * m * (n * k + RANK * (n + k))) as u64));
        for (name, lora) in [("forward, base", &[][..]), ("forward, adapter", &[lora][..])] {
            group.bench_function(BenchmarkId::new(name, &shape), |bench| {
                bench.iter(|| {
                    let args = Matmul {
                        x: View::rows_of(&x, k).unwrap(),
                        w: View::rows_of(&w, k).unwrap(),
                        bias: None,
                        lora,
                        adapter: None,
                        s: None,
                        residual: None,
                        y: ViewMut::rows_of(&mut y, n).unwrap(),
                    };
                    matmul(&device, args).unwrap();
                })
            });
        }
    }
    group.finish();
}
