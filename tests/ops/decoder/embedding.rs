//! Token embedding: copies, sums of gradients in token order, bad input, every dtype.

use crate::common::devices::{executors, on_all};
use crate::common::{bits, bits_of, f32s, f64s, normals, refused_with, same_on_any_pool};
use crate::products::support::random;
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::rng::{Purpose, Rng};
use gradus::{Device, View, ViewMut, bf16, f16};
use proptest::prelude::*;

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
    let got = same_on_any_pool(|| scatter_on(&Device::Cpu, &ids, &dy, &start, d));
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
        embedding(&Device::Cpu, Embedding { ids, table, y: ViewMut::new(&mut out, y).unwrap() })
    };
    let ids = |ids: &'static [i32]| View::from(ids);
    let right = || View::new(&table, &[4, 3]).unwrap();
    refused_with(run(View::new(&[1, 2], &[1, 2]).unwrap(), right(), &[2, 3]), "ids", "rank 1");
    refused_with(run(ids(&[1, 4]), right(), &[2, 3]), "ids", "4 at index 1");
    refused_with(run(ids(&[-1, 0]), right(), &[2, 3]), "ids", "0..4");
    refused_with(run(ids(&[i32::MIN, 0]), right(), &[2, 3]), "ids", "0..4");
    refused_with(run(ids(&[1, 3]), View::from(&table), &[2, 3]), "table", "rank 2");
    refused_with(run(ids(&[1, 3]), right(), &[3, 2]), "y", "[2, 3]");
    run(ids(&[]), right(), &[0, 3]).unwrap();
    let mut run = |ids: View<'_, i32>, dy: View<'_, f32>, dtable: &[i64]| {
        let dtable = ViewMut::new(&mut out, dtable).unwrap();
        embedding_bwd(&Device::Cpu, EmbeddingBwd { ids, dy, dtable })
    };
    let dy = || View::new(&table, &[2, 3]).unwrap();
    refused_with(run(View::new(&[1, 2], &[1, 2]).unwrap(), dy(), &[4, 3]), "ids", "rank 1");
    refused_with(run(ids(&[1, 4]), dy(), &[4, 3]), "ids", "4 at index 1");
    refused_with(run(ids(&[1, -3]), dy(), &[4, 3]), "ids", "-3 at index 1");
    refused_with(run(ids(&[1]), dy(), &[4, 3]), "dy", "[1, 3]");
    refused_with(run(ids(&[1, 3]), dy(), &[12]), "dtable", "rank 2");
    run(ids(&[]), View::new(&[], &[0, 3]).unwrap(), &[4, 3]).unwrap();
    assert!(out.iter().all(|&x| x == 7.0));
}

fn rows_and_tables<T: Float>() {
    let (t, d, vocab) = (7, 10, 5);
    let ids: Vec<i32> = vec![3, 0, 3, 4, 1, 3, 0];
    let (table, dy) = (random::<T>(1, vocab * d), random::<T>(2, t * d));
    let run = |device: &Device| {
        let (mut y, mut dtable) = (vec![T::from_f64(f64::NAN); t * d], vec![0.25f32; vocab * d]);
        let args = Embedding {
            ids: (&ids).into(),
            table: View::rows_of(&table, d).unwrap(),
            y: ViewMut::rows_of(&mut y, d).unwrap(),
        };
        embedding(device, args).unwrap();
        let args = EmbeddingBwd {
            ids: (&ids).into(),
            dy: View::rows_of(&dy, d).unwrap(),
            dtable: ViewMut::rows_of(&mut dtable, d).unwrap(),
        };
        embedding_bwd(device, args).unwrap();
        (bits_of(&y), bits_of(&dtable))
    };
    on_all(run, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name} {}", T::DTYPE.name()));
}

#[test]
fn embedding_in_other_dtypes_has_the_bits_of_the_cpu() {
    rows_and_tables::<f16>();
    rows_and_tables::<bf16>();
    rows_and_tables::<f64>();
}
