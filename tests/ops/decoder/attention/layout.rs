//! What the tests of attention share: packed sequences, and both passes over host memory.

use crate::common::{bits, bits_of, normals};
use gradus::dtype::Float;
use gradus::ops::{Attention, AttentionBwd, KvRows, Prefix, attention, attention_bwd};
use gradus::{Device, View, ViewMut};

/// Packed sequences: lengths, heads, and where the keys lie.
#[derive(Clone)]
pub struct Layout {
    pub queries: Vec<usize>,
    pub keys: Vec<usize>,
    pub start: Vec<usize>,
    /// First row and number of the keys that each sequence shares; empty: none does.
    pub prefix: Vec<[usize; 2]>,
    pub rows: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub d: usize,
}

impl Layout {
    /// Sequences with as many keys as queries, packed.
    pub fn packed(lens: &[usize], heads: usize, kv_heads: usize, d: usize) -> Layout {
        Layout::with_keys(lens, lens, heads, kv_heads, d)
    }

    /// Keys packed one sequence after another.
    pub fn with_keys(q: &[usize], k: &[usize], heads: usize, kv_heads: usize, d: usize) -> Layout {
        let start = (0..k.len()).map(|b| k[..b].iter().sum()).collect();
        let (queries, keys, rows) = (q.to_vec(), k.to_vec(), k.iter().sum());
        Layout { queries, keys, start, prefix: Vec::new(), rows, heads, kv_heads, d }
    }

    /// The rows of keys that belong to no prefix packed one sequence after another, behind `first` rows
    /// that belong to none.
    pub fn with_prefixes(
        q: &[usize],
        k: &[usize],
        prefix: &[[usize; 2]],
        first: usize,
        [heads, kv_heads, d]: [usize; 3],
    ) -> Layout {
        let own: Vec<usize> = k.iter().zip(prefix).map(|(k, [_, shared])| k - shared).collect();
        let start = (0..k.len()).map(|b| first + own[..b].iter().sum::<usize>()).collect();
        let rows = first + own.iter().sum::<usize>();
        let (queries, keys, prefix) = (q.to_vec(), k.to_vec(), prefix.to_vec());
        Layout { queries, keys, start, prefix, rows, heads, kv_heads, d }
    }

    /// The row of key `j` of sequence `b`.
    pub fn key_row(&self, b: usize, j: usize) -> usize {
        match self.prefix.get(b) {
            Some([first, shared]) if j < *shared => first + j,
            Some([_, shared]) => self.start[b] + j - shared,
            None => self.start[b] + j,
        }
    }

    /// The columns of the prefixes, if there are any.
    pub fn prefixes(&self) -> Option<[Vec<i64>; 2]> {
        let column = |i: usize| self.prefix.iter().map(|prefix| prefix[i] as i64).collect();
        (!self.prefix.is_empty()).then(|| [column(0), column(1)])
    }

    pub fn tokens(&self) -> usize {
        self.queries.iter().sum()
    }

    pub fn offsets(&self) -> [Vec<i64>; 3] {
        let cu = (0..=self.queries.len()).map(|b| self.queries[..b].iter().sum::<usize>() as i64);
        let i64s = |x: &[usize]| x.iter().map(|&x| x as i64).collect();
        [cu.collect(), i64s(&self.start), i64s(&self.keys)]
    }

    pub fn q_shape(&self) -> [i64; 3] {
        [self.tokens() as i64, self.heads as i64, self.d as i64]
    }

    pub fn k_shape(&self) -> [i64; 3] {
        [self.rows as i64, self.kv_heads as i64, self.d as i64]
    }

    pub fn q_len(&self) -> usize {
        self.tokens() * self.heads * self.d
    }

    pub fn k_len(&self) -> usize {
        self.rows * self.kv_heads * self.d
    }

    pub fn scale(&self) -> f64 {
        1.0 / (self.d as f64).sqrt()
    }

    pub fn random(&self, seed: u64) -> [Vec<f64>; 3] {
        let k = || normals(seed + 1, self.k_len(), 1.0);
        [normals(seed, self.q_len(), 1.0), k(), normals(seed + 2, self.k_len(), 1.0)]
    }

    /// (sequence, local query, q row, keys seen) of every token.
    pub fn each(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let [cu, ..] = self.offsets();
        (0..self.queries.len()).flat_map(move |b| {
            let (first, hidden) = (cu[b] as usize, self.keys[b] - self.queries[b]);
            (0..self.queries[b]).map(move |i| (b, first + i, hidden + i + 1))
        })
    }

    pub fn q_row<'x, T>(&self, x: &'x [T], t: usize, h: usize) -> &'x [T] {
        &x[(t * self.heads + h) * self.d..][..self.d]
    }

    pub fn k_row<'x, T>(&self, x: &'x [T], s: usize, h: usize) -> &'x [T] {
        &x[(s * self.kv_heads + h / (self.heads / self.kv_heads)) * self.d..][..self.d]
    }
}

/// The forward pass over keys that lie where the layout says.
pub fn forward<T: Float>(device: &Device, l: &Layout, qkv: [&[T]; 3]) -> (Vec<T>, Vec<f32>) {
    let ([_, start, _], prefixes) = (l.offsets(), l.prefixes());
    let start = (&start).into();
    let kv_rows = match prefix_of(&prefixes) {
        None => KvRows::From(start),
        Some(prefix) => KvRows::Prefixed { prefix, start },
    };
    forward_from(device, l, kv_rows, qkv)
}

/// The forward pass over keys that lie anywhere.
pub fn forward_from<T: Float>(
    device: &Device,
    l: &Layout,
    kv_rows: KvRows<'_>,
    [q, k, v]: [&[T]; 3],
) -> (Vec<T>, Vec<f32>) {
    let [cu, _, len] = l.offsets();
    let mut o = vec![T::from_f64(f64::NAN); l.q_len()];
    let mut lse = vec![f32::NAN; l.tokens() * l.heads];
    let args = Attention {
        q: View::new(q, &l.q_shape()).unwrap(),
        k: View::new(k, &l.k_shape()).unwrap(),
        v: View::new(v, &l.k_shape()).unwrap(),
        cu_seqlens: (&cu).into(),
        kv_rows,
        kv_len: (&len).into(),
        scale: l.scale(),
        o: ViewMut::new(&mut o, &l.q_shape()).unwrap(),
        lse: Some(ViewMut::rows_of(&mut lse, l.heads).unwrap()),
    };
    attention(device, args).unwrap();
    (o, lse)
}

pub fn backward<T: Float>(device: &Device, l: &Layout, [q, k, v, dout]: [&[T]; 4]) -> [Vec<T>; 3] {
    let ([cu, start, len], prefixes) = (l.offsets(), l.prefixes());
    let nan = |n: usize| vec![T::from_f64(f64::NAN); n];
    let (mut dq, mut dk, mut dv) = (nan(l.q_len()), nan(l.k_len()), nan(l.k_len()));
    let args = AttentionBwd {
        q: View::new(q, &l.q_shape()).unwrap(),
        k: View::new(k, &l.k_shape()).unwrap(),
        v: View::new(v, &l.k_shape()).unwrap(),
        cu_seqlens: (&cu).into(),
        kv_start: (&start).into(),
        kv_len: (&len).into(),
        prefix: prefix_of(&prefixes),
        scale: l.scale(),
        dout: View::new(dout, &l.q_shape()).unwrap(),
        dq: ViewMut::new(&mut dq, &l.q_shape()).unwrap(),
        dk: ViewMut::new(&mut dk, &l.k_shape()).unwrap(),
        dv: ViewMut::new(&mut dv, &l.k_shape()).unwrap(),
    };
    attention_bwd(device, args).unwrap();
    [dq, dk, dv]
}

fn prefix_of(columns: &Option<[Vec<i64>; 2]>) -> Option<Prefix<'_>> {
    columns.as_ref().map(|[start, len]| Prefix { start: start.into(), len: len.into() })
}

/// One (query, head) in f64.
pub struct Oracle {
    /// Probabilities of the visible keys.
    pub p: Vec<f64>,
    pub lse: f64,
    /// The largest Σ|q_d·k_jd| of a key, times the scale.
    pub size: f64,
}

impl Oracle {
    pub fn of(l: &Layout, [q, k]: [&[f64]; 2], at: (usize, usize, usize), seen: usize) -> Oracle {
        let (b, t, h) = at;
        let q = l.q_row(q, t, h);
        let key = |j: usize| l.k_row(k, l.key_row(b, j), h);
        let dot = |j: usize| key(j).iter().zip(q).map(|(a, b)| a * b).sum::<f64>();
        let dot_abs = |j: usize| key(j).iter().zip(q).map(|(a, b)| (a * b).abs()).sum::<f64>();
        let scores: Vec<f64> = (0..seen).map(|j| l.scale() * dot(j)).collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
        let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        Oracle {
            p: scores.iter().map(|s| (s - largest).exp() / sum).collect(),
            lse: largest + sum.ln(),
            size: (0..seen).map(|j| l.scale() * dot_abs(j)).fold(0.0, f64::max),
        }
    }
}

/// What errors of gradients are measured against.
pub struct GradientSizes {
    /// dq, dk and dv with every term replaced by its absolute value.
    pub sizes: [Vec<f64>; 3],
    /// The largest [`Oracle::size`].
    pub score: f64,
    /// The largest ds with every term replaced by its absolute value.
    pub ds: f64,
}

impl GradientSizes {
    pub fn of(l: &Layout, [q, k, v, dout]: [&[f64]; 4]) -> GradientSizes {
        let mut sizes = [vec![0.0; l.q_len()], vec![0.0; l.k_len()], vec![0.0; l.k_len()]];
        let (mut score, mut largest, d) = (0.0f64, 0.0f64, l.d);
        for (b, t, seen) in l.each() {
            for h in 0..l.heads {
                let (q_row, dout) = (l.q_row(q, t, h), l.q_row(dout, t, h));
                let Oracle { p, size, .. } = Oracle::of(l, [q, k], (b, t, h), seen);
                score = score.max(size);
                let dot_abs = |v: &[f64]| v.iter().zip(dout).map(|(a, b)| (a * b).abs()).sum();
                let dp: Vec<f64> =
                    (0..seen).map(|j| dot_abs(l.k_row(v, l.key_row(b, j), h))).collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for j in 0..seen {
                    let ds = l.scale() * p[j] * (dp[j] + delta);
                    largest = largest.max(ds);
                    let group = l.heads / l.kv_heads;
                    let kv = (l.key_row(b, j) * l.kv_heads + h / group) * d;
                    for c in 0..d {
                        sizes[0][(t * l.heads + h) * d + c] += ds * k[kv + c].abs();
                        sizes[1][kv + c] += ds * q_row[c].abs();
                        sizes[2][kv + c] += p[j] * dout[c].abs();
                    }
                }
            }
        }
        GradientSizes { sizes, score, ds: largest }
    }
}

/// Chunks of queries of any size, down to one token at a time, against a cache give the bits of the
/// whole sequences in one batch. The cache has `room` rows per slot, its slots are in another order,
/// and its unused rows are NaN.
pub fn check_chunks<T: Float>(
    device: &Device,
    [heads, kv_heads, d]: [usize; 3],
    (lens, room): ([usize; 5], usize),
    chunks: &[usize],
) {
    let l = Layout::packed(&lens, heads, kv_heads, d);
    let [q, k, v] = l.random(d as u64).map(|x| x.into_iter().map(T::from_f64).collect::<Vec<T>>());
    let (whole, whole_lse) = forward(device, &l, [&q, &k, &v]);
    assert!(whole.iter().all(|x| x.to_f64().is_finite()));
    let (slots, width) = ([2usize, 4, 0, 3, 1], kv_heads * d);
    for &chunk in chunks {
        let mut cache = [(); 2].map(|()| vec![T::from_f64(f64::NAN); 5 * room * width]);
        let mut done = [0usize; 5];
        while done != lens {
            let step: Vec<usize> = (0..5).map(|b| chunk.min(lens[b] - done[b])).collect();
            let mut part_q = Vec::new();
            for b in 0..5 {
                let from = l.start[b] + done[b];
                part_q.extend(&q[from * heads * d..(from + step[b]) * heads * d]);
                let (to, n) = ((slots[b] * room + done[b]) * width, step[b] * width);
                for (cache, x) in cache.iter_mut().zip([&k, &v]) {
                    cache[to..to + n].copy_from_slice(&x[from * width..][..n]);
                }
            }
            let part = Layout {
                queries: step.clone(),
                keys: (0..5).map(|b| done[b] + step[b]).collect(),
                start: slots.iter().map(|s| s * room).collect(),
                rows: 5 * room,
                ..l.clone()
            };
            let (o, lse) = forward(device, &part, [&part_q, &cache[0], &cache[1]]);
            let mut at = 0;
            for b in 0..5 {
                let (from, n) = ((l.start[b] + done[b]) * heads, step[b] * heads);
                let want = &whole[from * d..(from + n) * d];
                assert_eq!(bits_of(&o[at * d..(at + n) * d]), bits_of(want), "chunk {chunk} d {d}");
                assert_eq!(bits(&lse[at..at + n]), bits(&whole_lse[from..from + n]));
                at += n;
                done[b] += step[b];
            }
        }
    }
}
