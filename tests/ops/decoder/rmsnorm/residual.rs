//! What the norm's gradient adds last: a residual gives the bits of an addition afterwards, and in 16 bits saves a
//! rounding.

use crate::common::devices::on_all;
use crate::common::{bits_of, normals};
use crate::products::support::*;
use gradus::dtype::Float;
use gradus::ops::{RmsNormBwd, rmsnorm_bwd};
use gradus::{DType, Device, View, ViewMut, bf16, f16};

/// Rows with `GAP` elements behind each.
const GAP: usize = 3;

fn norm_gradient<T: Float>(
    device: &Device,
    [rows, d]: [usize; 2],
    [x, dy, weight]: [&[T]; 3],
    residual: Option<View<'_, T>>,
) -> (Vec<T>, Vec<f32>) {
    let (mut dx, mut dweight) = (vec![T::from_f64(f64::NAN); rows * d], vec![0.5f32; d]);
    let args = RmsNormBwd {
        x: View::rows_of(x, d).unwrap(),
        weight: weight.into(),
        eps: 1e-5,
        dy: View::rows_of(dy, d).unwrap(),
        residual,
        dx: ViewMut::rows_of(&mut dx, d).unwrap(),
        dweight: Some((&mut dweight).into()),
    };
    rmsnorm_bwd(device, args).unwrap();
    (dx, dweight)
}

fn check_norm<T: Float>() {
    for [rows, d] in [[1, 1], [17, 31], [3, 130]] {
        let of = |seed, n| random::<T>(seed, n);
        let (x, dy, weight) = (of(1, rows * d), of(2, rows * d), of(3, d));
        let data = of(4, rows * (d + GAP));
        let strides = [(d + GAP) as i64, 1];
        let residual = View::strided(&data, &[rows as i64, d as i64], &strides).unwrap();
        let inputs = [&x[..], &dy, &weight];
        let run = |device: &Device| {
            let (dx, dweight) = norm_gradient(device, [rows, d], inputs, Some(residual));
            (bits_of(&dx), bits_of(&dweight))
        };
        let (dx, dweight) = on_all(run, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name}"));
        // The gradient in f64 of the same values.
        let wide = |v: &[T]| v.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let (x, dy, weight) = (wide(&x), wide(&dy), wide(&weight));
        let (exact, _) = norm_gradient(&Device::Cpu, [rows, d], [&x, &dy, &weight], None);
        let (_, bare) = norm_gradient(&Device::Cpu, [rows, d], inputs, None);
        assert_eq!(dweight, bits_of(&bare), "the gain's gradient sees no residual");
        let want: Vec<T> = (0..rows * d)
            .map(|at| {
                let r = residual.row(at / d)[at % d];
                match T::DTYPE {
                    DType::F64 => T::from_f64(r.to_f64() + exact[at]),
                    _ => T::from_f32(r.to_f32() + exact[at] as f32),
                }
            })
            .collect();
        assert_eq!(dx, bits_of(&want), "{} {rows} x {d}", T::DTYPE.name());
    }
}

#[test]
fn the_gradient_past_a_norm_is_added_on_the_way() {
    check_norm::<f32>();
    check_norm::<f64>();
    check_norm::<bf16>();
    check_norm::<f16>();
}

#[test]
fn norm_gradients_refuse_a_bad_residual() {
    let (x, dy, weight) = (normals(1, 6, 1.0), normals(2, 6, 1.0), normals(3, 3, 1.0));
    let data = normals(4, 12, 1.0);
    let run = |residual: View<'_, f64>| {
        let mut dx = vec![7.0; 6];
        let args = RmsNormBwd {
            x: View::rows_of(&x, 3).unwrap(),
            weight: (&weight).into(),
            eps: 1e-5,
            dy: View::rows_of(&dy, 3).unwrap(),
            residual: Some(residual),
            dx: ViewMut::rows_of(&mut dx, 3).unwrap(),
            dweight: None,
        };
        let text = rmsnorm_bwd(&Device::Cpu, args).unwrap_err().to_string();
        assert!(text.starts_with("rmsnorm_bwd: argument `residual`"), "{text}");
        assert_eq!(dx, [7.0; 6]);
    };
    run(View::new(&data, &[3, 2]).unwrap());
    run(View::new(&data, &[6]).unwrap());
    run(View::strided(&data, &[2, 3], &[1, 4]).unwrap());
}
