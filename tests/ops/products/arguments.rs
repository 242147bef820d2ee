//! Good and bad arguments of products.

use gradus::ops::Lora;
use gradus::{Device, Result, View, ViewMut};

pub const CPU: Device = Device::Cpu;
pub const M: usize = 3;
pub const N: usize = 4;
pub const K: usize = 32;
pub const R: usize = 2;
pub static ONES: [f32; 256] = [1.0; 256];
pub static CODES: [u8; 256] = [0; 256];

pub fn ones(shape: &[i64]) -> View<'static, f32> {
    View::new(&ONES, shape).unwrap()
}

/// Columns before rows: the last dimension is not contiguous.
pub fn transposed(rows: i64, cols: i64) -> View<'static, f32> {
    View::strided(&ONES, &[rows, cols], &[1, rows]).unwrap()
}

pub fn good_lora() -> Lora<'static, f32> {
    Lora { a: ones(&[2, 32]), b: ones(&[4, 2]), scale: 1.0 }
}

pub fn refused(result: Result<()>, op: &str, arg: &str) {
    let text = crate::common::refused(result, arg);
    assert!(text.starts_with(&format!("{op}: argument `{arg}`: got ")), "{text}");
}

/// An argument and how to spoil it.
pub type Changes<'c, F> = &'c [(&'static str, F)];

/// Wrong adapters and what they are called: adapters, row indices, argument.
pub type BadAdapters = (Vec<Lora<'static, f32>>, Option<Vec<i32>>, &'static str);

pub fn bad_adapters() -> Vec<BadAdapters> {
    let good = good_lora();
    vec![
        (vec![Lora { a: ones(&[2, 31]), ..good }], None, "lora[0].a"),
        (vec![Lora { a: ones(&[64]), ..good }], None, "lora[0].a"),
        (vec![Lora { a: View::new(&[], &[0, 32]).unwrap(), ..good }], None, "lora[0].a"),
        (vec![Lora { a: transposed(2, 32), ..good }], None, "lora[0].a"),
        (vec![good, Lora { a: ones(&[3, 32]), b: ones(&[4, 3]), scale: 1.0 }], None, "lora[1].a"),
        (vec![Lora { b: ones(&[4, 3]), ..good }], None, "lora[0].b"),
        (vec![Lora { b: transposed(4, 2), ..good }], None, "lora[0].b"),
        (vec![Lora { scale: f64::NAN, ..good }], None, "lora[0].scale"),
        (vec![good, Lora { scale: f64::INFINITY, ..good }], None, "lora[1].scale"),
        (vec![good], Some(vec![0, -1]), "adapter"),
        (vec![good], Some(vec![0, -1, 1]), "adapter"),
        (vec![good], Some(vec![0, -2, 0]), "adapter"),
        (vec![], Some(vec![-1, 0, -1]), "adapter"),
    ]
}

pub fn rows(values: &mut [f32], width: usize) -> ViewMut<'_, f32> {
    ViewMut::rows_of(values, width).unwrap()
}
