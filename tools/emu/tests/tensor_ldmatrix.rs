//! `ldmatrix` and `stmatrix` on matrices whose element (i, r, c) is `256 i + 16 r + c`.

mod tensor_common;

use gradus_emu::tensor::ldmatrix::{Matrices, MatrixRow};
use tensor_common::{Bits, cute};

/// Row `r` of matrix `i`.
fn row(i: usize, r: usize) -> MatrixRow {
    let mut bytes = [0; 16];
    for c in 0..8 {
        let value = (256 * i + 16 * r + c) as u16;
        bytes[2 * c..2 * c + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

#[test]
fn every_form_in_closed_form() {
    for count in [1, 2, 4] {
        let rows: Vec<MatrixRow> = (0..8 * count).map(|l| row(l / 8, l % 8)).collect();
        for transposed in [false, true] {
            let matrices = Matrices::new(count, transposed).unwrap();
            let registers = matrices.load(&rows);
            for lane in 0..32 {
                for i in 0..4 {
                    let (r, c) = (lane / 4, 2 * (lane % 4));
                    let at = |r: usize, c: usize| (256 * i + 16 * r + c) as u32;
                    let want = match (i < count, transposed) {
                        (false, _) => 0,
                        (true, false) => at(r, c) | at(r, c + 1) << 16,
                        (true, true) => at(c, r) | at(c + 1, r) << 16,
                    };
                    assert_eq!(registers[i][lane], want);
                }
            }
            assert_eq!(matrices.store(&registers), rows);
        }
    }
}

#[test]
fn x4_loads_the_a_fragment_of_a_row_major_tile() {
    // Lane L names row L % 16, columns 8 (L / 16)..: registers are a0..a3 of m16n8k16.
    let tile = |m: usize, k: usize| (16 * m + k) as u16;
    let rows: Vec<MatrixRow> = (0..32)
        .map(|lane| {
            let mut bytes = [0; 16];
            for c in 0..8 {
                let value = tile(lane % 16, 8 * (lane / 16) + c);
                bytes[2 * c..2 * c + 2].copy_from_slice(&value.to_le_bytes());
            }
            bytes
        })
        .collect();
    let registers = Matrices::new(4, false).unwrap().load(&rows);
    for lane in 0..32 {
        for v in 0..8 {
            let index = cute(&[(4, 32), (8, 1)], lane) + cute(&[(2, 16), (2, 8), (2, 128)], v);
            let got = registers[v / 2][lane] >> (16 * (v % 2)) & 0xffff;
            assert_eq!(got, u32::from(tile(index % 16, index / 16)));
        }
    }
}

#[test]
fn transposition_twice_is_the_identity() {
    let mut bits = Bits::new(2);
    let rows: Vec<MatrixRow> =
        (0..32).map(|_| std::array::from_fn(|_| bits.next() as u8)).collect();
    let plain = Matrices::new(4, false).unwrap();
    let transposed = Matrices::new(4, true).unwrap();
    let once = transposed.store(&plain.load(&rows));
    assert_ne!(once, rows);
    assert_eq!(transposed.store(&plain.load(&once)), rows);
}

#[test]
fn addresses_are_those_of_the_first_lanes() {
    let mut addresses: [u32; 32] = std::array::from_fn(|lane| 0x400 + 16 * lane as u32);
    addresses[9] = 0x7ff8;
    let x1 = Matrices::new(1, false).unwrap();
    assert_eq!(x1.rows(&addresses).unwrap(), addresses[..8]);
    let error = Matrices::new(2, true).unwrap().rows(&addresses).unwrap_err();
    assert_eq!(error, "lane 9 names row 1 of matrix 1 at 0x7ff8, which is not a multiple of 16");
    assert!(Matrices::new(3, false).unwrap_err().contains("not 3"));
}
