//! attention: decoding is bound by overhead and bytes of the cache, long sequences by flops
//! (`4·D` a visible (query, head, key), backward `10·D`). One thread, as each row's work is.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{Attention, AttentionBwd, KvRows, attention, attention_bwd};
use gradus::{Device, View, ViewMut};

struct Case {
    q: Vec<f32>,
    kv: Vec<f32>,
    q_shape: [i64; 3],
    k_shape: [i64; 3],
    cu: Vec<i64>,
    start: Vec<i64>,
    len: Vec<i64>,
}

impl Case {
    /// `b` sequences of `lq` queries and `lk` keys, `heads` query and key heads of size `d`.
    fn new(b: usize, lq: usize, lk: usize, heads: usize, d: usize) -> Case {
        let fill = |n: usize| (0..n).map(|i| (i * 37 % 101) as f32 / 101.0 - 0.5).collect();
        Case {
            q: fill(b * lq * heads * d),
            kv: fill(b * lk * heads * d),
            q_shape: [(b * lq) as i64, heads as i64, d as i64],
            k_shape: [(b * lk) as i64, heads as i64, d as i64],
            cu: (0..=b).map(|i| (i * lq) as i64).collect(),
            start: (0..b).map(|i| (i * lk) as i64).collect(),
            len: vec![lk as i64; b],
        }
    }

    fn forward(&self, o: &mut [f32]) {
        let args = Attention {
            q: View::new(&self.q, &self.q_shape).unwrap(),
            k: View::new(&self.kv, &self.k_shape).unwrap(),
            v: View::new(&self.kv, &self.k_shape).unwrap(),
            cu_seqlens: (&self.cu).into(),
            kv_rows: KvRows::From((&self.start).into()),
            kv_len: (&self.len).into(),
            scale: 0.25,
            o: ViewMut::new(o, &self.q_shape).unwrap(),
            lse: None,
        };
        attention(&Device::Cpu, args).unwrap();
    }

    fn backward(&self, [dq, dk, dv]: [&mut [f32]; 3]) {
        let args = AttentionBwd {
            q: View::new(&self.q, &self.q_shape).unwrap(),
            k: View::new(&self.kv, &self.k_shape).unwrap(),
            v: View::new(&self.kv, &self.k_shape).unwrap(),
            cu_seqlens: (&self.cu).into(),
            kv_start: (&self.start).into(),
            kv_len: (&self.len).into(),
            scale: 0.25,
            dout: View::new(&self.q, &self.q_shape).unwrap(),
            dq: ViewMut::new(dq, &self.q_shape).unwrap(),
            dk: ViewMut::new(dk, &self.k_shape).unwrap(),
            dv: ViewMut::new(dv, &self.k_shape).unwrap(),
        };
        attention_bwd(&Device::Cpu, args).unwrap();
    }

    /// Flops of the forward pass.
    fn flops(&self) -> u64 {
        let lq = self.cu[1] as u64;
        let pairs = lq * self.len[0] as u64 - lq * (lq - 1) / 2;
        4 * pairs * self.start.len() as u64 * (self.q_shape[1] * self.q_shape[2]) as u64
    }
}

pub fn bench(c: &mut Criterion) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let mut group = c.benchmark_group("attention");
    for (b, lq, lk, heads, d) in
        [(256, 1, 24, 4, 16), (256, 24, 24, 4, 16), (8, 1, 4096, 8, 64), (1, 1024, 1024, 4, 64)]
    {
        let case = Case::new(b, lq, lk, heads, d);
        let name = format!("{b}x{lq}x{lk}x{heads}x{d}");
        let mut o = vec![0f32; case.q.len()];
        group.throughput(Throughput::Elements(case.flops()));
        group.bench_function(BenchmarkId::new("forward", &name), |bench| {
            pool.install(|| bench.iter(|| case.forward(&mut o)))
        });
        if lq == lk {
            let (mut dk, mut dv) = (vec![0f32; case.kv.len()], vec![0f32; case.kv.len()]);
            group.throughput(Throughput::Elements(case.flops() * 5 / 2));
            group.bench_function(BenchmarkId::new("backward", &name), |bench| {
                pool.install(|| bench.iter(|| case.backward([&mut o, &mut dk, &mut dv])))
            });
        }
    }
    group.finish();
}
