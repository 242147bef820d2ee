//! Executes PTX on the CPU and checks it as it goes: exact bounds, uninitialized reads, races in
//! shared and global memory, missing waits, divergent barriers. Traffic is counted exactly.
//!
//! ```
//! use gradus_emu::{Machine, Module, Shape};
//! let ptx = "
//! .version 8.0
//! .target sm_80
//! .address_size 64
//! .visible .entry double(.param .u64 data)
//! {
//!   .reg .b64 %rd<4>; .reg .b32 %r<4>;
//!   ld.param.u64 %rd1, [data];
//!   mov.u32 %r1, %tid.x;
//!   mul.wide.u32 %rd2, %r1, 4;
//!   add.s64 %rd3, %rd1, %rd2;
//!   ld.global.u32 %r2, [%rd3];
//!   shl.b32 %r3, %r2, 1;
//!   st.global.u32 [%rd3], %r3;
//!   ret;
//! }";
//! let mut machine = Machine::default();
//! let module = Module::load(ptx, &mut machine)?;
//! let data = machine.memory.alloc("data", 128);
//! machine.memory.host_write(data, &[1u8; 128]).map_err(|f| f.to_string())?;
//! let shape = Shape { blocks: [1, 1, 1], threads: [32, 1, 1], cluster: 1, shared: 0 };
//! let counters = machine
//!     .launch(module.program("double")?, &shape, &data.to_le_bytes())
//!     .map_err(|f| f.to_string())?;
//! assert_eq!(counters.global_bytes(), 256);
//! let mut out = [0u8; 128];
//! machine.memory.host_read(data, &mut out).map_err(|f| f.to_string())?;
//! assert_eq!(out, [2u8; 128]);
//! # Ok::<(), String>(())
//! ```

pub mod audit;
mod decode;
mod machine;
mod num;
pub mod report;
pub mod tensor;
mod text;
pub mod time;

use std::collections::HashMap;
use std::sync::Arc;

pub use decode::program::Program;
pub use machine::counters::Counters;
pub use machine::fault::{Fault, Kind};
pub use machine::grid::{Options, Shape};
pub use machine::memory::Memory;
pub use tensor::Numerics;

/// A device: memory and the way it runs kernels.
#[derive(Default)]
pub struct Machine {
    /// Global memory.
    pub memory: Memory,
    /// Order, arithmetic and limits of launches.
    pub options: Options,
}

impl Machine {
    /// Runs a kernel to its end. `params` are the bytes of its parameters, laid out as declared.
    pub fn launch(
        &mut self,
        program: &Program,
        shape: &Shape,
        params: &[u8],
    ) -> Result<Counters, Box<Fault>> {
        machine::grid::run(program, shape, params, &mut self.memory, &self.options, None)
    }

    /// Buffers that are allocated from here on count as written: what [`record`](Machine::record) needs, as
    /// most blocks of its launches never run.
    pub fn presume_written(&mut self) {
        self.memory.presumed = true;
    }

    /// The next launch that is recorded belongs to another op: what was touched before is cold again.
    pub fn cool(&mut self) {
        self.memory.warm.clear();
    }

    /// Runs a few clusters of a launch, without the detectors of races and without the products of
    /// tensor cores, and writes down what they did. Memory then holds no results. A launch with no more
    /// than `samples` clusters runs all. Of long clusters only the one in the middle runs.
    pub fn record(
        &mut self,
        program: &Program,
        shape: &Shape,
        params: &[u8],
        samples: u64,
    ) -> Result<(Counters, time::Record), Box<Fault>> {
        let mut recording = time::tape::Recording::default();
        self.memory.traffic = Some(Box::default());
        let asked = Some((&mut recording, samples));
        let ran =
            machine::grid::run(program, shape, params, &mut self.memory, &self.options, asked);
        let traffic = self.memory.traffic.take().unwrap_or_default();
        let counters = ran?;
        let touched: Vec<u32> = traffic.unique.keys().copied().collect();
        let record = time::Record::new(program, shape, recording, *traffic, &self.memory)
            .with_atomics(counters.serial_atomics);
        self.memory.warm.extend(touched);
        Ok((counters, record))
    }
}

/// A loaded PTX file.
pub struct Module {
    programs: HashMap<String, Program>,
    /// `.version` of the file.
    pub version: (u32, u32),
    /// `.target` of the file.
    pub target: String,
}

impl Module {
    /// Parses and decodes all kernels of a file; `.global` variables get their memory.
    pub fn load(ptx: &str, machine: &mut Machine) -> Result<Module, String> {
        let source = text::parse(ptx)?;
        let mut globals = HashMap::new();
        for v in source.variables.iter().filter(|v| v.space == text::ast::Space::Global) {
            let address = machine.memory.alloc(&v.name, v.size as usize);
            let mut bytes = v.init.clone();
            bytes.resize(v.size as usize, 0);
            machine.memory.host_write(address, &bytes).map_err(|f| f.to_string())?;
            globals.insert(v.name.clone(), address);
        }
        let text: Arc<str> = ptx.into();
        let mut programs = HashMap::new();
        for entry in source.functions.iter().filter(|f| f.entry) {
            let program = decode::decode(&source, &text, entry, &globals)?;
            programs.insert(entry.name.clone(), program);
        }
        Ok(Module { programs, version: source.version, target: source.target })
    }

    /// A kernel by name.
    pub fn program(&self, kernel: &str) -> Result<&Program, String> {
        self.programs.get(kernel).ok_or_else(|| format!("the module has no kernel `{kernel}`"))
    }

    /// Names of all kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.programs.keys().map(String::as_str)
    }
}
