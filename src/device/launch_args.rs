//! The operands of one launch on their way to the device, and its results on their way back.

use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

use bytemuck::{NoUninit, Pod};

use crate::device::driver::Grid;
use crate::device::gpu::Gpu;
use crate::device::kernel_types::{Column, Const, Ptr};
use crate::device::kernels::Kernels;
use crate::device::scratch::{PoolGuard, Scratch};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{Dims, Location, View, ViewMut};

/// Turns the operands of one op into device addresses, starts its kernels, and brings results back.
///
/// * A view of device memory is passed through: its address is what the kernel gets.
/// * A view of host memory is copied to the device before the launch and, if it is an output, back by
///   [`finish`](LaunchArgs::finish). Such a call waits for the device, so it suits tests, set-up and
///   small data.
///
/// An op writes one parameter struct, gives it to [`start`](LaunchArgs::start) for each kernel, and
/// ends with [`finish`](LaunchArgs::finish). After an error it just returns: the drop frees what was
/// allocated, and outputs in host memory keep what they held.
///
/// # Cost
/// With all operands in device memory a launch is one driver call. Nothing is allocated once the
/// GPU's scratch memory has its size, and nobody waits unless values are
/// [fetched](LaunchArgs::fetch).
///
/// # Example
/// `examples/own_op` is a whole op outside this crate: CUDA source, CPU side, GPU side and tests.
///
/// ```
/// use bytemuck::{Pod, Zeroable};
/// use gradus::device::{Column, Const, Gpu, Grid, Kernels, LaunchArgs};
/// use gradus::{Result, View, ViewMut};
///
/// /// `HalveParams` of `kernels/halve.cu`.
/// #[derive(Clone, Copy, Pod, Zeroable)]
/// #[repr(C)]
/// struct Params {
///     x: Column<Const<f32>>,
///     y: Column<f32>,
///     n: i64,
/// }
///
/// fn halve(gpu: &Gpu, kernels: &Kernels, x: View<f32>, y: ViewMut<f32>) -> Result<()> {
///     let n = x.numel();
///     let mut launch = LaunchArgs::new(gpu, kernels);
///     let params = Params { x: launch.column(&x)?, y: launch.column_out(y)?, n };
///     launch.start("halve_f32", Grid::linear((n as u64).div_ceil(256) as u32, 256), &params)?;
///     launch.finish()
/// }
/// ```
#[must_use = "results in host memory are there after `finish`"]
pub struct LaunchArgs<'a> {
    gpu: &'a Gpu,
    kernels: &'a Kernels,
    /// Copies of host memory, to be freed.
    staged: Vec<u64>,
    returns: Vec<Return>,
    /// Device memory that [`LaunchArgs::fetch`] may read.
    known: Vec<Range<u64>>,
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
    /// The operands of one call of an op, none yet. Errors name the op as `kernels` does.
    pub fn new(gpu: &'a Gpu, kernels: &'a Kernels) -> LaunchArgs<'a> {
        let (staged, returns, known) = (Vec::new(), Vec::new(), Vec::new());
        LaunchArgs { gpu, kernels, staged, returns, known, guard: None, outputs: PhantomData }
    }

    /// Device address of element 0 of an operand that is read.
    ///
    /// # Errors
    /// `InvalidArgument` for memory of another device; `OutOfMemory`, `Driver` or `DeviceLost` where
    /// a copy of host memory fails.
    pub fn input<T: Element>(&mut self, view: &View<'_, T>) -> Result<Ptr<Const<T>>> {
        let at = if self.is_host(view)? { self.bring(view, true)? } else { self.know(view) };
        Ok(Ptr::new(at))
    }

    /// Device address of an optional operand that is read; 0 if there is none.
    ///
    /// # Errors
    /// As [`input`](LaunchArgs::input).
    pub fn opt_input<T: Element>(&mut self, view: &Option<View<'_, T>>) -> Result<Ptr<Const<T>>> {
        view.as_ref().map_or(Ok(Ptr::NULL), |view| self.input(view))
    }

    /// Device address of a result of which the kernel writes every element and reads none.
    ///
    /// # Errors
    /// As [`input`](LaunchArgs::input).
    pub fn output<T: Element>(&mut self, view: ViewMut<'a, T>) -> Result<Ptr<T>> {
        self.result(view, false)
    }

    /// Device address of an optional result; 0 if it is not wanted.
    ///
    /// # Errors
    /// As [`input`](LaunchArgs::input).
    pub fn opt_output<T: Element>(&mut self, view: Option<ViewMut<'a, T>>) -> Result<Ptr<T>> {
        view.map_or(Ok(Ptr::NULL), |view| self.output(view))
    }

    /// Device address of an operand that is read and written, or written in part.
    ///
    /// # Errors
    /// As [`input`](LaunchArgs::input).
    pub fn update<T: Element>(&mut self, view: ViewMut<'a, T>) -> Result<Ptr<T>> {
        self.result(view, true)
    }

    /// A vector of any stride that is read, or a matrix with contiguous rows, whose stride is from one
    /// row to the next.
    ///
    /// # Errors
    /// As [`input`](LaunchArgs::input), and `InvalidArgument` for a view of higher rank.
    pub fn column<T: Element>(&mut self, view: &View<'_, T>) -> Result<Column<Const<T>>> {
        self.check_column(view.dims())?;
        Ok(Column { stride: view.stride(0), at: self.input(view)? })
    }

    /// An optional vector that is read; address 0 if there is none.
    ///
    /// # Errors
    /// As [`column`](LaunchArgs::column).
    pub fn opt_column<T: Element>(
        &mut self,
        view: &Option<View<'_, T>>,
    ) -> Result<Column<Const<T>>> {
        view.as_ref().map_or(Ok(Column::NONE), |view| self.column(view))
    }

    /// A vector that is written, or address 0 for one that is not wanted.
    ///
    /// # Errors
    /// As [`column`](LaunchArgs::column).
    pub fn column_out<T: Element>(
        &mut self,
        view: impl Into<Option<ViewMut<'a, T>>>,
    ) -> Result<Column<T>> {
        match view.into() {
            Some(view) => {
                self.check_column(view.dims())?;
                Ok(Column { stride: view.stride(0), at: self.output(view)? })
            }
            None => Ok(Column::NONE),
        }
    }

    /// Device address of a table of the op's own that kernels only read, such as a list of pointers.
    /// A table is uploaded once; later calls with the same content find it on the device.
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver` or `DeviceLost` where it cannot be uploaded; `Unsupported` for a new
    /// table while the stream is captured.
    pub fn table<T: NoUninit>(&mut self, table: &[T]) -> Result<Ptr<Const<T>>> {
        let bytes: &[u8] = bytemuck::cast_slice(table);
        if self.staged.is_empty() {
            return self.guard().table(bytes).map(Ptr::new);
        }
        self.upload(table).map(Ptr::as_const)
    }

    /// Device address of values that kernels read and write; see [`fetch`](LaunchArgs::fetch).
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver` or `DeviceLost` where they cannot be uploaded.
    pub fn state<T: Pod>(&mut self, initial: &[T]) -> Result<Ptr<T>> {
        self.upload(initial)
    }

    /// Device address of room for `count` values that kernels write; see
    /// [`fetch`](LaunchArgs::fetch). They hold whatever the last op left.
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver` or `DeviceLost` where there is no memory.
    pub fn values<P>(&mut self, count: usize) -> Result<Ptr<P>> {
        let bytes = count.saturating_mul(size_of::<P>());
        let device = match self.staged.is_empty() {
            true => self.guard().take(bytes)?,
            false => self.alloc(bytes)?,
        };
        self.known.push(device..device.saturating_add(bytes as u64));
        Ok(Ptr::new(device))
    }

    /// `count` values from a device address on: of [`values`](LaunchArgs::values), of
    /// [`state`](LaunchArgs::state), in scratch memory or in an operand. Waits for the kernels.
    ///
    /// # Errors
    /// `InvalidArgument` beyond the memory of this launch; `Unsupported` while the stream is
    /// captured; `Driver` or `DeviceLost` if a kernel failed.
    pub fn fetch<P: Pod>(&self, device: Ptr<P>, count: usize) -> Result<Vec<P>> {
        let device = device.address();
        let op = self.kernels.name();
        self.gpu.context.outside(|| format!("{op} has results for the host"))?;
        let bytes = count.saturating_mul(size_of::<P>()) as u64;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let end = device.saturating_add(bytes);
        if !self.known.iter().any(|range| range.start <= device && end <= range.end) {
            let got = format!("{bytes} bytes at {device:#x}");
            return Err(Error::invalid(op, "fetch", got, "memory of this launch"));
        }
        let mut values = vec![P::zeroed(); count];
        let host = bytemuck::cast_slice_mut(&mut values);
        self.gpu.call(|d| d.download(self.gpu.stream(), host, device))?;
        Ok(values)
    }

    /// `bytes` bytes of scratch memory and a ticket for the kernels of this op.
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver` or `DeviceLost` where the GPU's scratch memory has to grow and cannot.
    pub fn scratch(&mut self, bytes: usize) -> Result<Scratch<'a>> {
        let scratch = Scratch::new(self.guard(), bytes)?;
        let at = scratch.ptr::<u8>().address();
        self.known.push(at..at.saturating_add(bytes as u64));
        Ok(scratch)
    }

    /// Starts a kernel with one parameter struct. A grid of no blocks starts nothing.
    ///
    /// # Errors
    /// `InvalidArgument` if the struct has another size than the kernel's. `Unsupported` if the PTX
    /// has no such kernel, the kernel takes anything else than one struct, or the stream is captured
    /// and the PTX is not loaded yet. `Driver` or `DeviceLost` if the driver refuses the PTX or the
    /// launch.
    pub fn start(&self, kernel: &str, grid: Grid, params: &impl NoUninit) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.gpu.launch(self.kernels, kernel, grid, params)
    }

    /// Brings the results to outputs in host memory. Without such outputs it returns at once.
    ///
    /// # Errors
    /// `Driver` or `DeviceLost` if a kernel or a copy failed.
    pub fn finish(self) -> Result<()> {
        for back in &self.returns {
            back.copy(self.gpu)?;
        }
        Ok(())
    }

    fn upload<T: NoUninit>(&mut self, values: &[T]) -> Result<Ptr<T>> {
        let device = self.values::<T>(values.len())?;
        let bytes = bytemuck::cast_slice(values);
        self.gpu.call(|d| d.upload(self.gpu.stream(), device.address(), bytes))?;
        Ok(device)
    }

    fn result<T: Element>(&mut self, view: ViewMut<'a, T>, filled: bool) -> Result<Ptr<T>> {
        let shared = view.as_view();
        if !self.is_host(&shared)? {
            return Ok(Ptr::new(self.know(&shared)));
        }
        let (device, dims) = (self.bring(&shared, filled)?, *shared.dims());
        let host = view.as_mut_ptr() as *mut u8;
        self.returns.push(Return { device, host, dims, size: size_of::<T>() });
        Ok(Ptr::new(device))
    }

    fn check_column(&self, dims: &Dims) -> Result<()> {
        if dims.rank() == 1 || (dims.rank() == 2 && dims.has_unit_rows()) {
            return Ok(());
        }
        let (got, expected) = (format!("{dims:?}"), "a vector, or a matrix with contiguous rows");
        Err(Error::invalid(self.kernels.name(), "operand", got, expected))
    }

    /// Whether the view is host memory; what is neither there nor on this GPU is refused.
    fn is_host<T>(&self, view: &View<'_, T>) -> Result<bool> {
        let here = self.gpu.info().ordinal;
        match view.location() {
            Location::Host => Ok(true),
            Location::Device(ordinal) if ordinal == here => Ok(false),
            other @ Location::Device(_) => {
                let expected = format!("host memory or memory of GPU {here}");
                let got = format!("{other:?} memory");
                Err(Error::invalid(self.kernels.name(), "operand", got, expected))
            }
        }
    }

    /// Device address of a view of device memory.
    fn know<T>(&mut self, view: &View<'_, T>) -> u64 {
        let bytes = view.byte_range();
        self.known.push(bytes.start as u64..bytes.end as u64);
        bytes.start as u64
    }

    fn guard(&mut self) -> Rc<PoolGuard<'a>> {
        let gpu = self.gpu;
        self.guard.get_or_insert_with(|| Rc::new(gpu.lock_scratch())).clone()
    }

    fn bring<T: Element>(&mut self, view: &View<'_, T>, filled: bool) -> Result<u64> {
        let (dims, host) = (*view.dims(), view.as_ptr() as *const u8);
        let device = self.alloc(dims.span().unwrap_or(0) as usize * size_of::<T>())?;
        self.known.push(device..device + view.byte_range().len() as u64);
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
        let device = self.gpu.alloc(self.kernels.name(), bytes.max(1))?;
        self.staged.push(device);
        Ok(device)
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
