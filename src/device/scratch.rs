//! Memory that calls reuse one after the other. A stream runs its work in order, so what one call
//! leaves the next may overwrite; growing is by doubling, so that a steady state allocates nothing.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::device::gpu::lock;
use crate::device::link::{Block, Link};
use crate::error::{Error, Result};

/// Bytes before the memory that hold tickets.
const TICKETS: usize = 256;

/// Alignment of what is lent.
const ALIGN: usize = 256;

/// Least bytes of an allocation.
const LEAST: usize = 1 << 16;

/// Bytes of tables from which all are forgotten.
const TABLES: usize = 16 << 20;

/// Memory that is lent to one call at a time.
#[derive(Default)]
pub(super) struct Reused {
    /// Tickets, then the memory.
    block: Option<Arc<Block>>,
    tables: Tables,
    /// What was outgrown by the present call, whose launches still use it.
    retired: Vec<Arc<Block>>,
}

/// Read-only tables by their content. A table once uploaded serves every later call with the same
/// operands, and every graph.
#[derive(Default)]
struct Tables {
    slabs: Vec<Arc<Block>>,
    /// Bytes of the last slab that are taken.
    used: usize,
    places: HashMap<Box<[u8]>, u64>,
}

impl Reused {
    /// All memory, for graphs that hold its addresses.
    pub fn blocks(&self) -> impl Iterator<Item = Arc<Block>> {
        self.block.iter().chain(&self.tables.slabs).cloned()
    }

    fn capacity(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.bytes - TICKETS)
    }

    /// Memory of at least `bytes` bytes, with tickets at 0.
    fn grow(&mut self, link: &Arc<Link>, bytes: usize) -> Result<()> {
        let what = "scratch memory";
        let size = bytes.max(LEAST).checked_next_power_of_two();
        let size = size
            .and_then(|size| size.checked_add(TICKETS))
            .ok_or_else(|| Error::OutOfMemory { what: what.to_string(), bytes: bytes as u64 })?;
        let block = Arc::new(Block::new(link, what, size)?);
        link.call(|d| d.fill(link.stream, block.ptr, 0, TICKETS))?;
        self.retired.extend(self.block.replace(block));
        Ok(())
    }

    fn table(&mut self, link: &Arc<Link>, table: &[u8]) -> Result<u64> {
        if let Some(&at) = self.tables.places.get(table) {
            return Ok(at);
        }
        link.outside(|| format!("a table of {} bytes has to be copied", table.len()))?;
        let at = self.place(link, table.len().next_multiple_of(ALIGN / 4))?;
        link.call(|d| d.upload(link.stream, at, table))?;
        self.tables.places.insert(table.into(), at);
        Ok(at)
    }

    /// Room for a table.
    fn place(&mut self, link: &Arc<Link>, bytes: usize) -> Result<u64> {
        let tables = &mut self.tables;
        let last = tables.slabs.last().map_or(0, |slab| slab.bytes);
        if tables.used + bytes > last {
            if tables.slabs.iter().map(|slab| slab.bytes).sum::<usize>() >= TABLES {
                tables.places.clear();
                self.retired.append(&mut tables.slabs);
            }
            let size = bytes.max(LEAST).max((2 * last).min(TABLES));
            tables.slabs.push(Arc::new(Block::new(link, "tables of launches", size)?));
            tables.used = 0;
        }
        let start = tables.slabs.last().map_or(0, |slab| slab.ptr) + tables.used as u64;
        tables.used += bytes;
        Ok(start)
    }
}

/// The memory on loan to one call. Nobody else gets any before the loan falls.
pub(crate) struct Loan<'a> {
    link: &'a Arc<Link>,
    memory: RefCell<MutexGuard<'a, Reused>>,
    used: Cell<usize>,
}

impl<'a> Loan<'a> {
    pub(super) fn new(link: &'a Arc<Link>, memory: &'a Mutex<Reused>) -> Loan<'a> {
        Loan { link, memory: RefCell::new(lock(memory)), used: Cell::new(0) }
    }

    /// Address of `bytes` bytes beside all others of this loan. Their content is whatever the last
    /// call left.
    pub fn take(&self, bytes: usize) -> Result<u64> {
        let memory = &mut *self.memory.borrow_mut();
        let start = self.used.get();
        let end = start.saturating_add(bytes).checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
        if end > memory.capacity() || memory.block.is_none() {
            memory.grow(self.link, end)?;
        }
        self.used.set(end);
        Ok(memory.block.as_ref().map_or(0, |block| block.ptr) + (TICKETS + start) as u64)
    }

    /// Address of a table that is read only.
    pub fn table(&self, table: &[u8]) -> Result<u64> {
        self.memory.borrow_mut().table(self.link, table)
    }

    /// Address of a `u32` that is 0 and is left at 0; there once memory was taken.
    fn ticket(&self) -> u64 {
        self.memory.borrow().block.as_ref().map_or(0, |block| block.ptr)
    }
}

impl Drop for Loan<'_> {
    /// What was outgrown goes back when the launches that use it are done.
    fn drop(&mut self) {
        let retired = &mut self.memory.get_mut().retired;
        if !retired.is_empty() && self.link.synchronize().is_ok() {
            retired.clear();
        }
    }
}

/// A ticket and bytes for the launches of one op.
pub(crate) struct ScratchGuard<'a> {
    ptr: u64,
    ticket: u64,
    _loan: Rc<Loan<'a>>,
}

impl<'a> ScratchGuard<'a> {
    pub(super) fn new(loan: Rc<Loan<'a>>, bytes: usize) -> Result<ScratchGuard<'a>> {
        Ok(ScratchGuard { ptr: loan.take(bytes)?, ticket: loan.ticket(), _loan: loan })
    }

    /// Device address of the bytes, aligned to 256.
    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Device address of a `u32` that is 0, for kernels whose last block finishes the work; they
    /// leave it at 0.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }
}
