//! SwiGLU: f64 oracle, gradients, invariances, bad input, every dtype.

use crate::common::devices::{executors, on_all};
use crate::common::{
    bits, check_gradient, f32s, f64s, max_rel, normals, refused_with, same_on_any_pool, ulps_f32,
};
use crate::products::support::random;
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{DType, Device, View, ViewMut, bf16, f16};

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

/// Gates of every size, those next to the zero of silu' at -1.2785 among them: on every executor results and gradients
/// are within half a unit of exact, and an eighth more.
fn near_exact<T: Float>(device: &Device, name: &str, unit: f64, least: f64) {
    let gates: Vec<T> = (0..=u16::MAX)
        .map(|i| T::from_f64(bf16::from_bits(i).to_f64()))
        .chain((0..2000).map(|i| T::from_f64(-1.2785 + (i - 1000) as f64 * 2f64.powi(-12))))
        .filter(|g| g.to_f64().abs() < 80.0 && g.to_f64().abs() > 1e-8)
        .collect();
    let n = gates.len() / 8 * 8;
    let (g, up, dy) = (&gates[..n], random::<T>(1, n), random::<T>(2, n));
    let [mut y, mut dgate, mut dup] = [(); 3].map(|()| vec![T::from_f64(f64::NAN); n]);
    let rows = |x| View::rows_of(x, 8).unwrap();
    let out = ViewMut::rows_of(&mut y, 8).unwrap();
    swiglu(device, Swiglu { gate: rows(g), up: rows(&up), y: out }).unwrap();
    let args = SwigluBwd {
        gate: rows(g),
        up: rows(&up),
        dy: rows(&dy),
        dgate: ViewMut::rows_of(&mut dgate, 8).unwrap(),
        dup: ViewMut::rows_of(&mut dup, 8).unwrap(),
    };
    swiglu_bwd(device, args).unwrap();
    for i in 0..n {
        let near = |got: T, want: f64, what: &str| {
            let (got, bound) = (got.to_f64(), 1.25 * unit * want.abs() + least);
            let gate = g[i].to_f64();
            assert!((got - want).abs() <= bound, "{name}: {what} of {gate:e}: {got:e}, {want:e}");
        };
        let (x, u, d) = (g[i].to_f64(), up[i].to_f64(), dy[i].to_f64());
        let e = (-x.abs()).exp();
        let (s, rest) = if x < 0.0 { (e, 1.0) } else { (1.0, e) };
        let (s, rest) = (s / (1.0 + e), rest / (1.0 + e));
        near(y[i], x * s * u, "y");
        near(dgate[i], d * u * s * (1.0 + x * rest), "dgate");
        near(dup[i], d * x * s, "dup");
    }
}

#[test]
fn swiglu_in_halves_is_within_five_eighths_of_a_unit() {
    for executor in executors() {
        // Half a unit of a number, and the least one above 0.
        near_exact::<bf16>(&executor.device, &executor.name, 2f64.powi(-8), 2f64.powi(-133));
        near_exact::<f16>(&executor.device, &executor.name, 2f64.powi(-11), 2f64.powi(-24));
    }
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
        swiglu(&Device::Cpu, args).unwrap();
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
        swiglu(&Device::Cpu, Swiglu { gate, up, y: ViewMut::new(&mut a, y).unwrap() })
    };
    refused_with(run(View::new(&x, &[12]).unwrap(), right(), &[3, 4]), "gate", "rank 2");
    refused_with(run(right(), wrong, &[3, 4]), "up", "[3, 4]");
    refused_with(run(right(), right(), &[4, 3]), "y", "[3, 4]");
    let columns = View::strided(&x, &[3, 4], &[1, 3]).unwrap();
    refused_with(run(columns, right(), &[3, 4]), "gate", "contiguous");
    let mut run = |gate, up, dy, dgate: &[i64], dup: &[i64]| {
        let dgate = ViewMut::new(&mut a, dgate).unwrap();
        let dup = ViewMut::new(&mut b, dup).unwrap();
        swiglu_bwd(&Device::Cpu, SwigluBwd { gate, up, dy, dgate, dup })
    };
    let s = [3, 4];
    refused_with(run(View::from(&x), right(), right(), &s, &s), "gate", "rank 2");
    refused_with(run(right(), wrong, right(), &s, &s), "up", "[3, 4]");
    refused_with(run(right(), right(), wrong, &s, &s), "dy", "[3, 4]");
    refused_with(run(right(), right(), right(), &[4, 3], &s), "dgate", "[3, 4]");
    refused_with(run(right(), right(), right(), &s, &[4, 3]), "dup", "[3, 4]");
    assert!(a.iter().chain(&b).all(|&x| x == 7.0));
}

/// The exponential may differ in f64's last bit: the results are equal or neighbors.
fn gates<T: Float>(unit: f64) {
    let (t, f) = (4, 33);
    let [gate, up, dy] = [5, 6, 7].map(|seed| random::<T>(seed, t * f));
    let run = |device: &Device| {
        let nan = vec![T::from_f64(f64::NAN); t * f];
        let (mut y, mut dgate, mut dup) = (nan.clone(), nan.clone(), nan);
        let rows = |x| View::rows_of(x, f).unwrap();
        let args =
            Swiglu { gate: rows(&gate), up: rows(&up), y: ViewMut::rows_of(&mut y, f).unwrap() };
        swiglu(device, args).unwrap();
        let args = SwigluBwd {
            gate: rows(&gate),
            up: rows(&up),
            dy: rows(&dy),
            dgate: ViewMut::rows_of(&mut dgate, f).unwrap(),
            dup: ViewMut::rows_of(&mut dup, f).unwrap(),
        };
        swiglu_bwd(device, args).unwrap();
        [y, dgate, dup].concat()
    };
    on_all(run, |name, cpu, gpu| {
        for (a, b) in cpu.iter().zip(gpu) {
            let (a, b) = (a.to_f64(), b.to_f64());
            assert!((a - b).abs() <= unit * a.abs(), "{name} {}: {a} and {b}", T::DTYPE.name());
        }
    });
}

#[test]
fn swiglu_in_other_dtypes_is_the_cpus_or_its_neighbor() {
    gates::<f16>(2f64.powi(-10));
    gates::<bf16>(2f64.powi(-7));
    gates::<f64>(1e-14);
}
