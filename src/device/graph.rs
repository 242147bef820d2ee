//! Recorded work: a decode step costs the host one call instead of hundreds.

use std::fmt;
use std::sync::Arc;

use crate::device::context::Allocation;
use crate::device::driver;
use crate::device::gpu::Gpu;
use crate::device::pinned::PinnedAllocation;
use crate::error::Result;

/// Work of a GPU's stream that was recorded by [`Gpu::capture`] and can be started again and again.
///
/// A graph holds addresses, not contents: inputs are changed by writing to the memory that the
/// recorded calls read. Device memory of the caller's that they use has to stay where it is as long
/// as the graph is launched; the GPU's own memory, pinned memory and kernels are kept by the graph.
pub struct Graph {
    handle: driver::Graph,
    pinned: Vec<Arc<PinnedAllocation>>,
    _memory: Vec<Arc<Allocation>>,
    gpu: Arc<Gpu>,
}

/// What has to live as long as the graph.
#[derive(Default)]
pub(super) struct Captured {
    /// Pinned memory that is copied from or to.
    pub pinned: Vec<Arc<PinnedAllocation>>,
    /// Device memory that was given back in the capture.
    pub freed: Vec<u64>,
}

impl Gpu {
    /// Records what `body` gives to the stream, without doing it.
    ///
    /// These calls, with these operands, have to have run once before, so that kernels are
    /// loaded, scratch memory has its size and tables are on the device. `body` may neither
    /// allocate nor wait: operands are in device memory, and results stay there or go to a
    /// [`PinnedBuffer`](crate::device::PinnedBuffer). Meanwhile no other thread may use this GPU.
    ///
    /// # Errors
    /// The first error of `body`; `Unsupported` for what a capture cannot hold; `Driver` if the
    /// driver refuses. Nothing has run then, and the stream goes on as before.
    pub fn capture(self: &Arc<Gpu>, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.context.begin_capture()?;
        let open = Open(self);
        let (done, graph) = (body(), open.end());
        done.and(graph)
    }
}

/// A capture that ends whatever happens to its body.
struct Open<'a>(&'a Arc<Gpu>);

impl Open<'_> {
    fn end(self) -> Result<Graph> {
        let gpu = self.0;
        std::mem::forget(self);
        finish(gpu)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let _ = finish(self.0);
    }
}

fn finish(gpu: &Arc<Gpu>) -> Result<Graph> {
    let handle = gpu.call(|d| d.end_capture(gpu.stream()));
    let captured = gpu.context.leave_capture();
    let freed =
        captured.freed.into_iter().map(|ptr| Arc::new(Allocation::adopt(&gpu.context, ptr)));
    let memory = gpu.pooled_memory().into_iter().chain(freed).collect();
    Ok(Graph { gpu: gpu.clone(), handle: handle?, pinned: captured.pinned, _memory: memory })
}

impl Graph {
    /// Starts the recorded work behind what the stream was given before, and returns at once.
    ///
    /// # Errors
    /// `Driver` if the launch fails; `DeviceLost` if the device is.
    pub fn launch(&self) -> Result<()> {
        self.gpu.call(|d| d.launch_graph(self.gpu.stream(), self.handle))?;
        self.pinned.iter().for_each(|block| block.use_now());
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.gpu.synchronize();
        let _ = self.gpu.call(|d| d.destroy_graph(self.handle));
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({})", self.handle.0)
    }
}
