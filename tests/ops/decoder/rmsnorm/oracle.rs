//! RMSNorm: closed form, gradients by central differences, strides, bad input.

use crate::common::devices::on_all;
use crate::common::{bits, bits_of, check_gradient, f32s, normals, same_on_any_pool, ulps_f32};
use gradus::dtype::Float;
use gradus::ops::{RmsNorm, RmsNormBwd, rmsnorm, rmsnorm_bwd};
use gradus::{Device, View, ViewMut, bf16, f16};

const EPS: f64 = 1e-5;

fn forward(x: &[f64], weight: &[f64], d: usize) -> Vec<f64> {
    let run = |device: &Device| {
        let (mut y, mut rstd) = (vec![0.0; x.len()], vec![0f32; x.len() / d]);
        let args = RmsNorm {
            x: View::rows_of(x, d).unwrap(),
            weight: weight.into(),
            eps: EPS,
            y: ViewMut::rows_of(&mut y, d).unwrap(),
            rstd: Some((&mut rstd).into()),
        };
        rmsnorm(device, args).unwrap();
        (y, rstd)
    };
    on_all(run, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name}")).0
}

/// Every dtype, odd widths, rows with gaps: the bits of the CPU.
#[test]
fn rmsnorm_has_the_same_bits_on_every_executor() {
    fn check<T: Float>() {
        // Rows of one team and of many, and longer than shared memory holds at a time; the gap of 8 keeps pieces of 16
        // bytes whole, that of 3 does not.
        let shapes =
            [(1, 1, 3), (17, 31, 3), (3, 128, 8), (33, 130, 3), (2, 1040, 8), (1, 6400, 8)];
        for (rows, d, gap) in shapes {
            let of = |seed, n| -> Vec<T> {
                normals(seed, n, 1.0).into_iter().map(T::from_f64).collect()
            };
            let (x, dy, weight) = (of(1, rows * (d + gap)), of(2, rows * d), of(3, d));
            let strides = [(d + gap) as i64, 1];
            let x = View::strided(&x, &[rows as i64, d as i64], &strides).unwrap();
            let run = |device: &Device| {
                let nan = vec![T::from_f64(f64::NAN); rows * d];
                let (mut y, mut dx, mut dweight) = (nan.clone(), nan, vec![0.5f32; d]);
                let (weight, y_out) = ((&weight).into(), ViewMut::rows_of(&mut y, d).unwrap());
                let args = RmsNorm { x, weight, eps: EPS, y: y_out, rstd: None };
                rmsnorm(device, args).unwrap();
                let args = RmsNormBwd {
                    x,
                    weight,
                    eps: EPS,
                    dy: View::rows_of(&dy, d).unwrap(),
                    residual: None,
                    dx: ViewMut::rows_of(&mut dx, d).unwrap(),
                    dweight: Some((&mut dweight).into()),
                };
                rmsnorm_bwd(device, args).unwrap();
                (bits_of(&y), bits_of(&dx), bits_of(&dweight))
            };
            on_all(run, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name} {rows} x {d}"));
        }
    }
    check::<f32>();
    check::<f64>();
    check::<bf16>();
    check::<f16>();
}

#[test]
fn rmsnorm_gradients_match_central_differences() {
    let (rows, d) = (5, 7);
    let (x, weight) = (normals(1, rows * d, 1.5), normals(2, d, 1.0));
    let dy = normals(3, rows * d, 1.0);
    let (mut dx, mut dweight) = (vec![0.0; rows * d], vec![0f32; d]);
    let args = RmsNormBwd {
        x: View::rows_of(&x, d).unwrap(),
        weight: (&weight).into(),
        eps: EPS,
        dy: View::rows_of(&dy, d).unwrap(),
        residual: None,
        dx: ViewMut::rows_of(&mut dx, d).unwrap(),
        dweight: Some((&mut dweight).into()),
    };
    rmsnorm_bwd(&Device::Cpu, args).unwrap();
    let dot = |y: Vec<f64>| y.iter().zip(&dy).map(|(a, b)| a * b).sum::<f64>();
    let worst = check_gradient(|x| dot(forward(x, &weight, d)), &x, &dx, 1e-5);
    assert!(worst < 1e-6, "dx: {worst}");
    let dweight: Vec<f64> = dweight.iter().map(|&g| g as f64).collect();
    let worst = check_gradient(|w| dot(forward(&x, w, d)), &weight, &dweight, 1e-5);
    assert!(worst < 1e-6, "dweight: {worst}");
}

#[test]
fn rmsnorm_reads_strided_rows_and_refuses_strided_columns() {
    let data = normals(4, 24, 1.0);
    let weight = vec![1.0; 4];
    let picked: Vec<f64> = [&data[0..4], &data[8..12], &data[16..20]].concat();
    let mut y = vec![0.0; 12];
    let strided = RmsNorm {
        x: View::strided(&data, &[3, 4], &[8, 1]).unwrap(),
        weight: (&weight).into(),
        eps: EPS,
        y: ViewMut::rows_of(&mut y, 4).unwrap(),
        rstd: None,
    };
    rmsnorm(&Device::Cpu, strided).unwrap();
    assert_eq!(y, forward(&picked, &weight, 4));

    let transposed = RmsNorm {
        x: View::strided(&data, &[3, 4], &[1, 3]).unwrap(),
        weight: (&weight).into(),
        eps: EPS,
        y: ViewMut::rows_of(&mut y, 4).unwrap(),
        rstd: None,
    };
    let text = rmsnorm(&Device::Cpu, transposed).unwrap_err().to_string();
    assert!(text.contains("argument `x`") && text.contains("contiguous last dimension"), "{text}");
}

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
    let run = |x: &[f32], dy: &[f32]| run_on(&Device::Cpu, x, dy);
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
