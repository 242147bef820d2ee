//! Shared by the tests of the emulator.
#![allow(dead_code)]

pub mod opcodes;

use gradus_emu::{Counters, Fault, Machine, Module, Shape};

/// A machine with a module, and buffers by number.
pub struct Bench {
    pub machine: Machine,
    pub module: Module,
    pub params: Vec<u8>,
}

impl Bench {
    pub fn new(ptx: &str) -> Bench {
        let mut machine = Machine::default();
        let module = Module::load(ptx, &mut machine).unwrap_or_else(|e| panic!("{e}"));
        Bench { machine, module, params: Vec::new() }
    }

    /// A buffer with data, passed as the next parameter.
    pub fn input<T: Copy>(&mut self, data: &[T]) -> u64 {
        let bytes = bytes_of(data);
        let at = self.machine.memory.alloc("input", bytes.len());
        self.machine.memory.host_write(at, bytes).unwrap();
        self.value(at);
        at
    }

    /// A buffer that holds nothing, passed as the next parameter.
    pub fn output(&mut self, bytes: usize) -> u64 {
        let at = self.machine.memory.alloc("output", bytes);
        self.value(at);
        at
    }

    /// The next parameter, aligned to its size.
    pub fn value<T: Copy>(&mut self, value: T) {
        let size = size_of::<T>();
        self.params.resize(self.params.len().next_multiple_of(size), 0);
        self.params.extend_from_slice(bytes_of(&[value]));
    }

    pub fn launch(
        &mut self,
        kernel: &str,
        blocks: u32,
        threads: u32,
    ) -> Result<Counters, Box<Fault>> {
        self.launch_clusters(kernel, blocks, threads, 1)
    }

    pub fn launch_clusters(
        &mut self,
        kernel: &str,
        blocks: u32,
        threads: u32,
        cluster: u32,
    ) -> Result<Counters, Box<Fault>> {
        let shape = Shape { blocks: [blocks, 1, 1], threads: [threads, 1, 1], cluster, shared: 0 };
        let program = self.module.program(kernel).unwrap();
        self.machine.launch(program, &shape, &self.params)
    }

    pub fn read<T: Copy + Default>(&mut self, at: u64, count: usize) -> Vec<T> {
        let mut bytes = vec![0; count * size_of::<T>()];
        self.machine.memory.host_read(at, &mut bytes).unwrap();
        bytes
            .chunks(size_of::<T>())
            // SAFETY: each chunk has the size of T, and every T used here is valid for any bits.
            .map(|c| unsafe { std::ptr::read_unaligned(c.as_ptr().cast()) })
            .collect()
    }
}

pub fn bytes_of<T: Copy>(data: &[T]) -> &[u8] {
    // SAFETY: plain numbers have no padding.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

/// A kernel `k` of one warp whose parameter holds the addresses of out, a, b and c: `body` uses
/// %tid.x in %r0, the addresses of the lane's 8 bytes of a, b, c in %rd1 to %rd3 and of its 8 bytes
/// of the output in %rd0. One parameter, because that is all that the drivers' launch passes.
pub fn lane_kernel(body: &str) -> String {
    format!(
        ".version 8.4\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .align 8 .b8 p[32])\n{{\n.reg .pred %p<8>;\n.reg .b16 %h<8>;\n.reg .b32 %r<16>;\n.reg .f32 %f<16>;\n\
         .reg .b64 %rd<16>;\n.reg .f64 %fd<16>;\nmov.u32 %r0, %tid.x;\nmul.wide.u32 %rd8, %r0, 8;\n\
         ld.param.u64 %rd0, [p];\nld.param.u64 %rd1, [p+8];\nld.param.u64 %rd2, [p+16];\nld.param.u64 %rd3, [p+24];\n\
         add.s64 %rd0, %rd0, %rd8;\nadd.s64 %rd1, %rd1, %rd8;\nadd.s64 %rd2, %rd2, %rd8;\nadd.s64 %rd3, %rd3, %rd8;\n\
         {body}\nret;\n}}\n"
    )
}

/// Runs a [`lane_kernel`] on 32 values of each operand.
pub fn lanes(
    body: &str,
    a: &[u64; 32],
    b: &[u64; 32],
    c: &[u64; 32],
) -> Result<Vec<u64>, Box<Fault>> {
    let mut bench = Bench::new(&lane_kernel(body));
    let out = bench.input(&[0u64; 32]);
    bench.input(a);
    bench.input(b);
    bench.input(c);
    bench.launch("k", 1, 32)?;
    Ok(bench.read(out, 32))
}

/// A reproducible stream of bits.
pub struct Bits(pub u64);

impl Bits {
    pub fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0;
        (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (x >> 32)
    }

    pub fn row(&mut self) -> [u64; 32] {
        std::array::from_fn(|_| self.next())
    }

    /// In [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
