//! The way back from 4 bits on every executor: the bits of the rule for every dtype, layout, code book
//! and kind of maxima, and what the kernel costs.

use std::sync::Arc;

use crate::common::devices::{executors, gpu_of, gpus, on_all};
use crate::common::normals;
use gradus::device::{DeviceBuffer, EmuDriver, Gpu, KernelSet};
use gradus::dtype::{Element, Float};
use gradus::ops::{Nf4Dequantize, nf4_dequantize};
use gradus::quant::{Absmax, FP4_CODE, NF4_CODE, Nf4Options, Nf4Tensor, Nf4View, dynamic_map};
use gradus::view::{Dims, Location};
use gradus::{DType, Device, View, ViewMut, bf16, f16};
use gradus_emu::Counters;
use gradus_emu::report::H200;

/// A 4-bit matrix in parts. `group` is the size of a block of nested maxima, 0 for plain ones.
#[derive(Clone)]
struct Matrix {
    n: usize,
    k: usize,
    blocksize: usize,
    group: usize,
    dtype: DType,
    packed: Vec<u8>,
    code: Vec<f32>,
    absmax: Vec<f32>,
    codes: Vec<u8>,
    nested: Vec<f32>,
    table: Vec<f32>,
}

const OFFSET: f32 = 0.71;

impl Matrix {
    fn random(seed: u64, [n, k]: [usize; 2], blocksize: usize, group: usize) -> Matrix {
        let blocks = (n * k).div_ceil(blocksize);
        let byte = |seed, count| -> Vec<u8> {
            normals(seed, count, 40.0).iter().map(|&x| x.rem_euclid(256.0) as u8).collect()
        };
        let float = |seed, count| -> Vec<f32> {
            normals(seed, count, 1.0).iter().map(|&x| (x.abs() + 0.01) as f32).collect()
        };
        Matrix {
            n,
            k,
            blocksize,
            group,
            dtype: DType::Bf16,
            packed: byte(seed, (n * k).div_ceil(2)),
            code: NF4_CODE.to_vec(),
            absmax: float(seed + 1, blocks),
            codes: byte(seed + 2, blocks),
            nested: float(seed + 3, blocks.div_ceil(group.max(1))),
            table: dynamic_map(true).to_vec(),
        }
    }

    fn max(&self, block: usize) -> f32 {
        if self.group == 0 {
            return self.absmax[block];
        }
        self.table[self.codes[block] as usize] * self.nested[block / self.group] + OFFSET
    }

    /// Every value by the rule.
    fn values<T: Float>(&self) -> Vec<T> {
        let value = |i: usize| {
            let nibble = self.packed[i / 2] >> (4 * (1 - i % 2)) & 15;
            let x = self.code[nibble as usize] * self.max(i / self.blocksize);
            T::from_f32(match self.dtype {
                DType::F16 => f16::from_f32(x).to_f32(),
                DType::Bf16 => bf16::from_f32(x).to_f32(),
                _ => x,
            })
        };
        (0..self.n * self.k).map(value).collect()
    }
}

/// The parts of a matrix on a device, each `shift` elements behind the start of its memory.
struct Placed {
    packed: DeviceBuffer<u8>,
    codes: DeviceBuffer<u8>,
    floats: [DeviceBuffer<f32>; 4],
}

fn shifted<T: Element>(gpu: &Arc<Gpu>, shift: usize, data: &[T]) -> DeviceBuffer<T> {
    let all: Vec<T> = vec![T::zeroed(); shift].into_iter().chain(data.iter().copied()).collect();
    DeviceBuffer::from_host(gpu, &all).unwrap()
}

fn behind<T: Element>(buffer: &DeviceBuffer<T>, shift: usize) -> View<'_, T> {
    buffer.all().narrow(shift, buffer.len() - shift).unwrap()
}

impl Placed {
    fn new(gpu: &Arc<Gpu>, m: &Matrix, shift: usize) -> Placed {
        let float = |data: &[f32]| shifted(gpu, shift, data);
        Placed {
            packed: shifted(gpu, shift, &m.packed),
            codes: shifted(gpu, shift, &m.codes),
            floats: [&m.code, &m.absmax, &m.nested, &m.table].map(|data| float(data)),
        }
    }

    fn view(&self, m: &Matrix, shift: usize) -> Nf4View<'_> {
        let [code, absmax, nested, table] = self.floats.each_ref().map(|b| behind(b, shift));
        let absmax = match m.group {
            0 => Absmax::F32(absmax),
            nested_blocksize => {
                let codes = behind(&self.codes, shift);
                Absmax::Nested { codes, nested, table, offset: OFFSET, nested_blocksize }
            }
        };
        let packed = behind(&self.packed, shift);
        let (n, k, blocksize, dtype) = (m.n, m.k, m.blocksize, m.dtype);
        Nf4View { packed, absmax, code, n, k, blocksize, dtype }
    }
}

/// Operands `shift` elements into device memory, output rows `gap` elements apart.
fn on_device<T: Float>(gpu: &Arc<Gpu>, m: &Matrix, shift: usize, gap: usize) -> Vec<T> {
    let stride = m.k + gap;
    let guard = T::from_f64(-77.0);
    let len = shift + m.n * stride;
    let mut y = DeviceBuffer::from_host(gpu, &vec![guard; len]).unwrap();
    let placed = Placed::new(gpu, m, shift);
    let dims = Dims::strided(&[m.n as i64, m.k as i64], &[stride as i64, 1]).unwrap();
    // SAFETY: shift and rows lie in the buffer, which outlives the view.
    let view = unsafe {
        let start = y.all_mut().as_mut_ptr().add(shift);
        ViewMut::from_raw(start, dims, Location::Device(gpu.info().ordinal)).unwrap()
    };
    let args = Nf4Dequantize { w: placed.view(m, shift), y: view };
    nf4_dequantize(&Device::Gpu(gpu.clone()), args).unwrap();
    let all = y.to_host().unwrap();
    let (before, rows) = all.split_at(shift);
    assert!(before.iter().all(|&x| x == guard));
    let row = |row: &[T]| {
        assert!(row[m.k..].iter().all(|&x| x == guard), "written between rows");
        row[..m.k].to_vec()
    };
    rows.chunks(stride).flat_map(row).collect()
}

fn on_host<T: Float>(device: &Device, m: &Matrix) -> Vec<T> {
    let mut y = vec![T::from_f64(f64::NAN); m.n * m.k];
    let absmax = match m.group {
        0 => Absmax::F32((&m.absmax).into()),
        nested_blocksize => Absmax::Nested {
            codes: (&m.codes[..]).into(),
            nested: (&m.nested).into(),
            table: (&m.table).into(),
            offset: OFFSET,
            nested_blocksize,
        },
    };
    let w = Nf4View {
        packed: (&m.packed[..]).into(),
        absmax,
        code: (&m.code).into(),
        n: m.n,
        k: m.k,
        blocksize: m.blocksize,
        dtype: m.dtype,
    };
    let view = ViewMut::new(&mut y, &[m.n as i64, m.k as i64]).unwrap();
    nf4_dequantize(device, Nf4Dequantize { w, y: view }).unwrap();
    y
}

/// Bits, where NaN and signs of zero count.
fn assert_same<T: Float>(name: &str, m: &Matrix, got: &[T], want: &[T]) {
    let bits = |x: &T| x.to_f64().to_bits();
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let shape = (m.n, m.k, m.blocksize, m.group);
        assert_eq!(bits(got), bits(want), "{name} {:?} {shape:?} at {i}", m.dtype);
    }
    assert_eq!(got.len(), want.len());
}

fn check_dtypes<T: Float>(m: &Matrix) {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let m = Matrix { dtype, ..m.clone() };
        let want = m.values::<T>();
        for executor in executors() {
            let name = format!("{} {}", executor.name, T::DTYPE.name());
            assert_same(&name, &m, &on_host::<T>(&executor.device, &m), &want);
        }
    }
}

fn check_all(m: &Matrix) {
    check_dtypes::<bf16>(m);
    check_dtypes::<f16>(m);
    check_dtypes::<f32>(m);
    check_dtypes::<f64>(m);
}

/// Whole runs of a warp, several blocks of threads and a tail, for every block size: blocks that cross
/// rows, fill a run, or span several.
#[test]
fn dequantized_values_are_the_rule_for_every_block_size() {
    for (i, blocksize) in [32, 64, 128, 256, 512, 1024, 2048, 4096].into_iter().enumerate() {
        let shape = [[3, 4099], [129, 96], [1, 9001], [37, 257]][i % 4];
        check_all(&Matrix::random(i as u64, shape, blocksize, 0));
        check_all(&Matrix::random(i as u64, shape, blocksize, [256, 3, 1][i % 3]));
    }
}

/// Any 16 numbers may be a code book: signed zeros, halves that overflow, subnormals of each dtype, ties.
#[test]
fn dequantized_values_are_the_rule_for_any_code_book() {
    let odd = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        1e-8,
        -6e-8,
        6.1e-5,
        1e5,
        -65519.0,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        1.0 + 1.0 / 2048.0,
        1e-40,
        -1e-45,
        3e38,
        0.333_333_34,
    ];
    for book in [&FP4_CODE, &odd] {
        let mut m = Matrix::random(1, [5, 700], 64, 0);
        m.code = book.to_vec();
        m.absmax[..3].copy_from_slice(&[1.0, 0.0, 1e-3]);
        check_all(&m);
    }
}

/// Every nibble at every place of a word.
#[test]
fn every_code_decodes_at_every_place() {
    let mut m = Matrix::random(2, [16, 1024], 32, 0);
    for (i, byte) in m.packed.iter_mut().enumerate() {
        *byte = ((i / 4 % 16 * 17) ^ (i % 4 * 0x35)) as u8;
    }
    check_all(&m);
}

/// Operands anywhere in device memory and rows with gaps; nothing else is written.
#[test]
fn dequantized_values_do_not_depend_on_where_operands_lie() {
    for executor in gpus() {
        let gpu = gpu_of(&executor.device);
        for group in [0, 256] {
            let m = Matrix::random(3, [11, 937], 64, group);
            for (shift, gap) in [(0, 0), (1, 0), (2, 0), (4, 0), (8, 0), (0, 8), (3, 5)] {
                let name = format!("{} {shift} {gap}", executor.name);
                let (half, single) = (m.values::<bf16>(), m.values::<f32>());
                assert_same(&name, &m, &on_device::<bf16>(gpu, &m, shift, gap), &half);
                assert_same(&name, &m, &on_device::<f32>(gpu, &m, shift, gap), &single);
            }
        }
    }
}

/// Counters of one launch with operands on the device, the values checked.
fn counted<T: Float>(set: KernelSet, m: &Matrix) -> Counters {
    let driver = Arc::new(EmuDriver::new());
    let gpu = Arc::new(Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap());
    let y = on_device::<T>(&gpu, m, 0, 0);
    assert_same("counted", m, &y, &m.values::<T>());
    let launches = driver.take_launches();
    assert_eq!(launches.len(), 1);
    launches[0].1.clone()
}

/// Packed codes, maxima and values once.
fn least<T>(m: &Matrix) -> usize {
    let blocks = m.absmax.len();
    let maxima = if m.group == 0 { 4 * blocks } else { blocks + 4 * m.nested.len() + 1024 };
    m.packed.len() + maxima + 64 + m.n * m.k * size_of::<T>()
}

/// Every other resource needs at most `share` of memory's time, and memory moves `bytes` times the
/// least.
fn check_budget<T: Float>(m: &Matrix, bytes: f64, share: f64, wavefronts: f64) {
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let c = counted::<T>(set, m);
        let name = format!("{} {} x {} group {}", T::DTYPE.name(), m.n, m.k, m.group);
        let moved = c.global_bytes() as f64 / least::<T>(m) as f64;
        let passes = c.shared_wavefronts as f64 / c.shared_wavefronts_ideal as f64;
        let floors = c.floors(&H200);
        let memory = floors.iter().find(|f| f.resource == "memory").unwrap().seconds;
        assert_eq!(c.local_accesses, 0, "{name}");
        assert!(moved <= bytes, "{name}: {moved} of the least bytes");
        assert!(passes <= wavefronts, "{name}: {passes} of the ideal wavefronts");
        for f in floors.iter().filter(|f| f.resource != "memory") {
            assert!(f.seconds <= share * memory, "{name}: {f:?}, memory {memory:e}");
        }
    }
}

/// Memory binds: everything else hides behind 85 % of a copy's time, in most cases behind 60 %.
#[test]
fn dequantization_is_bound_by_memory() {
    let plain = Matrix::random(4, [512, 4096], 64, 0);
    check_budget::<bf16>(&plain, 1.005, 0.6, 1.0);
    check_budget::<f16>(&plain, 1.005, 0.6, 1.0);
    check_budget::<f32>(&plain, 1.005, 0.6, 1.0);
    check_budget::<f64>(&plain, 1.005, 0.6, 1.0);
    check_budget::<f16>(&Matrix { dtype: DType::F32, ..plain }, 1.005, 0.6, 1.0);
    let short = Matrix::random(5, [512, 4096], 32, 0);
    check_budget::<bf16>(&short, 1.005, 0.65, 1.0);
    check_budget::<f32>(&short, 1.005, 0.65, 1.7);
}

/// Codes of maxima fall into banks at random. A small matrix reads the table of 256 words too often,
/// which only fewer blocks than multiprocessors would mend. The large one ends within a warp's run.
#[test]
fn dequantization_with_nested_maxima_is_bound_by_memory() {
    check_budget::<bf16>(&Matrix::random(6, [512, 4096], 64, 256), 1.075, 0.6, 1.05);
    check_budget::<bf16>(&Matrix::random(7, [4095, 4099], 64, 256), 1.02, 0.6, 1.05);
}

#[test]
fn nf4_dequantizes_to_f16() {
    for shape in [(1, 1), (3, 7), (5, 64), (9, 130)] {
        let w: Vec<f32> = normals(21, shape.0 * shape.1, 1.0).iter().map(|&x| x as f32).collect();
        let rows = View::rows_of(&w, shape.1).unwrap();
        let t = Nf4Tensor::quantize(&Device::Cpu, rows, &Nf4Options::default()).unwrap();
        let dequantize = |device: &Device| t.dequantize::<f16>(device).unwrap();
        on_all(dequantize, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name} {shape:?}"));
    }
}
