//! Operands of the ops of a decoder in the memory of a device whose calls are logged.

use std::sync::Arc;

use crate::common::normals;
use gradus::device::{Call, DeviceBuffer, EmuDriver, Gpu, KernelSet, RecordingDriver};
use gradus::dtype::Element;
use gradus::ops::*;
use gradus::quant::{Absmax, Nf4View, QuantType};
use gradus::{DType, Device, Result, View, ViewMut};

/// Tokens, width, vocabulary, heads, heads of keys, width of a head, rank.
pub const T: usize = 5;
pub const H: usize = 32;
pub const V: usize = 48;
pub const HEADS: usize = 4;
pub const KV: usize = 2;
pub const D: usize = 8;
pub const R: usize = 3;

/// A device whose calls are logged.
pub struct World {
    pub driver: Arc<RecordingDriver>,
    pub gpu: Arc<Gpu>,
    pub device: Device,
}

/// A buffer with a shape.
pub struct Tensor<E> {
    pub buffer: DeviceBuffer<E>,
    pub shape: Vec<i64>,
}

impl<E: Element> Tensor<E> {
    pub fn v(&self) -> View<'_, E> {
        self.buffer.view(&self.shape).unwrap()
    }
    pub fn m(&mut self) -> ViewMut<'_, E> {
        self.buffer.view_mut(&self.shape).unwrap()
    }

    pub fn bits(&self) -> Vec<u8> {
        bytemuck_bytes(&self.buffer.to_host().unwrap())
    }
}

pub fn bytemuck_bytes<E: Element>(data: &[E]) -> Vec<u8> {
    bytemuck::cast_slice(data).to_vec()
}

impl World {
    pub fn new(set: KernelSet) -> World {
        let driver = Arc::new(RecordingDriver::new(Arc::new(EmuDriver::new())));
        let gpu = Arc::new(Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap());
        World { driver, device: Device::Gpu(gpu.clone()), gpu }
    }

    pub fn of<E: Element>(&self, data: &[E], shape: &[usize]) -> Tensor<E> {
        let buffer = DeviceBuffer::from_host(&self.gpu, data).unwrap();
        Tensor { buffer, shape: shape.iter().map(|&n| n as i64).collect() }
    }

    pub fn f(&self, seed: u64, shape: &[usize]) -> Tensor<f32> {
        let n = shape.iter().product();
        let data: Vec<f32> = normals(seed, n, 1.0).iter().map(|&x| x as f32).collect();
        self.of(&data, shape)
    }

    pub fn zeros(&self, shape: &[usize]) -> Tensor<f32> {
        self.of(&vec![0f32; shape.iter().product()], shape)
    }

    /// Runs twice and looks at the second run: `values` results go to the host.
    pub fn steady(&self, name: &str, values: usize, mut run: impl FnMut(&Device) -> Result<()>) {
        run(&self.device).unwrap_or_else(|e| panic!("{name}: {e}"));
        self.driver.take();
        run(&self.device).unwrap();
        let calls = self.driver.take();
        assert!(!calls.iter().any(Call::is_memory), "{name}: {calls:?}");
        assert!(!calls.contains(&Call::Synchronize), "{name}: {calls:?}");
        assert_eq!(calls.iter().filter(|c| c.is_wait()).count(), values, "{name}: {calls:?}");
        assert!(calls.iter().any(|c| matches!(c, Call::Launch(_))), "{name}: {calls:?}");
        let uploads = calls.iter().filter(|c| matches!(c, Call::Upload(_))).count();
        assert!(uploads <= values, "{name}: tables are there already: {calls:?}");
    }
}

/// A 4-bit matrix in device memory.
pub struct Weight {
    pub packed: Tensor<u8>,
    pub absmax: Tensor<f32>,
    pub code: Tensor<f32>,
    pub n: usize,
    pub k: usize,
}

impl Weight {
    pub fn new(world: &World, seed: u64, [n, k]: [usize; 2]) -> Weight {
        let bytes: Vec<u8> =
            normals(seed, n * k / 2, 1e4).iter().map(|&x| x as i64 as u8).collect();
        Weight {
            packed: world.of(&bytes, &[n * k / 2]),
            absmax: world.f(seed + 1, &[n * k / 32]),
            code: world.of(QuantType::Nf4.code(), &[16]),
            n,
            k,
        }
    }

    pub fn v(&self) -> Nf4View<'_> {
        Nf4View {
            packed: self.packed.v(),
            absmax: Absmax::F32(self.absmax.v()),
            code: self.code.v(),
            n: self.n,
            k: self.k,
            blocksize: 32,
            dtype: DType::F32,
        }
    }
}

pub fn lora<'a>(a: &'a Tensor<f32>, b: &'a Tensor<f32>) -> Lora<'a, f32> {
    Lora { a: a.v(), b: b.v(), scale: 0.5 }
}
