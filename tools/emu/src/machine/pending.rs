//! What is under way asynchronously: products of the tensor cores, bulk copies, and the clocks
//! that mbarriers pass on.
//!
//! Everything lands as late as it may, so that a missing wait shows. A product computes at once,
//! but its accumulators stay undefined until `wgmma.wait_group`; the bytes it read are compared
//! then, so that a buffer that is filled again too early is found. A bulk store keeps a copy of
//! its source, compares it at `cp.async.bulk.wait_group`, and writes global memory there.

use std::collections::{HashMap, VecDeque};

use super::fault::{Fault, Kind, Step};
use super::memory::Memory;
use super::race::{Access, Mark, Who, who};
use super::registers::{ALL, Registers, Row};
use super::shared::{IN_FLIGHT, VALID};
use super::warp::join;
use super::{Cluster, Context};
use crate::tensor::mbarrier::Mbarrier;
use crate::tensor::reduce::Reduction;
use crate::tensor::tensor_map::TensorElement;
use crate::text::ast::Class;
use crate::time::tape::{Note, object};

/// Bytes of shared memory that something asynchronous reads.
#[derive(Clone)]
pub struct Source {
    pub place: BarrierPlace,
    pub bytes: Vec<u8>,
}

impl Source {
    /// An error if the bytes are not what they were.
    fn unchanged(&self, cluster: &Cluster, what: &str) -> Step<()> {
        unchanged(cluster, self.place, &self.bytes, what)
    }
}

/// An error if shared memory does not hold the bytes any more.
fn unchanged(cluster: &Cluster, (rank, at): BarrierPlace, bytes: &[u8], what: &str) -> Step<()> {
    let (shared, range) = (&cluster.shared[rank], at..at + bytes.len());
    let stable = shared.state[range.clone()].iter().all(|&s| s == VALID);
    if stable && shared.data[range] == *bytes {
        return Ok(());
    }
    let message = format!("shared bytes from {at} are overwritten while {what} still reads them");
    Err(Fault::new(Kind::InFlight, message))
}

/// A product that was issued and not waited for.
#[derive(Default)]
pub struct Product {
    pub accumulators: Vec<usize>,
    /// Registers of A and what they held.
    pub operands: Vec<(usize, Row)>,
    /// The chunks of shared memory it reads: offset in the own block, bytes.
    pub chunks: Vec<(usize, [u8; 16])>,
    pub block: usize,
}

/// The products of a warp.
#[derive(Default)]
pub struct Products {
    open: Vec<Product>,
    groups: VecDeque<Vec<Product>>,
    /// Accumulators of products under way, and of how many.
    flying: HashMap<usize, u32>,
    /// Executions of `wgmma.fence`.
    fences: u64,
    /// What a register held when the last product that used it was done, and the fences until then.
    settled: HashMap<usize, (Row, u64)>,
}

impl Products {
    /// True if a product that was not waited for writes the register.
    pub fn in_flight(&self, register: usize) -> bool {
        self.flying.contains_key(&register)
    }

    /// An error if something else has written the accumulator of a product under way, which is
    /// undefined until the product is waited for.
    pub fn untouched(&self, registers: &Registers, register: usize) -> Step<()> {
        if registers.known(Class::Narrow, register) == 0 {
            return Ok(());
        }
        let message = "an accumulator was written before wgmma.wait_group";
        Err(Fault::new(Kind::InFlight, message))
    }

    /// True if nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.groups.iter().all(Vec::is_empty)
    }

    /// `wgmma.fence`.
    pub fn fence(&mut self) {
        self.fences += 1;
    }

    /// An error if registers were written since a product used them, and no fence came since.
    ///
    /// The compiler may move a write of a register behind the fence that the source has before it,
    /// and the assembler then waits; so a fence anywhere after the last product will do.
    pub fn check_fenced(&self, registers: &Registers, used: &[usize]) -> Step<()> {
        for &register in used {
            let fenced = match self.settled.get(&register) {
                _ if self.in_flight(register) => true,
                None => self.fences > 0,
                Some((row, fences)) => *row == registers.narrow[register] || self.fences > *fences,
            };
            if !fenced {
                let message =
                    "wgmma.mma_async uses a register that was written without a wgmma.fence since";
                return Err(Fault::new(Kind::Misuse, message));
            }
        }
        Ok(())
    }

    pub fn push(&mut self, product: Product) {
        for &register in &product.accumulators {
            *self.flying.entry(register).or_default() += 1;
        }
        self.open.push(product);
    }

    pub fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    /// `wgmma.wait_group n`: all but the youngest `n` groups are done.
    pub fn wait(&mut self, n: usize, registers: &mut Registers, cluster: &Cluster) -> Step<()> {
        let done = self.groups.len().saturating_sub(n);
        let done: Vec<Product> = self.groups.drain(..done).flatten().collect();
        for product in &done {
            for (at, bytes) in &product.chunks {
                unchanged(cluster, (product.block, *at), bytes, "a product of the tensor cores")?;
            }
            for &(register, row) in &product.operands {
                if registers.narrow[register] != row {
                    let message = "a register of A was written while a product still reads it";
                    return Err(Fault::new(Kind::InFlight, message));
                }
                self.settled.insert(register, (row, self.fences));
            }
            for &register in &product.accumulators {
                self.untouched(registers, register)?;
                let left = self.flying.entry(register).or_default();
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.flying.remove(&register);
                    let row = registers.narrow[register];
                    registers.set_narrow(register, &row, ALL, ALL);
                    self.settled.insert(register, (row, self.fences));
                }
            }
        }
        Ok(())
    }
}

/// A copy from shared to global memory by the bulk engine.
pub struct BulkStore {
    pub sources: Vec<Source>,
    /// Sources and where they go in global memory.
    pub writes: Vec<(usize, u64)>,
    pub reduction: Option<(Reduction, TensorElement)>,
    /// The source was read: it may be used again.
    pub read: bool,
}

impl BulkStore {
    fn finish_reading(&mut self, cluster: &Cluster) -> Step<()> {
        if !self.read {
            for source in &self.sources {
                source.unchanged(cluster, "a bulk copy")?;
            }
            self.read = true;
        }
        Ok(())
    }

    fn write(&self, memory: &mut Memory) -> Step<()> {
        for &(source, address) in &self.writes {
            let bytes = &self.sources[source].bytes;
            let (slot, offset) = memory.locate(address, bytes.len())?;
            let buffer = memory.buffer(slot);
            let target = &mut buffer.data[offset..offset + bytes.len()];
            match self.reduction {
                None => target.copy_from_slice(bytes),
                Some((reduction, element)) => reduction
                    .apply(element, target, bytes)
                    .map_err(|m| Fault::new(Kind::Misuse, m))?,
            }
            buffer.set_written(offset, bytes.len());
        }
        Ok(())
    }
}

/// Bulk stores of one lane.
#[derive(Default)]
pub struct BulkGroups {
    pub open: Vec<BulkStore>,
    groups: VecDeque<Vec<BulkStore>>,
}

impl BulkGroups {
    pub fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    /// `cp.async.bulk.wait_group{.read} n`.
    pub fn wait(
        &mut self,
        n: usize,
        read: bool,
        cluster: &Cluster,
        memory: &mut Memory,
    ) -> Step<()> {
        let done = self.groups.len().saturating_sub(n);
        for store in self.groups.iter_mut().take(done).flatten() {
            store.finish_reading(cluster)?;
        }
        if !read {
            for store in self.groups.drain(..done).flatten() {
                store.write(memory)?;
            }
        }
        Ok(())
    }

    /// The end of the kernel: global memory is written even if nobody waited, but the source must
    /// have been waited for, because shared memory ends with the block.
    pub fn finish(&mut self, memory: &mut Memory) -> Step<()> {
        if !self.open.is_empty() || self.groups.iter().flatten().any(|store| !store.read) {
            let message = "the kernel ends while a bulk copy still reads shared memory";
            return Err(Fault::new(Kind::InFlight, message));
        }
        self.groups.drain(..).flatten().try_for_each(|store| store.write(memory))
    }
}

/// What the detectors know of an mbarrier beside its 64 bits.
#[derive(Clone, Default)]
pub struct BarrierClocks {
    /// Clocks of the arrivals so far, and those of the last completed phase: happens-before, and
    /// what is visible to the async proxy.
    arriving: (Vec<u32>, Vec<u32>),
    completed: (Vec<u32>, Vec<u32>),
    /// Who initialized it.
    initialized: Mark,
    /// The initialization was fenced for the async proxy.
    visible: bool,
    /// Phases that were completed.
    phases: u32,
}

/// Place of an mbarrier: rank of the block, offset.
pub type BarrierPlace = (usize, usize);

impl Cluster {
    /// Changes an mbarrier object.
    pub fn update_barrier<T>(
        &mut self,
        place: BarrierPlace,
        change: impl FnOnce(&mut Mbarrier) -> Result<T, String>,
    ) -> Step<T> {
        let mut barrier = self.barrier(place)?;
        let before = barrier.phase();
        let number = self.barriers.get(&place).map_or(0, |sync| sync.phases);
        self.note(|| Note::Arrives(object(place), number));
        let result = change(&mut barrier).map_err(|message| Fault::new(Kind::Misuse, message))?;
        let at = place.1;
        self.shared[place.0].data[at..at + 8].copy_from_slice(&barrier.pack().to_le_bytes());
        if barrier.phase() != before {
            let sync = self.barriers.entry(place).or_default();
            sync.completed = sync.arriving.clone();
            sync.phases += 1;
            self.activity += 1;
        }
        Ok(result)
    }

    /// Reads an mbarrier object.
    pub fn barrier(&self, (rank, at): BarrierPlace) -> Step<Mbarrier> {
        let shared = &self.shared[rank];
        if !at.is_multiple_of(8) {
            let message = format!("an mbarrier at shared offset {at}, expected a multiple of 8");
            return Err(Fault::new(Kind::Misaligned, message));
        }
        shared.bounds(at, 8)?;
        shared.readable(at, 8)?;
        let bits =
            shared.data[at..at + 8].iter().rev().fold(0, |bits, b| bits << 8 | u64::from(*b));
        Mbarrier::unpack(bits).map_err(|message| Fault::new(Kind::Misuse, message))
    }
}

impl Context<'_> {
    /// The warp as the race detector knows it.
    fn warp_who(&self) -> Who<'_> {
        who(self.warp, self.cluster.index, &self.cluster.acquired, self.launch)
    }

    /// Bytes of shared memory that the async proxy reads on behalf of this warp.
    pub fn read_async(&mut self, place: BarrierPlace, bytes: &mut [u8], lane: u8) -> Step<()> {
        self.proxied(place, bytes.len())?;
        let (rank, at) = place;
        let who = who(self.warp, self.cluster.index, &self.cluster.acquired, self.launch);
        let shared = &mut self.cluster.shared[rank];
        shared.readable(at, bytes.len())?;
        shared.mark(at, bytes.len(), &who, lane, Access::Read)?;
        bytes.copy_from_slice(&shared.data[at..at + bytes.len()]);
        Ok(())
    }

    /// A range of shared memory that the async proxy will write on behalf of this warp.
    pub fn begin_async_write(&mut self, place: BarrierPlace, bytes: usize, lane: u8) -> Step<()> {
        self.proxied(place, bytes)?;
        self.begin_late_write(place, bytes, lane)
    }

    /// A range of shared memory that this warp writes, and that is there later.
    pub fn begin_late_write(
        &mut self,
        (rank, at): BarrierPlace,
        bytes: usize,
        lane: u8,
    ) -> Step<()> {
        let who = who(self.warp, self.cluster.index, &self.cluster.acquired, self.launch);
        let shared = &mut self.cluster.shared[rank];
        shared.bounds(at, bytes)?;
        shared.writable(at, bytes)?;
        shared.mark(at, bytes, &who, lane, Access::Write)?;
        shared.state[at..at + bytes].fill(IN_FLIGHT);
        Ok(())
    }

    /// An error if the range is not inside, or if the async proxy cannot see what st.shared wrote
    /// there: it does only after a fence.proxy.async on the way.
    fn proxied(&self, (rank, at): BarrierPlace, bytes: usize) -> Step<()> {
        let who = self.warp_who();
        let shared = &self.cluster.shared[rank];
        shared.bounds(at, bytes)?;
        for word in (at..at + bytes).step_by(4) {
            let mark = shared.last_write(word);
            if mark.owner != 0
                && who.follows(mark)
                && self.warp.proxy[((mark.owner - 1) % who.warps) as usize] < mark.clock
            {
                let message = format!(
                    "the async proxy accesses shared byte {word} without a fence.proxy.async after the store to it"
                );
                return Err(Fault::new(Kind::MissingProxyFence, message));
            }
        }
        Ok(())
    }

    /// `mbarrier.init`.
    pub fn initialize_barrier(&mut self, place: BarrierPlace, count: u32, lane: u8) -> Step<()> {
        let barrier = Mbarrier::init(count).map_err(|message| Fault::new(Kind::Misuse, message))?;
        if !place.1.is_multiple_of(8) {
            let message =
                format!("an mbarrier at shared offset {}, expected a multiple of 8", place.1);
            return Err(Fault::new(Kind::Misaligned, message));
        }
        if self.cluster.barriers.contains_key(&place) && self.cluster.barrier(place).is_ok() {
            let message =
                format!("mbarrier.init of the live mbarrier at shared offset {}", place.1);
            return Err(Fault::new(Kind::Misuse, message));
        }
        self.write_barrier(place, barrier.pack(), lane)?;
        let sync =
            BarrierClocks { initialized: self.warp_who().mark(), ..BarrierClocks::default() };
        self.cluster.barriers.insert(place, sync);
        Ok(())
    }

    /// `mbarrier.inval`.
    pub fn invalidate_barrier(&mut self, place: BarrierPlace, lane: u8) -> Step<()> {
        self.write_barrier(place, Mbarrier::INVALID, lane)?;
        self.cluster.barriers.remove(&place);
        Ok(())
    }

    /// An ordinary store of a barrier's 64 bits.
    fn write_barrier(&mut self, (rank, at): BarrierPlace, bits: u64, lane: u8) -> Step<()> {
        let who = who(self.warp, self.cluster.index, &self.cluster.acquired, self.launch);
        let shared = &mut self.cluster.shared[rank];
        shared.bounds(at, 8)?;
        shared.writable(at, 8)?;
        shared.mark(at, 8, &who, lane, Access::Write)?;
        shared.data[at..at + 8].copy_from_slice(&bits.to_le_bytes());
        shared.state[at..at + 8].fill(VALID);
        self.cluster.activity += 1;
        Ok(())
    }

    /// An error unless the initialization of the mbarrier happened before.
    pub fn reach_barrier(&self, place: BarrierPlace) -> Step<()> {
        self.cluster.barrier(place)?;
        match self.cluster.barriers.get(&place) {
            Some(sync) if self.warp_who().follows(sync.initialized) => Ok(()),
            Some(_) => {
                let message = format!(
                    "the mbarrier at shared offset {} is used before its mbarrier.init is ordered",
                    place.1
                );
                Err(Fault::new(Kind::Race, message))
            }
            None => {
                Err(Fault::new(Kind::Misuse, "mbarrier on bits that mbarrier.init did not write"))
            }
        }
    }

    /// An error unless an asynchronous copy may signal the mbarrier.
    pub fn reach_barrier_async(&self, place: BarrierPlace) -> Step<()> {
        self.reach_barrier(place)?;
        if self.cluster.barriers.get(&place).is_some_and(|sync| sync.visible) {
            return Ok(());
        }
        let message = "an asynchronous copy signals an mbarrier whose mbarrier.init no fence.mbarrier_init or \
                       fence.proxy.async followed";
        Err(Fault::new(Kind::MissingProxyFence, message))
    }

    /// A fence that makes the mbarriers initialized until now visible to the async proxy.
    pub fn show_barriers(&mut self) {
        let (who, mut seen) = (self.warp_who(), Vec::new());
        for (place, sync) in &self.cluster.barriers {
            if !sync.visible && who.follows(sync.initialized) {
                seen.push(*place);
            }
        }
        for place in seen {
            self.cluster.barriers.entry(place).or_default().visible = true;
        }
    }

    /// Notes that the copies of this warp arrive at an mbarrier when they land.
    pub fn note_landing(&mut self, place: BarrierPlace) {
        let number = self.cluster.barriers.get(&place).map_or(0, |sync| sync.phases);
        self.cluster.note(|| Note::Lands(object(place), number));
    }

    /// Notes a successful wait: for the phase that was completed last.
    pub fn note_wait(&mut self, place: BarrierPlace) {
        let number = self.cluster.barriers.get(&place).map_or(0, |sync| sync.phases);
        if let Some(last) = number.checked_sub(1) {
            self.cluster.note(|| Note::Waits(object(place), last));
        }
    }

    /// Before an arrival: the waiters of this phase will know what this warp knows.
    pub fn release_to(&mut self, place: BarrierPlace) {
        let sync = self.cluster.barriers.entry(place).or_default();
        join(&mut sync.arriving.0, &self.warp.clock);
        join(&mut sync.arriving.1, &self.warp.proxy);
        self.warp.tick();
    }

    /// After a successful wait.
    pub fn acquire_from(&mut self, place: BarrierPlace) {
        if let Some(sync) = self.cluster.barriers.get(&place) {
            self.warp.join(&sync.completed.0, &sync.completed.1);
        }
    }
}

/// What a copy into shared memory brings when it lands.
pub struct Landing {
    pub rank: usize,
    /// Shared offset, bytes, and where they come from.
    pub pieces: Vec<(usize, usize, Payload)>,
    pub signal: Signal,
    /// Line of the instruction, for messages.
    pub line: u32,
}

/// Where landing bytes come from. Global memory is read on landing.
pub enum Payload {
    Global(u64),
    Shared(Source),
    Data(Vec<u8>),
    Zero,
}

/// What a landed copy tells an mbarrier.
pub enum Signal {
    /// So many bytes have come.
    Bytes(BarrierPlace),
    /// A thread's copies are done: one arrival.
    Arrival(BarrierPlace),
}

impl Landing {
    /// Writes the bytes and signals the mbarrier.
    pub fn land(self, cluster: &mut Cluster, memory: &mut Memory) -> Step<()> {
        let mut total = 0;
        for (at, bytes, payload) in self.pieces {
            let data = match payload {
                Payload::Zero => vec![0; bytes],
                Payload::Data(data) => data,
                Payload::Global(address) => {
                    let (slot, from) = memory.locate(address, bytes)?;
                    memory.buffer(slot).data[from..from + bytes].to_vec()
                }
                Payload::Shared(source) => {
                    source.unchanged(cluster, "a bulk copy")?;
                    source.bytes
                }
            };
            let shared = &mut cluster.shared[self.rank];
            shared.data[at..at + bytes].copy_from_slice(&data);
            shared.state[at..at + bytes].fill(VALID);
            // The copies of a thread stay its writes: the arrival passes its clock on. Those of the
            // copy engine have no thread; whoever sees the mbarrier complete may use them.
            if matches!(self.signal, Signal::Bytes(_)) {
                shared.clear_marks(at, bytes);
            }
            total += bytes as u32;
        }
        let signaled = match self.signal {
            Signal::Bytes(place) => cluster.update_barrier(place, |b| b.complete_tx(total)),
            Signal::Arrival(place) => cluster.update_barrier(place, |b| b.arrive(1).map(drop)),
        };
        signaled.map_err(|mut fault| {
            fault.message = format!("{} (the copy of PTX line {})", fault.message, self.line);
            fault
        })
    }
}
