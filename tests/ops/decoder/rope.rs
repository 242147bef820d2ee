//! RMSNorm in batches, rotary embedding, SwiGLU and token embedding: f64 oracles, gradients, invariances, bad input.

use crate::common::devices::{executors, on_all};
use crate::common::{
    bits, bits_of, check_gradient, f32s, f64s, max_rel, normals, same_on_any_pool, ulps_f32,
};
use gradus::ops::{
    Embedding, EmbeddingBwd, RmsNorm, RmsNormBwd, Rope, Swiglu, SwigluBwd, embedding,
    embedding_bwd, rmsnorm, rmsnorm_bwd, rope, swiglu, swiglu_bwd,
};
use gradus::rng::{Purpose, Rng};
use gradus::{DType, Device, Error, View, ViewMut, bf16};
use proptest::prelude::*;

const CPU: Device = Device::Cpu;

/// The error names the op and the argument and holds `text`.
fn refused(result: Result<(), Error>, arg: &str, text: &str) {
    let error = result.expect_err(arg);
    let message = error.to_string();
    assert_eq!(error.code(), 1, "{message}");
    assert!(message.contains(&format!("argument `{arg}`")), "{arg}: {message}");
    assert!(message.contains(text), "{text}: {message}");
}

// ---- rmsnorm ----

#[test]
fn rmsnorm_does_not_depend_on_batch_or_threads() {
    let (rows, d) = (600, 150);
    let (x, dy) = (f32s(&normals(30, rows * d, 1.0)), f32s(&normals(31, rows * d, 1.0)));
    let weight = f32s(&normals(32, d, 1.0));
    let run_on = |device: &Device, x: &[f32], dy: &[f32]| {
        let mut y = vec![f32::NAN; x.len()];
        let (mut dx, mut dweight) = (y.clone(), vec![0f32; d]);
        let args = RmsNorm {
            x: View::rows_of(x, d).unwrap(),
            weight: (&weight).into(),
            eps: 1e-6,
            y: ViewMut::rows_of(&mut y, d).unwrap(),
            rstd: None,
        };
        rmsnorm(device, args).unwrap();
        let args = RmsNormBwd {
            x: View::rows_of(x, d).unwrap(),
            weight: (&weight).into(),
            eps: 1e-6,
            dy: View::rows_of(dy, d).unwrap(),
            residual: None,
            dx: ViewMut::rows_of(&mut dx, d).unwrap(),
            dweight: Some((&mut dweight).into()),
        };
        rmsnorm_bwd(device, args).unwrap();
        [y, dx, dweight]
    };
    let run = |x: &[f32], dy: &[f32]| run_on(&CPU, x, dy);
    on_all(
        |device| run_on(device, &x, &dy).concat(),
        |name, cpu, gpu| {
            assert_eq!(bits(cpu), bits(gpu), "{name}");
        },
    );
    let all = same_on_any_pool(|| run(&x, &dy).concat());
    for i in [0, 77, 599] {
        let [y, dx, _] = run(&x[i * d..][..d], &dy[i * d..][..d]);
        assert_eq!(bits(&y), bits(&all[i * d..][..d]));
        assert_eq!(bits(&dx), bits(&all[(rows + i) * d..][..d]));
    }
    for (i, y) in all[..rows * d].iter().enumerate() {
        let row = &x[i / d * d..][..d];
        let mean = row.iter().map(|&x| x as f64 * x as f64).sum::<f64>() / d as f64;
        let want = x[i] as f64 / (mean + 1e-6).sqrt() * weight[i % d] as f64;
        assert!(ulps_f32(*y, want, want) <= 0.500_001);
    }
}

// ---- rope ----

/// Tables for `positions` rows with the frequencies 10000^(-2i/D).
fn tables(positions: usize, d: usize) -> (Vec<f32>, Vec<f32>) {
    let angle = |n: usize| {
        let (p, i) = (n / (d / 2), n % (d / 2));
        p as f64 * 10000f64.powf(-2.0 * i as f64 / d as f64)
    };
    let table = |f: fn(f64) -> f64| (0..positions * d / 2).map(|n| f(angle(n)) as f32).collect();
    (table(f64::cos), table(f64::sin))
}

fn rotate<T: gradus::dtype::Float>(
    x: &[T],
    shape: [i64; 3],
    positions: &[i32],
    table_rows: usize,
    inverse: bool,
) -> Vec<T> {
    let d = shape[2] as usize;
    let (cos, sin) = tables(table_rows, d);
    let run = |device: &Device| {
        let mut y = x.to_vec();
        let args = Rope {
            x: ViewMut::new(&mut y, &shape).unwrap(),
            positions: positions.into(),
            cos: View::rows_of(&cos, d / 2).unwrap(),
            sin: View::rows_of(&sin, d / 2).unwrap(),
            inverse,
        };
        rope(device, args).unwrap();
        y
    };
    on_all(run, |name, cpu, gpu| assert_eq!(bits_of(cpu), bits_of(gpu), "{name}"))
}

#[test]
fn rope_is_the_rotation_rounded_once() {
    let (t, h, d) = (5, 3, 10);
    let x = f32s(&normals(1, t * h * d, 2.0));
    let positions = [0, 7, 3, 7, 11];
    let y = rotate(&x, [5, 3, 10], &positions, 12, false);
    let (cos, sin) = tables(12, d);
    for (n, &got) in y.iter().enumerate() {
        let (token, i) = (n / (h * d), n % d);
        let row = positions[token] as usize * d / 2 + i % (d / 2);
        let (c, s) = (cos[row] as f64, sin[row] as f64);
        let partner = if i < d / 2 { x[n + d / 2] } else { x[n - d / 2] } as f64;
        let sign = if i < d / 2 { -1.0 } else { 1.0 };
        let want = x[n] as f64 * c + sign * partner * s;
        assert!(ulps_f32(got, want, want) <= 0.500_001, "{n}: {got} against {want}");
    }
    assert_eq!(&y[..h * d], &x[..h * d], "position 0 is the identity");
}

#[test]
fn rope_gradient_is_the_inverse_rotation() {
    let (t, h, d) = (4, 2, 8);
    let (x, g) = (normals(2, t * h * d, 1.0), normals(3, t * h * d, 1.0));
    let shape = [t as i64, h as i64, d as i64];
    let positions = [5, 0, 9, 2];
    let back = rotate(&g, shape, &positions, 10, true);
    let f = |x: &[f64]| {
        let y = rotate(x, shape, &positions, 10, false);
        y.iter().zip(&g).map(|(y, g)| y * g).sum::<f64>()
    };
    let worst = check_gradient(f, &x, &back, 1e-4);
    assert!(worst < 1e-8, "{worst}");
}

#[test]
fn rope_touches_only_its_part_of_a_fused_row() {
    executors().iter().for_each(|executor| touches_only_its_part(&executor.device));
}

fn touches_only_its_part(device: &Device) {
    // Rows of 20: two heads of query, then 12 elements that must stay.
    let data = f32s(&normals(4, 60, 1.0));
    let mut fused = data.clone();
    let (cos, sin) = tables(9, 4);
    let args = Rope {
        x: ViewMut::strided(&mut fused, &[3, 2, 4], &[20, 4, 1]).unwrap(),
        positions: View::new(&[8, 1, 2], &[3]).unwrap(),
        cos: View::rows_of(&cos, 2).unwrap(),
        sin: View::rows_of(&sin, 2).unwrap(),
        inverse: false,
    };
    rope(device, args).unwrap();
    let picked: Vec<f32> = data.chunks(20).flat_map(|row| row[..8].to_vec()).collect();
    let alone = rotate(&picked, [3, 2, 4], &[8, 1, 2], 9, false);
    for (row, (fused, data)) in fused.chunks(20).zip(data.chunks(20)).enumerate() {
        assert_eq!(bits(&fused[..8]), bits(&alone[row * 8..][..8]));
        assert_eq!(bits(&fused[8..]), bits(&data[8..]));
    }
}

#[test]
fn rope_does_not_depend_on_batch_or_threads() {
    let (t, h, d) = (300, 4, 32);
    let x = f32s(&normals(5, t * h * d, 1.0));
    let positions: Vec<i32> = (0..t as i32).map(|i| i * 7 % 40).collect();
    let all =
        same_on_any_pool(|| rotate(&x, [t as i64, h as i64, d as i64], &positions, 40, false));
    for i in [0, 17, 299] {
        let row = &x[i * h * d..][..h * d];
        let alone = rotate(row, [1, 4, 32], &positions[i..=i], 40, false);
        assert_eq!(bits(&alone), bits(&all[i * h * d..][..h * d]));
    }
}

proptest! {
    #[test]
    fn rope_keeps_norms_and_depends_on_distance(
        seed in 0u64..1000, p in 0i32..50, distance in 0i32..20, shift in 0i32..30,
    ) {
        let (x, y) = (normals(seed, 16, 1.0), normals(seed + 7919, 16, 1.0));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let turn = |x: &[f64], p: i32| rotate(x, [1, 1, 16], &[p], 100, false);
        let turned = turn(&x, p);
        // The tables are f32: c² + s² = 1 within 2^-23.
        prop_assert!((dot(&turned, &turned) / dot(&x, &x) - 1.0).abs() < 2e-7);
        let back = rotate(&turned, [1, 1, 16], &[p], 100, true);
        for (a, b) in back.iter().zip(&x) {
            prop_assert!((a - b).abs() <= 2e-7 * b.abs().max(1e-300) , "{} {}", a, b);
        }
        let here = dot(&turn(&x, p), &turn(&y, p + distance));
        let there = dot(&turn(&x, p + shift), &turn(&y, p + distance + shift));
        let size = (dot(&x, &x) * dot(&y, &y)).sqrt();
        prop_assert!((here - there).abs() <= 1e-6 * size, "{} {}", here, there);
    }
}

#[test]
fn rope_refuses_bad_input_and_writes_nothing() {
    let (cos, sin) = tables(4, 8);
    let table = || View::rows_of(&cos, 4).unwrap();
    let run =
        |shape: &[i64], strides: &[i64], positions: &[i32], c: View<'_, f32>, s: View<'_, f32>| {
            let mut x = vec![1f32; 64];
            let args = Rope {
                x: ViewMut::strided(&mut x, shape, strides).unwrap(),
                positions: positions.into(),
                cos: c,
                sin: s,
                inverse: false,
            };
            let result = rope(&CPU, args);
            assert!(result.is_ok() || x.iter().all(|&x| x == 1.0));
            result
        };
    let (shape, strides) = ([2, 2, 8], [16, 8, 1]);
    run(&shape, &strides, &[0, 3], table(), table()).unwrap();
    refused(run(&[4, 8], &[8, 1], &[0, 3], table(), table()), "x", "rank 3");
    refused(run(&[2, 2, 7], &[16, 8, 1], &[0, 3], table(), table()), "x", "even");
    refused(run(&[2, 2, 0], &[16, 8, 1], &[0, 3], table(), table()), "x", "even");
    refused(run(&[2, 2, 8], &[1, 2, 4], &[0, 3], table(), table()), "x", "contiguous");
    refused(run(&shape, &strides, &[0], table(), table()), "positions", "[2]");
    refused(run(&shape, &strides, &[0, 4], table(), table()), "positions", "4 at index 1");
    refused(run(&shape, &strides, &[-1, 0], table(), table()), "positions", "0..4");
    let narrow = View::new(&cos, &[4, 3]).unwrap();
    refused(run(&shape, &strides, &[0, 3], narrow, table()), "cos", "[4, 4]");
    let short = View::new(&sin, &[3, 4]).unwrap();
    refused(run(&shape, &strides, &[0, 3], table(), short), "sin", "[4, 4]");
}

// ---- swiglu ----

fn silu(x: f64) -> f64 {
    if x < -700.0 { 0.0 } else { x / (1.0 + (-x).exp()) }
}

/// Both formed in f64 and rounded once: apart by the last bit of `T` at most.
fn agree<T: gradus::dtype::Float>(name: &str, cpu: &[T], gpu: &[T]) {
    let unit = match T::DTYPE {
        DType::Bf16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        DType::F32 => 2f64.powi(-23),
        _ => 2f64.powi(-50),
    };
    for (a, b) in cpu.iter().zip(gpu) {
        let (a, b) = (a.to_f64(), b.to_f64());
        assert!((a - b).abs() <= unit * a.abs() + 1e-44, "{name}: {b:e}, the CPU has {a:e}");
    }
}

fn gate<T: gradus::dtype::Float>(gate: &[T], up: &[T], width: usize) -> Vec<T> {
    let run = |device: &Device| {
        let mut y = vec![T::from_f64(f64::NAN); gate.len()];
        let args = Swiglu {
            gate: View::rows_of(gate, width).unwrap(),
            up: View::rows_of(up, width).unwrap(),
            y: ViewMut::rows_of(&mut y, width).unwrap(),
        };
        swiglu(device, args).unwrap();
        y
    };
    on_all(run, |name, cpu, gpu| agree(name, cpu, gpu))
}

fn gate_bwd<T: gradus::dtype::Float>(g: &[T], up: &[T], dy: &[T], width: usize) -> [Vec<T>; 2] {
    let run = |device: &Device| {
        let nan = vec![T::from_f64(f64::NAN); g.len()];
        let (mut dgate, mut dup) = (nan.clone(), nan);
        let args = SwigluBwd {
            gate: View::rows_of(g, width).unwrap(),
            up: View::rows_of(up, width).unwrap(),
            dy: View::rows_of(dy, width).unwrap(),
            dgate: ViewMut::rows_of(&mut dgate, width).unwrap(),
            dup: ViewMut::rows_of(&mut dup, width).unwrap(),
        };
        swiglu_bwd(device, args).unwrap();
        [dgate, dup]
    };
    on_all(run, |name, cpu, gpu| {
        agree(name, &cpu[0], &gpu[0]);
        agree(name, &cpu[1], &gpu[1]);
    })
}

#[test]
fn swiglu_is_correctly_rounded_over_the_whole_range() {
    let mut g = f32s(&normals(10, 4000, 4.0));
    g.extend([0.0, -0.0, 88.8, -88.8, 104.0, -104.0, 1e4, -1e4, 1e-30, -1e-30]);
    let up = f32s(&normals(11, g.len(), 3.0));
    let y = gate(&g, &up, 10);
    for i in 0..g.len() {
        let want = silu(g[i] as f64) * up[i] as f64;
        assert!(ulps_f32(y[i], want, want) <= 0.500_001, "{i}: {} gives {}", g[i], y[i]);
    }
    let (g16, u16): (Vec<bf16>, Vec<bf16>) =
        g.iter().zip(&up).map(|(&g, &u)| (bf16::from_f32(g), bf16::from_f32(u))).unzip();
    for (i, y) in gate(&g16, &u16, 10).into_iter().enumerate() {
        let want = silu(g16[i].to_f64()) * u16[i].to_f64();
        assert!((y.to_f64() - want).abs() <= want.abs() * 2f64.powi(-8) + 1e-40, "{i}");
    }
}

#[test]
fn swiglu_gradients_match_central_differences() {
    let (g, up) = (normals(12, 60, 2.0), normals(13, 60, 1.0));
    let dy = normals(14, 60, 1.0);
    let [dgate, dup] = gate_bwd(&g, &up, &dy, 12);
    let dot = |y: Vec<f64>| y.iter().zip(&dy).map(|(y, g)| y * g).sum::<f64>();
    let worst = check_gradient(|x| dot(gate(x, &up, 12)), &g, &dgate, 1e-5);
    assert!(worst < 1e-6, "dgate: {worst}");
    let worst = check_gradient(|x| dot(gate(&g, x, 12)), &up, &dup, 1e-5);
    assert!(worst < 1e-6, "dup: {worst}");
    let [f_gate, f_up] = gate_bwd(&f32s(&g), &f32s(&up), &f32s(&dy), 12);
    assert!(max_rel(&f64s(&f_gate), &dgate, 1e-3) < 1e-5);
    assert!(max_rel(&f64s(&f_up), &dup, 1e-3) < 1e-5);
    let [far, _] = gate_bwd(&[1e4f32, -1e4, 300.0, -300.0], &[1.0; 4], &[2.0; 4], 4);
    assert_eq!(far, [2.0, 0.0, 2.0, 0.0]);
}

#[test]
fn swiglu_reads_halves_and_does_not_depend_on_batch_or_threads() {
    let (rows, width) = (200, 37);
    let fused = f32s(&normals(15, rows * 2 * width, 2.0));
    let shape = [rows as i64, width as i64];
    let strides = [2 * width as i64, 1];
    let all = same_on_any_pool(|| {
        let mut y = vec![f32::NAN; rows * width];
        let args = Swiglu {
            gate: View::strided(&fused, &shape, &strides).unwrap(),
            up: View::strided(&fused[width..], &shape, &strides).unwrap(),
            y: ViewMut::rows_of(&mut y, width).unwrap(),
        };
        swiglu(&CPU, args).unwrap();
        y
    });
    for i in [0, 99, 199] {
        let row = &fused[i * 2 * width..][..2 * width];
        let alone = gate(&row[..width], &row[width..], width);
        assert_eq!(bits(&alone), bits(&all[i * width..][..width]));
    }
    let (g, up, dy) = (&fused[..7400], &fused[7400..], vec![0.5f32; 7400]);
    same_on_any_pool(|| gate_bwd(g, up, &dy, width).concat());
}

#[test]
fn swiglu_refuses_bad_input() {
    let x = vec![1f32; 12];
    let right = || View::new(&x, &[3, 4]).unwrap();
    let wrong = View::new(&x, &[3, 3]).unwrap();
    let (mut a, mut b) = (vec![7f32; 12], vec![7f32; 12]);
    let mut run = |gate, up, y: &[i64]| {
        swiglu(&CPU, Swiglu { gate, up, y: ViewMut::new(&mut a, y).unwrap() })
    };
    refused(run(View::new(&x, &[12]).unwrap(), right(), &[3, 4]), "gate", "rank 2");
    refused(run(right(), wrong, &[3, 4]), "up", "[3, 4]");
    refused(run(right(), right(), &[4, 3]), "y", "[3, 4]");
    let columns = View::strided(&x, &[3, 4], &[1, 3]).unwrap();
    refused(run(columns, right(), &[3, 4]), "gate", "contiguous");
    let mut run = |gate, up, dy, dgate: &[i64], dup: &[i64]| {
        let dgate = ViewMut::new(&mut a, dgate).unwrap();
        let dup = ViewMut::new(&mut b, dup).unwrap();
        swiglu_bwd(&CPU, SwigluBwd { gate, up, dy, dgate, dup })
    };
    let s = [3, 4];
    refused(run(View::from(&x), right(), right(), &s, &s), "gate", "rank 2");
    refused(run(right(), wrong, right(), &s, &s), "up", "[3, 4]");
    refused(run(right(), right(), wrong, &s, &s), "dy", "[3, 4]");
    refused(run(right(), right(), right(), &[4, 3], &s), "dgate", "[3, 4]");
    refused(run(right(), right(), right(), &s, &[4, 3]), "dup", "[3, 4]");
    assert!(a.iter().chain(&b).all(|&x| x == 7.0));
}

// ---- embedding ----

#[test]
fn embedding_copies_rows() {
    executors().iter().for_each(|executor| copies_rows(&executor.device));
}

fn copies_rows(device: &Device) {
    let (v, d) = (11, 5);
    let table = f32s(&normals(20, v * 8, 1.0));
    let ids = [3, 0, 10, 3];
    let mut buffer = [9f32; 4 * 7 + 2];
    let args = Embedding {
        ids: (&ids[..]).into(),
        table: View::strided(&table, &[11, 5], &[8, 1]).unwrap(),
        y: ViewMut::strided(&mut buffer[1..], &[4, 5], &[7, 1]).unwrap(),
    };
    embedding(device, args).unwrap();
    for (t, &id) in ids.iter().enumerate() {
        let row = &buffer[1 + t * 7..][..7];
        assert_eq!(bits(&row[..d]), bits(&table[id as usize * 8..][..d]));
        assert_eq!(row[d..], [9.0, 9.0], "guard");
    }
    assert_eq!(buffer[0], 9.0);
}

fn scatter(ids: &[i32], dy: &[f32], start: &[f32], d: usize) -> Vec<f32> {
    let run = |device: &Device| scatter_on(device, ids, dy, start, d);
    on_all(run, |name, cpu, gpu| assert_eq!(bits(cpu), bits(gpu), "{name}"))
}

fn scatter_on(device: &Device, ids: &[i32], dy: &[f32], start: &[f32], d: usize) -> Vec<f32> {
    let mut dtable = start.to_vec();
    let args = EmbeddingBwd {
        ids: ids.into(),
        dy: View::rows_of(dy, d).unwrap(),
        dtable: ViewMut::rows_of(&mut dtable, d).unwrap(),
    };
    embedding_bwd(device, args).unwrap();
    dtable
}

#[test]
fn embedding_gradient_adds_in_token_order_and_leaves_other_rows() {
    let (t, v, d) = (3000, 50, 37);
    let mut rng = Rng::new(21, Purpose::User, [0, 0, 0]);
    let ids: Vec<i32> = (0..t).map(|_| rng.below(v / 2) as i32 * 2).collect();
    let dy = f32s(&normals(22, t * d, 1.0));
    let start = f32s(&normals(23, v * d, 1.0));
    let got = same_on_any_pool(|| scatter_on(&CPU, &ids, &dy, &start, d));
    let mut want = f64s(&start);
    for (row, &id) in dy.chunks(d).zip(&ids) {
        let want = &mut want[id as usize * d..][..d];
        want.iter_mut().zip(row).for_each(|(w, g)| *w += *g as f64);
    }
    assert_eq!(bits(&got), bits(&f32s(&want)));
    assert_eq!(bits(&got[d..2 * d]), bits(&start[d..2 * d]), "row 1 has no token");
}

proptest! {
    /// A vocabulary row sees its own tokens only, in their order.
    #[test]
    fn embedding_gradient_of_a_row_ignores_other_tokens(
        ids in prop::collection::vec(0i32..6, 0..40), row in 0i32..6, seed in 0u64..100,
    ) {
        let d = 3;
        let dy = f32s(&normals(seed, ids.len() * d, 1.0));
        let all = scatter(&ids, &dy, &[0.0; 18], d);
        let own: Vec<usize> = (0..ids.len()).filter(|&t| ids[t] == row).collect();
        let own_dy: Vec<f32> = own.iter().flat_map(|&t| dy[t * d..][..d].to_vec()).collect();
        let alone = scatter(&vec![row; own.len()], &own_dy, &[0.0; 18], d);
        let at = row as usize * d..row as usize * d + d;
        prop_assert_eq!(bits(&all[at.clone()]), bits(&alone[at]));
    }
}

#[test]
fn embedding_refuses_bad_input_and_writes_nothing() {
    let table = vec![1f32; 12];
    let mut out = vec![7f32; 12];
    let mut run = |ids: View<'_, i32>, table: View<'_, f32>, y: &[i64]| {
        embedding(&CPU, Embedding { ids, table, y: ViewMut::new(&mut out, y).unwrap() })
    };
    let ids = |ids: &'static [i32]| View::from(ids);
    let right = || View::new(&table, &[4, 3]).unwrap();
    refused(run(View::new(&[1, 2], &[1, 2]).unwrap(), right(), &[2, 3]), "ids", "rank 1");
    refused(run(ids(&[1, 4]), right(), &[2, 3]), "ids", "4 at index 1");
    refused(run(ids(&[-1, 0]), right(), &[2, 3]), "ids", "0..4");
    refused(run(ids(&[i32::MIN, 0]), right(), &[2, 3]), "ids", "0..4");
    refused(run(ids(&[1, 3]), View::from(&table), &[2, 3]), "table", "rank 2");
    refused(run(ids(&[1, 3]), right(), &[3, 2]), "y", "[2, 3]");
    run(ids(&[]), right(), &[0, 3]).unwrap();
    let mut run = |ids: View<'_, i32>, dy: View<'_, f32>, dtable: &[i64]| {
        let dtable = ViewMut::new(&mut out, dtable).unwrap();
        embedding_bwd(&CPU, EmbeddingBwd { ids, dy, dtable })
    };
    let dy = || View::new(&table, &[2, 3]).unwrap();
    refused(run(View::new(&[1, 2], &[1, 2]).unwrap(), dy(), &[4, 3]), "ids", "rank 1");
    refused(run(ids(&[1, 4]), dy(), &[4, 3]), "ids", "4 at index 1");
    refused(run(ids(&[1, -3]), dy(), &[4, 3]), "ids", "-3 at index 1");
    refused(run(ids(&[1]), dy(), &[4, 3]), "dy", "[1, 3]");
    refused(run(ids(&[1, 3]), dy(), &[12]), "dtable", "rank 2");
    run(ids(&[]), View::new(&[], &[0, 3]).unwrap(), &[4, 3]).unwrap();
    assert!(out.iter().all(|&x| x == 7.0));
}
