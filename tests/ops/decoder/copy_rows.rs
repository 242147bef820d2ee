//! Rows gathered and scattered, and conversion between dtypes: oracles, every executor, device
//! memory with any ids, bad input.

use super::values;
use crate::common::devices::{executors, gpu_of, on_all, shared_gpus};
use crate::common::{bits_of, refused_with};
use gradus::device::DeviceBuffer;
use gradus::dtype::Float;
use gradus::ops::{CopyRows, copy_rows};
use gradus::{Device, View, ViewMut, bf16, f16};
use proptest::prelude::*;

const CPU: Device = Device::Cpu;

/// `rows` of `data` with a gap behind each.
struct Rows {
    rows: usize,
    columns: usize,
    stride: usize,
}

impl Rows {
    fn shape(&self) -> ([i64; 2], [i64; 2]) {
        ([self.rows as i64, self.columns as i64], [self.stride as i64, 1])
    }
}

/// The op on every executor over y = old, held against the definition.
fn check_copy<T: Float>(x: &Rows, y: &Rows, from: Option<&[i32]>, to: Option<&[i32]>) {
    let data = values::<T>(1, x.rows * x.stride);
    let old = values::<T>(2, y.rows * y.stride);
    let run = |device: &Device| {
        let mut out = old.clone();
        let ((x_shape, x_strides), (y_shape, y_strides)) = (x.shape(), y.shape());
        let args = CopyRows {
            x: View::strided(&data, &x_shape, &x_strides).unwrap(),
            from_rows: from.map(View::from),
            to_rows: to.map(View::from),
            y: ViewMut::strided(&mut out, &y_shape, &y_strides).unwrap(),
        };
        copy_rows(device, args).unwrap();
        out
    };
    let mut want = old.clone();
    let rows = from.or(to).map_or(x.rows, |table| table.len());
    for i in 0..rows {
        let (from, to) = (from.map_or(i as i32, |t| t[i]), to.map_or(i as i32, |t| t[i]));
        if to < 0 {
            continue;
        }
        for j in 0..x.columns {
            want[to as usize * y.stride + j] = match from {
                -1 => T::zeroed(),
                from => data[from as usize * x.stride + j],
            };
        }
    }
    for executor in executors() {
        let name = format!("{} {} rows of {}", executor.name, rows, x.columns);
        assert_eq!(bits_of(&run(&executor.device)), bits_of(&want), "{name}");
    }
}

fn check_copies<T: Float>() {
    // Widths of one element, of whole vectors with and without a rest, of more than one pass.
    for (columns, gap) in [(1, 0), (8, 0), (24, 8), (37, 0), (33, 3), (300, 4), (1026, 6)] {
        let rows = |rows| Rows { rows, columns, stride: columns + gap };
        check_copy::<T>(&rows(5), &rows(9), Some(&[4, -1, 0, 4]), Some(&[8, 0, -1, 3]));
        check_copy::<T>(&rows(5), &rows(3), Some(&[2, 2, -1]), None);
        check_copy::<T>(&rows(3), &rows(5), None, Some(&[1, 4, 0]));
        check_copy::<T>(&rows(6), &rows(6), None, None);
    }
    // A few rows of a long output go one by one.
    let rows = |rows| Rows { rows, columns: 3, stride: 5 };
    check_copy::<T>(&rows(4), &rows(90), Some(&[3, -1, 1]), Some(&[77, 3, -1]));
}

#[test]
fn rows_are_copied_bit_for_bit_on_every_executor() {
    check_copies::<f32>();
    check_copies::<f64>();
    check_copies::<bf16>();
    check_copies::<f16>();
}

/// Payloads of NaN and signs of zero are copied too.
#[test]
fn copies_keep_every_bit() {
    let x: Vec<f32> = [0x7fc0_1234, 0xff80_0001, 0x8000_0000, 1].map(f32::from_bits).to_vec();
    for executor in executors() {
        let mut y = vec![0f32; 4];
        let (x, y_out) = (View::rows_of(&x, 4).unwrap(), ViewMut::rows_of(&mut y, 4).unwrap());
        copy_rows(&executor.device, CopyRows { x, from_rows: None, to_rows: None, y: y_out })
            .unwrap();
        let got = y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
        assert_eq!(got, [0x7fc0_1234, 0xff80_0001, 0x8000_0000, 1], "{}", executor.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What is scattered along a permutation is gathered back along it.
    #[test]
    fn gathering_undoes_scattering(order in Just((0..23i32).collect::<Vec<_>>()).prop_shuffle(), d in 1..40usize) {
        let x = values::<bf16>(3, 23 * d);
        let run = |device: &Device| {
            let (mut there, mut back) = (vec![bf16::NAN; 23 * d], vec![bf16::NAN; 23 * d]);
            let (from, to) = (None, Some((&order).into()));
            let y = ViewMut::rows_of(&mut there, d).unwrap();
            copy_rows(device, CopyRows { x: View::rows_of(&x, d).unwrap(), from_rows: from, to_rows: to, y }).unwrap();
            let (from, to) = (Some((&order).into()), None);
            let y = ViewMut::rows_of(&mut back, d).unwrap();
            copy_rows(device, CopyRows { x: View::rows_of(&there, d).unwrap(), from_rows: from, to_rows: to, y }).unwrap();
            back
        };
        let back = on_all(run, |name, cpu, gpu| assert_eq!(bits_of(cpu), bits_of(gpu), "{name}"));
        prop_assert_eq!(bits_of(&back), bits_of(&x));
    }
}

/// Nobody can look at tables in device memory beforehand: rows that are not there are zeros, or
/// are not written.
#[test]
fn tables_in_device_memory_may_hold_anything() {
    let x = values::<f32>(4, 15);
    for executor in shared_gpus() {
        let gpu = gpu_of(&executor.device);
        let from = DeviceBuffer::from_host(gpu, &[5i32, i32::MIN, 1, i32::MAX, 2]).unwrap();
        let to = DeviceBuffer::from_host(gpu, &[1i32, 0, 4, 3, i32::MIN]).unwrap();
        let source = DeviceBuffer::from_host(gpu, &x).unwrap();
        let mut y = DeviceBuffer::from_host(gpu, &[7f32; 12]).unwrap();
        let args = CopyRows {
            x: source.view(&[5, 3]).unwrap(),
            from_rows: Some(from.view(&[5]).unwrap()),
            to_rows: Some(to.view(&[5]).unwrap()),
            y: y.view_mut(&[4, 3]).unwrap(),
        };
        copy_rows(&executor.device, args).unwrap();
        let want = [[0f32; 3], [0.0; 3], [7.0; 3], [0.0; 3]].concat();
        assert_eq!(y.to_host().unwrap(), want, "{}", executor.name);
    }
}

#[test]
fn copy_rows_refuses_bad_input_and_writes_nothing() {
    let x = vec![1f32; 12];
    let mut out = vec![7f32; 12];
    let mut run = |x: View<'_, f32>, from: Option<&[i32]>, to: Option<&[i32]>, y: &[i64]| {
        let (from, to) = (from.map(View::from), to.map(View::from));
        copy_rows(
            &CPU,
            CopyRows { x, from_rows: from, to_rows: to, y: ViewMut::new(&mut out, y).unwrap() },
        )
    };
    let right = || View::new(&x, &[4, 3]).unwrap();
    refused_with(run(View::from(&x), None, None, &[4, 3]), "x", "rank 2");
    refused_with(
        run(View::strided(&x, &[4, 3], &[1, 4]).unwrap(), None, None, &[4, 3]),
        "x",
        "stride",
    );
    refused_with(run(right(), None, None, &[3, 4]), "y", "[3, 3]");
    refused_with(
        run(right(), None, None, &[3, 3]),
        "y",
        "4 rows, as many as are copied, or a table `to_rows`",
    );
    refused_with(run(right(), None, Some(&[0, 1]), &[3, 3]), "x", "or a table `from_rows`");
    refused_with(run(right(), Some(&[0, 1]), None, &[3, 3]), "y", "2 rows");
    refused_with(run(right(), Some(&[0, 1]), Some(&[0]), &[3, 3]), "to_rows", "[2]");
    refused_with(run(right(), Some(&[0, 4]), Some(&[0, 1]), &[3, 3]), "from_rows", "4 at index 1");
    refused_with(run(right(), Some(&[0, -2]), Some(&[0, 1]), &[3, 3]), "from_rows", "0..4");
    refused_with(run(right(), Some(&[0, 1]), Some(&[0, 3]), &[3, 3]), "to_rows", "3 at index 1");
    refused_with(run(right(), Some(&[0, 1]), Some(&[-9, 2]), &[3, 3]), "to_rows", "-9 at index 0");
    refused_with(
        run(right(), Some(&[0, 1, 2]), Some(&[2, -1, 2]), &[3, 3]),
        "to_rows",
        "row 2 twice",
    );
    run(right(), Some(&[]), Some(&[]), &[3, 3]).unwrap();
    run(right(), Some(&[3, 1]), Some(&[-1, -1]), &[3, 3]).unwrap();
    run(View::new(&[], &[0, 3]).unwrap(), None, None, &[0, 3]).unwrap();
    run(View::new(&[], &[4, 0]).unwrap(), None, None, &[4, 0]).unwrap();
    assert!(out.iter().all(|&y| y == 7.0));
}
