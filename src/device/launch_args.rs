//! Brings the operands of one op to the device and its results back. Views of device memory are
//! passed through untouched. Views of host memory are copied over before the launch and back
//! after it; such a call waits for the device, so it suits tests, set-up and small data.
//!
//! An op without views of host memory neither allocates nor waits, unless it hands out values: its
//! tables, values and scratch memory are the GPU's own. Beside views of host memory, tables and
//! values are allocations like those views, with bounds of their own.

use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

use bytemuck::{Pod, Zeroable};

use crate::device::driver::Grid;
use crate::device::gpu::Gpu;
use crate::device::scratch::{PoolGuard, Scratch};
use crate::dtype::Element;
use crate::error::Result;
use crate::view::{Dims, Location, View, ViewMut};

/// A vector of any stride as kernels take it: `Column` of `kernels/common.cuh`. No address is no
/// operand.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Column {
    pub at: u64,
    pub stride: i64,
}

/// The operands of one op on their way.
pub(crate) struct LaunchArgs<'a> {
    gpu: &'a Gpu,
    op: &'static str,
    staged: Vec<u64>,
    returns: Vec<Return>,
    guard: Option<Rc<PoolGuard<'a>>>,
    outputs: PhantomData<&'a mut ()>,
}

/// A result that goes back to the host.
struct Return {
    device: u64,
    host: *mut u8,
    dims: Dims,
    size: usize,
}

impl<'a> LaunchArgs<'a> {
    pub fn new(gpu: &'a Gpu, op: &'static str) -> LaunchArgs<'a> {
        let (staged, returns) = (Vec::new(), Vec::new());
        LaunchArgs { gpu, op, staged, returns, guard: None, outputs: PhantomData }
    }

    /// Device address of element 0 of an operand that is read.
    pub fn input<T: Element>(&mut self, view: &View<'_, T>) -> Result<u64> {
        if view.location() != Location::Host {
            return Ok(view.as_ptr() as u64);
        }
        self.bring(view, true)
    }

    /// The same for an optional operand; 0 if there is none.
    pub fn opt_input<T: Element>(&mut self, view: &Option<View<'_, T>>) -> Result<u64> {
        view.as_ref().map_or(Ok(0), |view| self.input(view))
    }

    /// Device address of a result of which every element is written and none is read.
    pub fn output<T: Element>(&mut self, view: ViewMut<'a, T>) -> Result<u64> {
        self.result(view, false)
    }

    /// The same for an optional result; 0 if it is not wanted.
    pub fn opt_output<T: Element>(&mut self, view: Option<ViewMut<'a, T>>) -> Result<u64> {
        view.map_or(Ok(0), |view| self.output(view))
    }

    /// Device address of an operand that is read and written.
    pub fn update<T: Element>(&mut self, view: ViewMut<'a, T>) -> Result<u64> {
        self.result(view, true)
    }

    fn result<T: Element>(&mut self, view: ViewMut<'a, T>, filled: bool) -> Result<u64> {
        let shared = view.as_view();
        if shared.location() != Location::Host {
            return Ok(shared.as_ptr() as u64);
        }
        let (device, dims) = (self.bring(&shared, filled)?, *shared.dims());
        let host = view.as_mut_ptr() as *mut u8;
        self.returns.push(Return { device, host, dims, size: size_of::<T>() });
        Ok(device)
    }

    /// A table of the op's own that kernels read, such as a list of pointers, in device memory.
    pub fn table<T: Pod>(&mut self, table: &[T]) -> Result<u64> {
        let bytes: &[u8] = bytemuck::cast_slice(table);
        if self.staged.is_empty() {
            return self.guard().table(bytes);
        }
        self.state(table)
    }

    /// Values that kernels read and write, in device memory.
    pub fn state<T: Pod>(&mut self, initial: &[T]) -> Result<u64> {
        let device = self.values::<T>(initial.len())?;
        let bytes = bytemuck::cast_slice(initial);
        self.gpu.call(|d| d.upload(self.gpu.stream(), device, bytes))?;
        Ok(device)
    }

    /// Device memory for results that come back as plain values; see [`LaunchArgs::fetch`].
    pub fn values<P: Pod>(&mut self, count: usize) -> Result<u64> {
        let bytes = count.saturating_mul(size_of::<P>());
        if self.staged.is_empty() {
            return self.guard().take(bytes);
        }
        self.alloc(bytes)
    }

    fn guard(&mut self) -> Rc<PoolGuard<'a>> {
        let gpu = self.gpu;
        self.guard.get_or_insert_with(|| Rc::new(gpu.lock_scratch())).clone()
    }

    /// What the kernels left at an address that [`LaunchArgs::values`] gave; waits for them.
    pub fn fetch<P: Pod>(&self, device: u64, count: usize) -> Result<Vec<P>> {
        let mut values = vec![P::zeroed(); count];
        self.gpu.context.outside(|| format!("{} has results for the host", self.op))?;
        if count > 0 {
            let bytes = bytemuck::cast_slice_mut(&mut values);
            self.gpu.call(|d| d.download(self.gpu.stream(), bytes, device))?;
        }
        Ok(values)
    }

    /// A vector that is read, as kernels take vectors of any stride.
    pub fn column<T: Element>(&mut self, view: &View<'_, T>) -> Result<Column> {
        Ok(Column { stride: view.stride(0), at: self.input(view)? })
    }

    /// The same for an optional vector.
    pub fn opt_column<T: Element>(&mut self, view: &Option<View<'_, T>>) -> Result<Column> {
        view.as_ref().map_or(Ok(Column::default()), |view| self.column(view))
    }

    /// A vector that is written, or one that is not wanted.
    pub fn column_out<T: Element>(
        &mut self,
        view: impl Into<Option<ViewMut<'a, T>>>,
    ) -> Result<Column> {
        match view.into() {
            Some(view) => Ok(Column { stride: view.stride(0), at: self.output(view)? }),
            None => Ok(Column::default()),
        }
    }

    fn bring<T: Element>(&mut self, view: &View<'_, T>, filled: bool) -> Result<u64> {
        let (dims, host) = (*view.dims(), view.as_ptr() as *const u8);
        let device = self.alloc(dims.span().unwrap_or(0) as usize * size_of::<T>())?;
        if filled {
            for run in runs(&dims, size_of::<T>()) {
                // SAFETY: a run lies inside the span that the view's constructor checked.
                let bytes = unsafe { std::slice::from_raw_parts(host.add(run.start), run.len()) };
                self.gpu.call(|d| d.upload(self.gpu.stream(), device + run.start as u64, bytes))?;
            }
        }
        Ok(device)
    }

    /// Exactly as many bytes as asked for, so that the emulator's bounds are those of the view.
    fn alloc(&mut self, bytes: usize) -> Result<u64> {
        let device = self.gpu.alloc(self.op, bytes.max(1))?;
        self.staged.push(device);
        Ok(device)
    }

    /// A ticket and `bytes` bytes that stay this op's until the launch and the guard fall. Their
    /// content is whatever the last op left.
    pub fn scratch(&mut self, bytes: usize) -> Result<Scratch<'a>> {
        Scratch::new(self.guard(), bytes)
    }

    /// Starts a kernel of the op's source. A grid of no blocks starts nothing.
    pub fn start(&self, kernel: &str, grid: Grid, params: &impl Pod) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.gpu.launch(self.op, kernel, grid, params)
    }

    /// Brings the results back, if any operand came from the host.
    pub fn finish(self) -> Result<()> {
        for back in &self.returns {
            back.copy(self.gpu)?;
        }
        Ok(())
    }
}

impl Return {
    fn copy(&self, gpu: &Gpu) -> Result<()> {
        for run in runs(&self.dims, self.size) {
            // SAFETY: `output` and `update` took the exclusive view of these elements for longer
            // than the launch lives, and a run lies inside its span.
            let bytes =
                unsafe { std::slice::from_raw_parts_mut(self.host.add(run.start), run.len()) };
            gpu.call(|d| d.download(gpu.stream(), bytes, self.device + run.start as u64))?;
        }
        Ok(())
    }
}

/// Byte ranges that hold a view's elements and nothing else, each as long as can be.
fn runs(dims: &Dims, size: usize) -> Vec<Range<usize>> {
    let length = dims.run_length() * size;
    dims.run_offsets().into_iter().map(|o| o * size..o * size + length).collect()
}

impl Drop for LaunchArgs<'_> {
    fn drop(&mut self) {
        if !self.staged.is_empty() {
            let _ = self.gpu.synchronize();
        }
        for &device in &self.staged {
            self.gpu.free(device);
        }
    }
}
