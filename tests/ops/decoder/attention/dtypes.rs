//! Attention without tensor cores in 16 bits.

use crate::common::bits_of;
use crate::common::devices::shared_gpus;
use crate::products::support::random;
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Device, View, ViewMut, bf16, f16};

/// A width that is no multiple of 16 takes the kernels without tensor cores, which compute in f32.
fn attention_is_f32_rounded<T: Float>() {
    let (lens, heads, d) = ([3usize, 11], 2, 24);
    let t: usize = lens.iter().sum();
    let [q, dout] = [13, 14].map(|seed| random::<T>(seed, t * heads * d));
    let [k, v] = [15, 16].map(|seed| random::<T>(seed, t * d));
    fn run<U: Float>(device: &Device, x: [Vec<U>; 4], shape: [[i64; 3]; 2]) -> [Vec<U>; 3] {
        let [q, k, v, dout] = &x;
        let mut out = [q, k, v].map(|x| vec![U::from_f64(f64::NAN); x.len()]);
        let [dq, dk, dv] = &mut out;
        let args = AttentionBwd {
            q: View::new(q, &shape[0]).unwrap(),
            k: View::new(k, &shape[1]).unwrap(),
            v: View::new(v, &shape[1]).unwrap(),
            cu_seqlens: [0i64, 3, 14][..].into(),
            kv_start: [0i64, 3][..].into(),
            kv_len: [3i64, 11][..].into(),
            prefix: None,
            scale: 0.2,
            dout: View::new(dout, &shape[0]).unwrap(),
            dq: ViewMut::new(dq, &shape[0]).unwrap(),
            dk: ViewMut::new(dk, &shape[1]).unwrap(),
            dv: ViewMut::new(dv, &shape[1]).unwrap(),
        };
        attention_bwd(device, args).unwrap();
        out
    }
    let shape = [[t as i64, heads as i64, d as i64], [t as i64, 1, d as i64]];
    let narrow = [q, k, v, dout];
    let wide = narrow.each_ref().map(|x| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>());
    for executor in shared_gpus() {
        let got = run(&executor.device, narrow.clone(), shape);
        let want = run(&executor.device, wide.clone(), shape);
        for (got, want) in got.iter().zip(&want) {
            let want: Vec<T> = want.iter().map(|&x| T::from_f32(x)).collect();
            assert_eq!(bits_of(got), bits_of(&want), "{} {}", executor.name, T::DTYPE.name());
        }
    }
}

#[test]
fn attention_of_odd_widths_in_16_bits_is_that_in_f32_rounded() {
    attention_is_f32_rounded::<f16>();
    attention_is_f32_rounded::<bf16>();
}
