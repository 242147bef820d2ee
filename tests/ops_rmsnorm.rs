//! RMSNorm: closed form, gradients by central differences, strides, bad input.

mod common;

use common::{check_gradient, normals};
use gradus::ops::{RmsNorm, RmsNormBwd, rmsnorm, rmsnorm_bwd};
use gradus::{Device, View, ViewMut};

const EPS: f64 = 1e-5;

fn forward(x: &[f64], weight: &[f64], d: usize) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    let args = RmsNorm {
        x: View::rows_of(x, d).unwrap(),
        weight: weight.into(),
        eps: EPS,
        y: ViewMut::rows_of(&mut y, d).unwrap(),
        rstd: None,
    };
    rmsnorm(&Device::Cpu, args).unwrap();
    y
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
