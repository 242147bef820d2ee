//! Gradients of adapters: the promised order of every sum written out, an f64 oracle with the
//! componentwise bound, micro-batches and mixtures, layouts, and what the kernels cost.

use std::sync::Arc;

use crate::common::devices::{emulated, executors, gpu_of, gpus};
use crate::common::{bits, in_pool};
use crate::products::arguments::{Changes, K, N, R, good_lora, ones, refused, transposed};
use crate::products::support::{
    Adapter, CPU, adapter, adapter_gradient, dot, random, weight_gradient,
};
use gradus::device::{DeviceBuffer, EmuDriver, Gpu, KernelSet};
use gradus::dtype::{Element, Float};
use gradus::ops::*;
use gradus::view::{Dims, Location};
use gradus::{DType, Device, View, ViewMut, bf16, f16};
use gradus_emu::Counters;

/// Rows whose sums are one chain.
const CHUNK: usize = 128;

/// Rows around chunks, and more chunks than one launch takes.
const ROWS: [usize; 6] = [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5, 33 * CHUNK + 7];
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// Operands of a call with a non-zero gradient to add to.
struct Case<T> {
    m: usize,
    k: usize,
    n: usize,
    r: usize,
    x: Vec<T>,
    dy: Vec<T>,
    s: Vec<f32>,
    lora: Adapter<T>,
    /// `None`: every row takes adapter 0.
    index: Option<Vec<i32>>,
    da: Vec<f32>,
    db: Vec<f32>,
}

impl<T: Float> Case<T> {
    fn new(m: usize, [k, n, r]: [usize; 3], mixed: bool) -> Case<T> {
        Case {
            m,
            k,
            n,
            r,
            x: random(1, m * k),
            dy: random(2, m * n),
            s: random(3, m * r),
            lora: adapter(4, [n, k, r], 0.75),
            index: mixed.then(|| (0..m).map(|i| (i * 7 % 5 % 3) as i32 - 1).collect()),
            da: random(6, r * k),
            db: random(7, n * r),
        }
    }

    /// The adapter whose gradient is asked for.
    fn wanted(&self) -> i32 {
        self.index.is_some() as i32
    }

    fn rows(&self) -> Vec<usize> {
        let taken = |&i: &usize| self.index.as_ref().is_none_or(|index| index[i] == 1);
        (0..self.m).filter(taken).collect()
    }

    fn lora(&self) -> Lora<'_, T> {
        self.lora.view([self.n, self.k, self.r])
    }

    /// Adds rows `first..last` to a gradient.
    fn add_rows(&self, device: &Device, rows: [usize; 2], da: &mut [f32], db: &mut [f32]) {
        let [first, last] = rows;
        let args = LoraGrad {
            x: View::rows_of(&self.x[first * self.k..last * self.k], self.k).unwrap(),
            dy: View::rows_of(&self.dy[first * self.n..last * self.n], self.n).unwrap(),
            s: View::rows_of(&self.s[first * self.r..last * self.r], self.r).unwrap(),
            lora: self.lora(),
            adapter: self.index.as_ref().map(|index| View::from(&index[first..last])),
            index: self.wanted(),
            da: ViewMut::rows_of(da, self.k).unwrap(),
            db: ViewMut::rows_of(db, self.r).unwrap(),
        };
        lora_grad(device, args).unwrap();
    }

    fn run(&self, device: &Device) -> [Vec<f32>; 2] {
        let (mut da, mut db) = (self.da.clone(), self.db.clone());
        self.add_rows(device, [0, self.m], &mut da, &mut db);
        [da, db]
    }
}

/// The promise: chains of fused multiply-adds over 128 rows, their sums in order, the old value last.
fn promised(rows: &[usize], old: f32, term: &dyn Fn(usize, f32) -> f32) -> f32 {
    let sum = |chunk: &[usize]| chunk.iter().fold(0f32, |sum, &row| term(row, sum));
    let mut sums = rows.chunks(CHUNK).map(sum);
    let first = sums.next().unwrap_or(0.0);
    old + sums.fold(first, |total, sum| total + sum)
}

/// The same in f64, rounded once.
fn promised_wide(rows: &[usize], old: f32, term: &dyn Fn(usize, f64) -> f64) -> f32 {
    let sum = |chunk: &[usize]| chunk.iter().fold(0f64, |sum, &row| term(row, sum));
    let mut sums = rows.chunks(CHUNK).map(sum);
    let first = sums.next().unwrap_or(0.0);
    (old as f64 + sums.fold(first, |total, sum| total + sum)) as f32
}

/// [dA, dB] by the promise.
fn by_promise<T: Float>(c: &Case<T>) -> [Vec<f32>; 2] {
    let (rows, b) = (c.rows(), &c.lora.b);
    let ds = |row: usize, q: usize| {
        let sum = (0..c.n).fold(0f32, |sum, j| {
            c.dy[row * c.n + j].to_f32().mul_add(b[j * c.r + q].to_f32(), sum)
        });
        (c.lora.scale * sum as f64) as f32
    };
    let ds: Vec<f32> = (0..c.m * c.r).map(|i| ds(i / c.r, i % c.r)).collect();
    let da = (0..c.r * c.k).map(|at| {
        let (q, p) = (at / c.k, at % c.k);
        let term = |i: usize, sum| ds[i * c.r + q].mul_add(c.x[i * c.k + p].to_f32(), sum);
        promised(&rows, c.da[at], &term)
    });
    let db = (0..c.n * c.r).map(|at| {
        let (j, q) = (at / c.r, at % c.r);
        let term = |i: usize, sum| c.s[i * c.r + q].mul_add(c.dy[i * c.n + j].to_f32(), sum);
        promised(&rows, c.db[at], &term)
    });
    [da.collect(), db.collect()]
}

fn by_wide_promise(c: &Case<f64>) -> [Vec<f32>; 2] {
    let (rows, b) = (c.rows(), &c.lora.b);
    let ds = |row: usize, q: usize| {
        let term = |sum: f64, j: usize| c.dy[row * c.n + j].mul_add(b[j * c.r + q], sum);
        c.lora.scale * (0..c.n).fold(0f64, term)
    };
    let ds: Vec<f64> = (0..c.m * c.r).map(|i| ds(i / c.r, i % c.r)).collect();
    let da = (0..c.r * c.k).map(|at| {
        let (q, p) = (at / c.k, at % c.k);
        let term = |i: usize, sum| ds[i * c.r + q].mul_add(c.x[i * c.k + p], sum);
        promised_wide(&rows, c.da[at], &term)
    });
    let db = (0..c.n * c.r).map(|at| {
        let (j, q) = (at / c.r, at % c.r);
        let term = |i: usize, sum| (c.s[i * c.r + q] as f64).mul_add(c.dy[i * c.n + j], sum);
        promised_wide(&rows, c.db[at], &term)
    });
    [da.collect(), db.collect()]
}

/// The last of many rows has blocks enough for 16 lanes each, the others are given 8.
fn shapes(m: usize) -> Vec<[usize; 3]> {
    if m > 4 * CHUNK {
        vec![[5, 3, 2], [8, 4, 40]]
    } else {
        vec![[37, 22, 5], [72, 130, 16], [9, 64, 19]]
    }
}

/// Each executor has the bits of the scalar code, for dA too where dS has no tensor cores in it.
fn check_order<T: Float>(want: impl Fn(&Case<T>) -> [Vec<f32>; 2]) {
    for (m, mixed) in ROWS.iter().flat_map(|&m| [(m, false), (m, true)]) {
        for shape in shapes(m) {
            let case = Case::<T>::new(m, shape, mixed);
            let [da, db] = want(&case);
            for executor in executors() {
                let name = format!("{} {m} {shape:?} mixed {mixed}", executor.name);
                let got = case.run(&executor.device);
                assert_eq!(bits(&got[1]), bits(&db), "{name}: db");
                let halves = matches!(T::DTYPE, DType::Bf16 | DType::F16);
                if !halves || executor.name == "cpu" {
                    assert_eq!(bits(&got[0]), bits(&da), "{name}: da");
                }
            }
        }
    }
}

#[test]
fn sums_are_chains_of_128_rows_added_in_order() {
    check_order::<f32>(by_promise);
    check_order::<f64>(by_wide_promise);
}

#[test]
fn sums_of_halves_are_chains_of_128_rows_added_in_order() {
    check_order::<bf16>(by_promise);
    check_order::<f16>(by_promise);
}

/// Largest error as a share of (min(M, 128) + ⌈M/128⌉)·2^-24·Σ|terms| + 2^-24·|result|, and for dA with
/// the roundings of dS: N + 1 more, or 2N + 32 where tensor cores sum it.
fn share_of_bound<T: Float>(device: &Device, c: &Case<T>) -> f64 {
    let rows = c.rows();
    let steps = (rows.len().min(CHUNK) + rows.len().div_ceil(CHUNK)) as f64;
    let halves = matches!(T::DTYPE, DType::Bf16 | DType::F16) && !matches!(device, Device::Cpu);
    let low = if halves { 2 * c.n + 32 } else { c.n + 1 } as f64;
    let [da, db] = c.run(device);
    let ds: Vec<(f64, f64)> = (0..c.m * c.r)
        .map(|at| {
            let (i, q) = (at / c.r, at % c.r);
            let dy = |j: usize| c.dy[i * c.n + j].to_f64();
            let (sum, size) = dot(c.n, dy, |j| c.lora.b[j * c.r + q].to_f64());
            (c.lora.scale * sum, c.lora.scale * size)
        })
        .collect();
    let mut worst = 0f64;
    let mut check = |got: f32, want: f64, bound: f64| {
        worst = worst.max((got as f64 - want).abs() / (bound + U * want.abs()));
    };
    for (at, &got) in da.iter().enumerate() {
        let (q, p) = (at / c.k, at % c.k);
        let x = |i: usize| c.x[rows[i] * c.k + p].to_f64();
        let (sum, _) = dot(rows.len(), |i| ds[rows[i] * c.r + q].0, x);
        let (_, size) = dot(rows.len(), |i| ds[rows[i] * c.r + q].1, x);
        check(got, c.da[at] as f64 + sum, (steps + low) * U * size);
    }
    for (at, &got) in db.iter().enumerate() {
        let (j, q) = (at / c.r, at % c.r);
        let s = |i: usize| c.s[rows[i] * c.r + q] as f64;
        let (sum, size) = dot(rows.len(), s, |i| c.dy[rows[i] * c.n + j].to_f64());
        check(got, c.db[at] as f64 + sum, steps * U * size);
    }
    worst
}

fn check_bound<T: Float>() {
    for (m, mixed) in [(1, false), (CHUNK + 1, false), (3 * CHUNK + 5, true), (600, false)] {
        let case = Case::<T>::new(m, [41, 35, 16], mixed);
        for executor in executors() {
            let share = share_of_bound(&executor.device, &case);
            assert!(share <= 1.0, "{} {m} mixed {mixed}: {share}", executor.name);
        }
    }
}

#[test]
fn gradients_are_within_the_componentwise_bound() {
    check_bound::<f32>();
    check_bound::<f64>();
    check_bound::<bf16>();
    check_bound::<f16>();
}

/// Chunks are counted among the rows that took the adapter: its gradient has the bits it has alone.
#[test]
fn an_adapter_has_the_gradient_it_has_alone() {
    for m in [CHUNK + 3, 5 * CHUNK + 11] {
        let mixed = Case::<f32>::new(m, [21, 18, 4], true);
        let (rows, [k, n, r]) = (mixed.rows(), [mixed.k, mixed.n, mixed.r]);
        let pick = |v: &[f32], width: usize| -> Vec<f32> {
            rows.iter().flat_map(|&i| v[i * width..][..width].to_vec()).collect()
        };
        let (x, dy, s) = (pick(&mixed.x, k), pick(&mixed.dy, n), pick(&mixed.s, r));
        let alone = Case { m: rows.len(), x, dy, s, index: None, ..Case::new(1, [k, n, r], false) };
        for executor in executors() {
            let (mixed, alone) = (mixed.run(&executor.device), alone.run(&executor.device));
            for (mixed, alone) in mixed.iter().zip(&alone) {
                assert_eq!(bits(mixed), bits(alone), "{} {m}", executor.name);
            }
        }
    }
}

/// From a gradient of zeros, a call with whole chunks and then calls of a chunk each have the bits of one
/// call, as the gradient itself is f32.
#[test]
fn micro_batches_of_a_chunk_have_the_bits_of_one_batch() {
    let m = 5 * CHUNK + 9;
    let mut case = Case::<f32>::new(m, [21, 18, 4], false);
    (case.da, case.db) = (vec![0.0; 4 * 21], vec![0.0; 18 * 4]);
    for executor in executors() {
        let want = case.run(&executor.device);
        for before in [1, 2, 4] {
            let (mut da, mut db) = (case.da.clone(), case.db.clone());
            let later = (before * CHUNK..m).step_by(CHUNK).map(|from| [from, m.min(from + CHUNK)]);
            for rows in [[0, before * CHUNK]].into_iter().chain(later) {
                case.add_rows(&executor.device, rows, &mut da, &mut db);
            }
            assert_eq!(bits(&da), bits(&want[0]), "{} {before}: da", executor.name);
            assert_eq!(bits(&db), bits(&want[1]), "{} {before}: db", executor.name);
        }
    }
}

/// No row, and no row of this adapter: the gradient keeps its value.
#[test]
fn no_rows_add_nothing() {
    for executor in executors() {
        let mut case = Case::<f32>::new(5, [9, 6, 2], true);
        case.index = Some(vec![0, -1, 2, 0, -1]);
        let [da, db] = case.run(&executor.device);
        assert_eq!((&da, &db), (&case.da, &case.db), "{}", executor.name);
        let [da, db] = Case::<f32>::new(0, [9, 6, 2], false).run(&executor.device);
        assert_eq!((&da, &db), (&case.da, &case.db), "{}", executor.name);
    }
}

#[test]
fn threads_and_schedules_change_no_bit() {
    let case = Case::<f32>::new(3 * CHUNK + 5, [150, 70, 18], true);
    let want = in_pool(1, || case.run(&CPU));
    for threads in [2, 5] {
        assert_eq!(in_pool(threads, || case.run(&CPU)), want, "{threads} threads");
    }
    for seed in [1, 2, 3] {
        for set in [KernelSet::Sm80, KernelSet::Sm90a] {
            assert_eq!(case.run(&emulated(set, seed)), want, "seed {seed}");
        }
    }
}

/// NaN in rows of other adapters is never read, and one in a row reaches every element it belongs to.
#[test]
fn rows_of_other_adapters_are_not_read() {
    let clean = Case::<f32>::new(2 * CHUNK, [13, 10, 3], true);
    let mut dirty = Case::<f32>::new(2 * CHUNK, [13, 10, 3], true);
    let other = |i: &usize| dirty.index.as_ref().unwrap()[*i] != 1;
    let others: Vec<usize> = (0..dirty.m).filter(other).collect();
    for i in others {
        dirty.x[i * 13..][..13].fill(f32::NAN);
        dirty.dy[i * 10..][..10].fill(f32::INFINITY);
        dirty.s[i * 3..][..3].fill(f32::NAN);
    }
    for executor in executors() {
        let (clean, dirty) = (clean.run(&executor.device), dirty.run(&executor.device));
        assert_eq!(clean, dirty, "{}", executor.name);
    }
}

/// Rows `shift` elements into device memory, each `gap` elements longer than it is.
struct Rows<T> {
    buffer: DeviceBuffer<T>,
    shape: [usize; 2],
    shift: usize,
    gap: usize,
}

impl<T: Element> Rows<T> {
    fn new(gpu: &Arc<Gpu>, data: &[T], width: usize, [shift, gap]: [usize; 2], pad: T) -> Rows<T> {
        let mut all = vec![pad; shift];
        for row in data.chunks(width) {
            all.extend(row);
            all.extend(vec![pad; gap]);
        }
        let shape = [data.len() / width, width];
        Rows { buffer: DeviceBuffer::from_host(gpu, &all).unwrap(), shape, shift, gap }
    }

    fn dims(&self) -> Dims {
        let [rows, width] = self.shape.map(|n| n as i64);
        Dims::strided(&[rows, width], &[width + self.gap as i64, 1]).unwrap()
    }

    fn view(&self) -> View<'_, T> {
        let all = self.buffer.all();
        // SAFETY: the rows lie in the buffer, which outlives the view.
        unsafe {
            View::from_raw(all.as_ptr().add(self.shift), self.dims(), all.location()).unwrap()
        }
    }

    fn view_mut(&mut self, place: Location) -> ViewMut<'_, T> {
        let dims = self.dims();
        // SAFETY: as above.
        unsafe {
            let start = self.buffer.all_mut().as_mut_ptr().add(self.shift);
            ViewMut::from_raw(start, dims, place).unwrap()
        }
    }

    /// The rows; what lies around them is still `pad`.
    fn rows(&self, same: impl Fn(&T) -> bool) -> Vec<T> {
        let all = self.buffer.to_host().unwrap();
        let (before, rows) = all.split_at(self.shift);
        assert!(before.iter().all(&same));
        let row = |row: &[T]| {
            assert!(row[self.shape[1]..].iter().all(&same), "written between rows");
            row[..self.shape[1]].to_vec()
        };
        rows.chunks(self.shape[1] + self.gap).flat_map(row).collect()
    }
}

fn on_device<T: Float>(device: &Device, c: &Case<T>, place: [usize; 2]) -> [Vec<f32>; 2] {
    let gpu = gpu_of(device);
    let nan = T::from_f64(f64::NAN);
    let (x, dy) = (Rows::new(gpu, &c.x, c.k, place, nan), Rows::new(gpu, &c.dy, c.n, place, nan));
    let s = Rows::new(gpu, &c.s, c.r, place, f32::NAN);
    let (a, b) =
        (Rows::new(gpu, &c.lora.a, c.k, place, nan), Rows::new(gpu, &c.lora.b, c.r, place, nan));
    let index = c.index.as_ref().map(|index| DeviceBuffer::from_host(gpu, index).unwrap());
    let (mut da, mut db) =
        (Rows::new(gpu, &c.da, c.k, place, -9.0), Rows::new(gpu, &c.db, c.r, place, -9.0));
    let here = Location::Device(gpu.info().ordinal);
    let args = LoraGrad {
        x: x.view(),
        dy: dy.view(),
        s: s.view(),
        lora: Lora { a: a.view(), b: b.view(), scale: c.lora.scale },
        adapter: index.as_ref().map(|index| index.all()),
        index: c.wanted(),
        da: da.view_mut(here),
        db: db.view_mut(here),
    };
    lora_grad(device, args).unwrap();
    [da.rows(|&x| x == -9.0), db.rows(|&x| x == -9.0)]
}

fn check_places<T: Float>() {
    let case = Case::<T>::new(CHUNK + 30, [70, 133, 11], true);
    for executor in gpus() {
        let want = case.run(&executor.device);
        for place in [[0, 0], [1, 0], [0, 1], [3, 5], [4, 2], [8, 8]] {
            let got = on_device(&executor.device, &case, place);
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(bits(got), bits(want), "{} {place:?}", executor.name);
            }
        }
    }
}

#[test]
fn gradients_do_not_depend_on_where_operands_lie() {
    check_places::<f32>();
    check_places::<f64>();
    check_places::<bf16>();
    check_places::<f16>();
}

/// What the launches of this op count together; `matmul_low` comes before them.
fn counted<T: Float>(set: KernelSet, c: &Case<T>) -> (Counters, Vec<String>) {
    let driver = Arc::new(EmuDriver::new());
    let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
    on_device(&Device::Gpu(Arc::new(gpu)), c, [0, 0]);
    let (mut total, mut names) = (Counters::default(), Vec::new());
    for (name, counters) in driver.take_launches() {
        if name.starts_with("lora_grad") {
            assert_eq!(counters.local_accesses, 0, "{name}");
            total.add(&counters);
            names.push(name);
        }
    }
    (total, names)
}

/// An instruction in two thirds is a useful multiply-add, banks never conflict, and a rank up to 16 reads
/// X and dY once: the rest of the bytes are sums of chunks.
#[test]
fn gradients_cost_what_they_should() {
    for (m, k, r, kernel, per_fma) in [
        (1152, 2048, 16, "lora_grad_bf16", 1.5),
        (1024, 1024, 8, "lora_grad_8_bf16", 1.85),
        (1024, 1024, 16, "lora_grad_8_bf16", 1.85),
    ] {
        let case = Case::<bf16>::new(m, [k, k, r], false);
        let sums = 2 * 4 * m.div_ceil(CHUNK) * r * 2 * k;
        let least = 2 * m * 2 * k + 2 * 4 * m * r + 2 * 4 * r * 2 * k + sums;
        let reads = if kernel.contains("_8_") { r / 8 } else { 1 };
        for set in [KernelSet::Sm80, KernelSet::Sm90a] {
            let (c, names) = counted(set, &case);
            assert_eq!(names, [kernel, "lora_grad_add_f32"]);
            let bytes = c.global_bytes() as f64 / least as f64;
            let per = c.instructions() as f64 * 32.0 / (m * 2 * k * r) as f64;
            assert!(bytes <= 0.05 + reads as f64, "{kernel} {m} x {k}: {bytes} of the least bytes");
            assert!(per <= per_fma, "{kernel} {m} x {k}: {per} instructions an fma");
            assert_eq!(c.shared_wavefronts, c.shared_wavefronts_ideal);
        }
    }
}

#[test]
fn lora_grad_refuses_bad_input() {
    let changes: Changes<'_, fn(&mut LoraGrad<'_, f32>)> = &[
        ("x", |a| a.x = ones(&[96])),
        ("x", |a| a.x = View::new(&[], &[3, 0]).unwrap()),
        ("dy", |a| a.dy = ones(&[2, 4])),
        ("dy", |a| a.dy = View::new(&[], &[3, 0]).unwrap()),
        ("dy", |a| a.dy = transposed(3, 4)),
        ("s", |a| a.s = ones(&[3, 3])),
        ("s", |a| a.s = transposed(3, 2)),
        ("lora.a", |a| a.lora.a = ones(&[2, 31])),
        ("lora.b", |a| a.lora.b = ones(&[2, 4])),
        ("lora.scale", |a| a.lora.scale = f64::NEG_INFINITY),
        ("adapter", |a| a.adapter = Some(View::new(&[0, 0], &[2]).unwrap())),
        ("adapter", |a| a.adapter = Some(View::new(&[0, -2, 0], &[3]).unwrap())),
        ("index", |a| a.index = -1),
        ("index", |a| a.index = 1),
        ("da", |a| a.da = ViewMut::new(&mut [], &[0, 32]).unwrap()),
        ("db", |a| a.db = ViewMut::new(&mut [], &[0, 2]).unwrap()),
    ];
    for (arg, change) in changes {
        let (mut da, mut db) = ([5f32; R * K], [5f32; N * R]);
        let mut args = LoraGrad {
            x: ones(&[3, 32]),
            dy: ones(&[3, 4]),
            s: ones(&[3, 2]),
            lora: good_lora(),
            adapter: None,
            index: 0,
            da: ViewMut::rows_of(&mut da, K).unwrap(),
            db: ViewMut::rows_of(&mut db, R).unwrap(),
        };
        change(&mut args);
        refused(lora_grad(&CPU, args), "lora_grad", arg);
        assert_eq!((da, db), ([5.0; R * K], [5.0; N * R]), "{arg}");
    }
}

/// Bounds are those of the product tests.
fn gradients<T: Float>() {
    let [m, n, k, r] = [37, 9, 70, 3];
    let (x, dy, s) = (random::<T>(8, m * k), random::<T>(9, m * n), random::<f32>(10, m * r));
    weight_gradient([m, n, k], &dy, &x);
    let adapter = Adapter { a: random::<T>(11, r * k), b: random::<T>(12, n * r), scale: 0.5 };
    let index: Vec<i32> = (0..m).map(|i| (i % 3) as i32 - 1).collect();
    adapter_gradient([m, n, k], &x, &dy, &s, adapter.view([n, k, r]), Some(&index), 0);
}

#[test]
fn gradients_of_weights_and_adapters_in_other_dtypes() {
    gradients::<f16>();
    gradients::<bf16>();
    gradients::<f64>();
}
