//! Attention over a paged cache: the bits of keys that lie one after another, wherever the pages
//! are, and no access out of bounds whatever a table in device memory holds.

use super::layout::{Layout, forward, forward_from};
use crate::common::devices::{executors, shared_gpus};
use crate::common::{bits, bits_of, normals};
use gradus::device::DeviceBuffer;
use gradus::dtype::Float;
use gradus::ops::{Attention, KvRows, attention};
use gradus::rng::{Purpose, Rng};
use gradus::{Device, Error, View, ViewMut, bf16, f16};

/// A cache cut into pages: the table `[B, width]` and the number of pages.
struct Cache {
    size: usize,
    width: usize,
    pages: usize,
    table: Vec<i32>,
}

impl Cache {
    /// Pages in random places, -1 where a sequence has none; sequences from `shared` on begin with
    /// the pages of sequence `shared` that `prefix` keys fill.
    fn random(seed: u64, keys: &[usize], size: usize, (shared, prefix): (usize, usize)) -> Cache {
        let width = keys.iter().max().unwrap_or(&0).div_ceil(size) + 1;
        let pages = keys.len() * width + 3;
        let mut free: Vec<i32> = (0..pages as i32).collect();
        Rng::new(seed, Purpose::User, [0; 3]).shuffle(&mut free);
        let mut table = vec![-1; keys.len() * width];
        for (b, &n) in keys.iter().enumerate() {
            for p in 0..n.div_ceil(size) {
                let common = b > shared && p < prefix / size;
                table[b * width + p] =
                    if common { table[shared * width + p] } else { free.pop().unwrap() };
            }
        }
        Cache { size, width, pages, table }
    }

    fn rows(&self) -> KvRows<'_> {
        KvRows::Pages { table: View::rows_of(&self.table, self.width).unwrap(), size: self.size }
    }

    /// Keys of `l` moved to their pages; NaN where no key is.
    fn filled<T: Float>(&self, l: &Layout, x: &[T]) -> Vec<T> {
        let width = l.kv_heads * l.d;
        let mut cache = vec![T::from_f64(f64::NAN); self.pages * self.size * width];
        for (b, &n) in l.keys.iter().enumerate() {
            for j in 0..n {
                let page = self.table[b * self.width + j / self.size] as usize;
                let to = (page * self.size + j % self.size) * width;
                cache[to..to + width].copy_from_slice(&x[(l.start[b] + j) * width..][..width]);
            }
        }
        cache
    }
}

fn narrowed<T: Float>(x: Vec<f64>) -> Vec<T> {
    x.into_iter().map(T::from_f64).collect()
}

/// Sequences 1 and 3 begin with the keys of sequence 1.
fn check_pages<T: Float>(device: &Device, (heads, kv_heads, d): (usize, usize, usize)) {
    let l = Layout::with_keys(&[1, 5, 0, 2], &[70, 41, 0, 37], heads, kv_heads, d);
    let [q, mut k, mut v] = l.random(17).map(narrowed::<T>);
    let width = kv_heads * d;
    for x in [&mut k, &mut v] {
        let (from, to) = (l.start[1] * width, l.start[3] * width);
        x.copy_within(from..from + 32 * width, to);
    }
    let (want, want_lse) = forward(device, &l, [&q, &k, &v]);
    assert!(want.iter().all(|x| x.to_f64().is_finite()));
    for size in [1, 4, 16, 128] {
        let cache = Cache::random(size as u64, &l.keys, size, (1, 32));
        let paged = Layout { rows: cache.pages * size, ..l.clone() };
        let (k, v) = (cache.filled(&l, &k), cache.filled(&l, &v));
        let (got, lse) = forward_from(device, &paged, cache.rows(), [&q, &k, &v]);
        assert_eq!(bits_of(&got), bits_of(&want), "pages of {size}");
        assert_eq!(bits(&lse), bits(&want_lse), "pages of {size}");
    }
}

#[test]
fn attention_over_pages_has_the_bits_of_rows_in_order() {
    for executor in executors() {
        for shape in [(4, 2, 16), (3, 1, 5), (2, 2, 64)] {
            check_pages::<f32>(&executor.device, shape);
            check_pages::<bf16>(&executor.device, shape);
            check_pages::<f16>(&executor.device, shape);
        }
        check_pages::<f64>(&executor.device, (2, 1, 16));
    }
}

/// Pages in order are read in place, pages out of order are copied: the same bits on the CPU.
#[test]
fn attention_over_pages_in_order() {
    let l = Layout::with_keys(&[3], &[40], 2, 1, 16);
    let [q, k, v] = l.random(3).map(narrowed::<f32>);
    let (want, _) = forward(&Device::Cpu, &l, [&q, &k, &v]);
    let table = [0, 1, 2, 3, 4];
    let rows = KvRows::Pages { table: View::new(&table, &[1, 5]).unwrap(), size: 8 };
    let (got, _) = forward_from(&Device::Cpu, &l, rows, [&q, &k, &v]);
    assert_eq!(bits(&got), bits(&want));
}

/// Queries, cache and tables of a device, and an output with guards.
struct OnDevice<'g, T> {
    device: &'g Device,
    l: Layout,
    q: DeviceBuffer<T>,
    kv: DeviceBuffer<T>,
}

impl<T: Float> OnDevice<'_, T> {
    /// Two slots with one query each, 4 pages of 4 rows.
    fn new(device: &Device) -> OnDevice<'_, T> {
        let Device::Gpu(gpu) = device else { unreachable!() };
        let l = Layout { rows: 16, ..Layout::with_keys(&[1, 1], &[7, 8], 4, 2, 16) };
        let q = narrowed::<T>(normals(1, l.q_len(), 1.0));
        let kv = narrowed::<T>(normals(2, l.k_len(), 1.0));
        let upload = |x: &[T]| DeviceBuffer::from_host(gpu, x).unwrap();
        OnDevice { device, q: upload(&q), kv: upload(&kv), l }
    }

    fn run(&self, cu: &[i64], len: &[i64], table: &[i32]) -> Vec<T> {
        let Device::Gpu(gpu) = self.device else { unreachable!() };
        let (cu, len) =
            (DeviceBuffer::from_host(gpu, cu).unwrap(), DeviceBuffer::from_host(gpu, len).unwrap());
        let table = DeviceBuffer::from_host(gpu, table).unwrap();
        let mut o = DeviceBuffer::from_host(gpu, &vec![T::from_f64(7.0); self.l.q_len()]).unwrap();
        let args = Attention {
            q: self.q.view(&self.l.q_shape()).unwrap(),
            k: self.kv.view(&self.l.k_shape()).unwrap(),
            v: self.kv.view(&self.l.k_shape()).unwrap(),
            cu_seqlens: cu.view(&[3]).unwrap(),
            kv_rows: KvRows::Pages { table: table.view(&[2, 2]).unwrap(), size: 4 },
            kv_len: len.view(&[2]).unwrap(),
            scale: 0.25,
            o: o.view_mut(&self.l.q_shape()).unwrap(),
            lse: None,
        };
        attention(self.device, args).unwrap();
        o.to_host().unwrap()
    }
}

#[test]
fn tables_on_the_device_are_never_trusted() {
    for executor in shared_gpus() {
        check_tables_are_never_trusted::<f32>(&executor.device);
        check_tables_are_never_trusted::<bf16>(&executor.device);
    }
}

fn check_tables_are_never_trusted<T: Float>(device: &Device) {
    let on = OnDevice::<T>::new(device);
    let finite = |x: &[T]| x.iter().all(|x| x.to_f64().is_finite());
    let nan = |x: &[T]| x.iter().all(|x| x.to_f64().is_nan());
    let good = on.run(&[0, 1, 2], &[7, 8], &[3, 0, 1, 2]);
    assert!(finite(&good));
    // A page that is not there is read as some page: in bounds, and the other slot never sees it.
    for page in [-1, i32::MIN, 4, i32::MAX] {
        let got = on.run(&[0, 1, 2], &[7, 8], &[page, page, 1, 2]);
        assert!(finite(&got), "page {page}");
        assert_eq!(bits_of(&got[64..]), bits_of(&good[64..]));
    }
    // Empty slots, lengths without pages: NaN rows, and only those.
    for len in [0, -1, 9, i64::MIN, i64::MAX] {
        let got = on.run(&[0, 1, 2], &[len, 8], &[3, 0, 1, 2]);
        assert!(nan(&got[..64]), "length {len}");
        assert_eq!(bits_of(&got[64..]), bits_of(&good[64..]), "length {len}");
    }
    for cu in [[0, 0, 2], [-5, 1, 2], [0, 1 << 60, 2], [2, 1, 0], [i64::MIN, i64::MAX, 1]] {
        on.run(&cu, &[7, 8], &[3, 0, 1, 2]);
    }
    // Sequence 0 has no query and garbage in its tables.
    let got = on.run(&[0, 0, 2], &[-3, 8], &[-9, 9, 1, 2]);
    assert_eq!(bits_of(&got[64..]), bits_of(&good[64..]));
    // A token behind the last sequence sees nothing.
    let got = on.run(&[0, 1, 1], &[7, 8], &[3, 0, 1, 2]);
    assert!(nan(&got[64..]));
    assert_eq!(bits_of(&got[..64]), bits_of(&good[..64]));
}

/// One call with a spoiled argument fails with that argument's name and writes nothing.
#[test]
fn attention_refuses_bad_pages() {
    let data = vec![0.5f32; 2 * 8 * 4];
    let run = |table: View<'_, i32>, size: usize, len: [i64; 2]| -> Result<(), Error> {
        let mut o = vec![7f32; 3 * 8];
        let result = attention(
            &Device::Cpu,
            Attention {
                q: View::new(&data, &[3, 4, 2]).unwrap(),
                k: View::new(&data, &[11, 2, 2]).unwrap(),
                v: View::new(&data, &[11, 2, 2]).unwrap(),
                cu_seqlens: View::new(&[0, 2, 3], &[3]).unwrap(),
                kv_rows: KvRows::Pages { table, size },
                kv_len: View::new(&len, &[2]).unwrap(),
                scale: 1.0,
                o: ViewMut::new(&mut o, &[3, 4, 2]).unwrap(),
                lse: None,
            },
        );
        assert!(result.is_ok() || o.iter().all(|&x| x == 7.0));
        result
    };
    let table = [1, -1, 1, 0];
    let good = View::new(&table, &[2, 2]).unwrap();
    run(good, 4, [4, 5]).unwrap();
    let refused = |result: Result<(), Error>, arg: &str, text: &str| {
        let message = result.expect_err(arg).to_string();
        assert!(message.contains(&format!("argument `{arg}`")), "{arg}: {message}");
        assert!(message.contains(text), "{text}: {message}");
    };
    for size in [0, 3, 12, 1 << 31] {
        refused(run(good, size, [4, 5]), "size", "a power of two");
    }
    refused(run(View::new(&table, &[4]).unwrap(), 4, [4, 5]), "table", "rank 2");
    refused(run(View::new(&table, &[1, 2]).unwrap(), 4, [4, 5]), "table", "[2, 2]");
    let across = View::strided(&table, &[2, 2], &[1, 2]).unwrap();
    refused(run(across, 4, [4, 5]), "table", "contiguous");
    refused(run(good, 4, [5, 5]), "table", "-1 at index [0, 1]");
    refused(run(good, 8, [4, 5]), "table", "one of 1");
    refused(run(good, 4, [4, 9]), "kv_len", "the rows of 2 pages of 4");
    refused(run(good, 4, [1, 5]), "kv_len", "2 (the queries)");
}
