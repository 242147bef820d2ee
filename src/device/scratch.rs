//! Scratch memory that consecutive launches on one stream reuse. A stream runs its work in order, so
//! a call may overwrite what the call before it left. The pool grows by doubling, so that a steady
//! state allocates nothing.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::device::context::{Allocation, Context};
use crate::device::gpu::lock;
use crate::device::kernel_types::Ptr;
use crate::error::{Error, Result};

/// Bytes at the start of the allocation that hold tickets.
const TICKETS: usize = 1 << 14;

/// Alignment of every range of scratch memory.
const ALIGN: usize = 256;

/// Smallest allocation in bytes.
const LEAST: usize = 1 << 16;

/// Once the tables hold this many bytes, all of them are forgotten.
const TABLES: usize = 16 << 20;

/// Device memory that one call at a time uses.
#[derive(Default)]
pub(super) struct ScratchPool {
    /// Tickets, then scratch memory.
    allocation: Option<Arc<Allocation>>,
    tables: Tables,
    /// Allocations that the present call outgrew; its launches still use them.
    retired: Vec<Arc<Allocation>>,
}

/// Read-only tables, found by their content. A table is uploaded once and serves every later call
/// with the same operands, and every graph.
#[derive(Default)]
struct Tables {
    slabs: Vec<Arc<Allocation>>,
    /// Bytes of the last slab that are taken.
    used: usize,
    places: HashMap<Box<[u8]>, u64>,
}

impl ScratchPool {
    /// All memory, for graphs that hold its addresses.
    pub fn allocations(&self) -> impl Iterator<Item = Arc<Allocation>> {
        self.allocation.iter().chain(&self.tables.slabs).cloned()
    }

    fn capacity(&self) -> usize {
        self.allocation.as_ref().map_or(0, |allocation| allocation.bytes - TICKETS)
    }

    /// Memory of at least `bytes` bytes, with tickets at 0.
    fn grow(&mut self, context: &Arc<Context>, bytes: usize) -> Result<()> {
        let what = "scratch memory";
        let size = bytes.max(LEAST).checked_next_power_of_two();
        let size = size
            .and_then(|size| size.checked_add(TICKETS))
            .ok_or_else(|| Error::OutOfMemory { what: what.to_string(), bytes: bytes as u64 })?;
        let allocation = Arc::new(Allocation::new(context, what, size)?);
        context.call(|d| d.fill(context.stream, allocation.ptr, 0, TICKETS))?;
        self.retired.extend(self.allocation.replace(allocation));
        Ok(())
    }

    fn table(&mut self, context: &Arc<Context>, table: &[u8]) -> Result<u64> {
        if let Some(&at) = self.tables.places.get(table) {
            return Ok(at);
        }
        context.outside(|| format!("a table of {} bytes has to be copied", table.len()))?;
        let at = self.place(context, table.len().next_multiple_of(ALIGN / 4))?;
        context.call(|d| d.upload(context.stream, at, table))?;
        self.tables.places.insert(table.into(), at);
        Ok(at)
    }

    /// Room for a table.
    fn place(&mut self, context: &Arc<Context>, bytes: usize) -> Result<u64> {
        let tables = &mut self.tables;
        let last = tables.slabs.last().map_or(0, |slab| slab.bytes);
        if tables.used + bytes > last {
            if tables.slabs.iter().map(|slab| slab.bytes).sum::<usize>() >= TABLES {
                tables.places.clear();
                self.retired.append(&mut tables.slabs);
            }
            let size = bytes.max(LEAST).max((2 * last).min(TABLES));
            tables.slabs.push(Arc::new(Allocation::new(context, "tables of launches", size)?));
            tables.used = 0;
        }
        let start = tables.slabs.last().map_or(0, |slab| slab.ptr) + tables.used as u64;
        tables.used += bytes;
        Ok(start)
    }
}

/// Exclusive use of a [`ScratchPool`] for one call. Other calls wait until the guard is dropped.
pub(crate) struct PoolGuard<'a> {
    context: &'a Arc<Context>,
    pool: RefCell<MutexGuard<'a, ScratchPool>>,
    used: Cell<usize>,
}

impl<'a> PoolGuard<'a> {
    pub(super) fn new(context: &'a Arc<Context>, pool: &'a Mutex<ScratchPool>) -> PoolGuard<'a> {
        PoolGuard { context, pool: RefCell::new(lock(pool)), used: Cell::new(0) }
    }

    /// Address of `bytes` bytes that overlap no other range of this guard. They hold whatever the
    /// last call left.
    pub fn take(&self, bytes: usize) -> Result<u64> {
        let pool = &mut *self.pool.borrow_mut();
        let start = self.used.get();
        let end = start.saturating_add(bytes).checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
        if end > pool.capacity() || pool.allocation.is_none() {
            pool.grow(self.context, end)?;
        }
        self.used.set(end);
        Ok(pool.allocation.as_ref().map_or(0, |allocation| allocation.ptr)
            + (TICKETS + start) as u64)
    }

    /// Address of a table that is read only.
    pub fn table(&self, table: &[u8]) -> Result<u64> {
        self.pool.borrow_mut().table(self.context, table)
    }

    /// Address of a `u32` that is 0, and that kernels leave at 0. It exists once memory was taken.
    fn ticket(&self) -> u64 {
        self.pool.borrow().allocation.as_ref().map_or(0, |allocation| allocation.ptr)
    }
}

impl Drop for PoolGuard<'_> {
    /// Frees outgrown allocations once the launches that use them are done.
    fn drop(&mut self) {
        let retired = &mut self.pool.get_mut().retired;
        if !retired.is_empty() && self.context.synchronize().is_ok() {
            retired.clear();
        }
    }
}

/// Scratch memory of one op: bytes, and a ticket that counts blocks. The op has them to itself until
/// this and the [`LaunchArgs`](crate::device::LaunchArgs) they came from are dropped.
pub struct Scratch<'a> {
    ptr: u64,
    ticket: u64,
    _loan: Rc<PoolGuard<'a>>,
}

impl<'a> Scratch<'a> {
    pub(super) fn new(guard: Rc<PoolGuard<'a>>, bytes: usize) -> Result<Scratch<'a>> {
        Ok(Scratch { ptr: guard.take(bytes)?, ticket: guard.ticket(), _loan: guard })
    }

    /// Device address of the bytes, aligned to 256. They hold whatever the last op left.
    pub fn ptr<T>(&self) -> Ptr<T> {
        Ptr::new(self.ptr)
    }

    /// Device address of a `u32` that is 0, for kernels whose last block finishes the work; they
    /// have to leave it at 0.
    pub fn ticket(&self) -> Ptr<u32> {
        Ptr::new(self.ticket)
    }

    /// Device address of `count` such numbers, [`ticket`](Scratch::ticket) the first of them; `None` if there are not
    /// as many (4,096).
    pub fn tickets(&self, count: usize) -> Option<Ptr<u32>> {
        (count <= TICKETS / size_of::<u32>()).then_some(self.ticket())
    }
}
