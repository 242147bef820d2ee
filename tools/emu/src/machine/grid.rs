//! Runs a grid: clusters one after another in a seeded order, the warps of a cluster by turns.
//! Within a warp the fragment with the lowest pc runs first, which brings diverged lanes together
//! again where the compiler laid the join.

use super::barrier::Barrier;
use super::counters::Counters;
use super::fault::{Fault, Kind, Step};
use super::memory::Memory;
use super::race::Acquired;
use super::record::sampled;
use super::shared::Shared;
use super::warp::{Fragment, State, Warp};
use super::{Cluster, Context, Flow, Launch};
use crate::decode::program::{Program, Special};
use crate::decode::shared::shared_base;
use crate::tensor::Numerics;
use crate::time::tape::Recording;

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Shuffles the order of clusters and of warps; 0 keeps it.
    pub seed: u64,
    /// Arithmetic of the tensor cores.
    pub numerics: Numerics,
    /// Instructions of a warp before the launch is given up.
    pub budget: u64,
    /// Dynamic shared memory a block may have.
    pub shared_limit: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { seed: 0, numerics: Numerics::Exact, budget: 1 << 32, shared_limit: 232_448 }
    }
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks along x, y, z.
    pub blocks: [u32; 3],
    /// Threads of a block along x, y, z.
    pub threads: [u32; 3],
    /// Blocks of a cluster along x.
    pub cluster: u32,
    /// Dynamic shared memory in bytes.
    pub shared: u32,
}

/// Instructions of a turn.
const TURN: u32 = 20_000;
/// Turns in which nothing but polling happened, before the machine says it hangs.
const IDLE_TURNS: u32 = 200;

/// Executes `program` and returns what it counted.
pub fn run(
    program: &Program,
    shape: &Shape,
    params: &[u8],
    memory: &mut Memory,
    options: &Options,
    recording: Option<(&mut Recording, u64)>,
) -> Step<Counters> {
    check(program, shape, params, options).map_err(|mut fault| {
        fault.kernel = program.name.clone();
        fault
    })?;
    memory.begin_launch();
    let threads: u32 = shape.threads.iter().product();
    let launch = Launch {
        constants: &program.constants,
        params,
        cluster: shape.cluster,
        warps_per_block: threads.div_ceil(32) as usize,
    };
    let blocks: u64 = shape.blocks.iter().map(|&n| n as u64).product();
    let mut order: Vec<u64> = (0..blocks / shape.cluster as u64).collect();
    let mut random = Random(options.seed);
    random.shuffle(&mut order);
    let (recording, samples) = recording.unzip();
    if let Some(samples) = samples {
        order = sampled(order.len() as u64, samples);
    }
    let mut grid = Grid {
        program,
        shape,
        launch,
        memory,
        counters: Counters::default(),
        spare: Vec::new(),
        options,
        recording,
    };
    grid.clusters(&order, &mut random)?;
    let mut counters = grid.counters;
    (counters.launches, counters.blocks) = (1, blocks);
    counters.warps = blocks * threads.div_ceil(32) as u64;
    [counters.cold_load_sectors, counters.cold_store_sectors] = memory.cold_sectors;
    counters.serial_atomics = memory.hottest();
    Ok(counters)
}

fn check(program: &Program, shape: &Shape, params: &[u8], options: &Options) -> Step<()> {
    let refuse = |message: String| Err(Fault::new(Kind::Launch, message));
    let threads: u64 = shape.threads.iter().map(|&n| n as u64).product();
    let most = program.max_threads.unwrap_or(1024) as u64;
    if threads == 0 || threads > most.min(1024) {
        return refuse(format!("{threads} threads in a block, expected 1..={}", most.min(1024)));
    }
    if let Some(required) = program.required_threads
        && required != shape.threads
    {
        return refuse(format!("block {:?}, the kernel requires {required:?}", shape.threads));
    }
    if shape.blocks.contains(&0) || shape.blocks[1] > 65_535 || shape.blocks[2] > 65_535 {
        return refuse(format!("grid {:?} is outside the limits", shape.blocks));
    }
    if shape.cluster == 0 || shape.cluster > 8 || !shape.blocks[0].is_multiple_of(shape.cluster) {
        return refuse(format!(
            "clusters of {} blocks in a grid of {:?}",
            shape.cluster, shape.blocks
        ));
    }
    if program.cluster.is_some_and(|c| c != shape.cluster) {
        return refuse(format!(
            "clusters of {} blocks, the kernel requires {:?}",
            shape.cluster, program.cluster
        ));
    }
    if params.len() != program.param_bytes {
        return refuse(format!(
            "{} bytes of parameters, the kernel has {}",
            params.len(),
            program.param_bytes
        ));
    }
    let total = program.shared_bytes as u64 + shape.shared as u64;
    if total > options.shared_limit as u64 {
        return refuse(format!("{total} bytes of shared memory, at most {}", options.shared_limit));
    }
    Ok(())
}

pub(super) struct Grid<'a> {
    pub(super) program: &'a Program,
    pub(super) shape: &'a Shape,
    pub(super) launch: Launch<'a>,
    pub(super) memory: &'a mut Memory,
    pub(super) counters: Counters,
    /// Warps of finished clusters, whose registers are used again.
    pub(super) spare: Vec<Warp>,
    pub(super) options: &'a Options,
    /// What is written down of a launch that is timed.
    pub(super) recording: Option<&'a mut Recording>,
}

/// A cluster that runs.
pub(super) struct Running {
    pub(super) cluster: Cluster,
    pub(super) warps: Vec<Warp>,
    /// 16 barriers of each block, then the cluster's.
    pub(super) barriers: Vec<Barrier>,
    pub(super) first_block: u64,
    /// Phases of the blocks' barriers.
    pub(super) phases: Vec<u32>,
}

impl Grid<'_> {
    pub(super) fn cluster(&mut self, index: u64, random: &mut Random) -> Step<()> {
        let mut running = self.start(index);
        let mut turns: Vec<usize> = (0..running.warps.len()).collect();
        let mut idle = 0;
        loop {
            random.shuffle(&mut turns);
            let (mut alive, mut ran, before) = (false, false, running.cluster.activity);
            for &warp in &turns {
                if running.warps[warp].fragments.is_empty() {
                    continue;
                }
                alive = true;
                ran |= self.turn(&mut running, warp)?;
            }
            if !alive {
                break;
            }
            if ran && running.cluster.activity != before {
                idle = 0;
                continue;
            }
            idle += 1;
            let late = self.deliver_late(&mut running)?;
            if late {
                idle = 0;
            } else if !ran || idle > IDLE_TURNS {
                return Err(self.deadlock(&running));
            }
        }
        self.finish(running)
    }

    /// Asynchronous copies land as late as they may: when nothing else can go on.
    fn deliver_late(&mut self, running: &mut Running) -> Step<bool> {
        let Some(delivery) = running.cluster.late.pop_front() else { return Ok(false) };
        running.cluster.activity += 1;
        delivery(&mut running.cluster, self.memory, &mut self.counters)?;
        // It was noted when it was issued.
        running.cluster.notes.clear();
        Ok(true)
    }

    fn start(&mut self, index: u64) -> Running {
        let (per_block, size) = (self.launch.warps_per_block, self.shape.cluster as usize);
        let bytes = self.program.shared_bytes as usize + self.shape.shared as usize;
        let cluster = Cluster {
            index: index as u32,
            shared: (0..size).map(|_| Shared::new(bytes)).collect(),
            acquired: Acquired::new(),
            numerics: self.options.numerics,
            timed: self.recording.is_some(),
            ..Cluster::default()
        };
        if let Some(traffic) = &mut self.memory.traffic {
            traffic.begin(bytes as u64);
        }
        let first_block = index * size as u64;
        let warps = (0..size * per_block)
            .map(|warp| {
                let block = warp / per_block;
                let mut w = self.spare.pop().unwrap_or_default();
                self.reset(&mut w, first_block + block as u64, block, warp);
                w
            })
            .collect();
        if let Some(recording) = &mut self.recording {
            recording.begin(size * per_block);
        }
        let barriers = vec![Barrier::default(); size * 16 + 1];
        Running { cluster, warps, barriers, first_block, phases: vec![0; size * 16] }
    }

    fn reset(&self, warp: &mut Warp, block: u64, rank: usize, index: usize) {
        let total: u32 = self.shape.threads.iter().product();
        let first = (index % self.launch.warps_per_block) as u32 * 32;
        let count = (total - first).min(32);
        let registers = std::mem::take(&mut warp.registers);
        let mask = if count == 32 { u32::MAX } else { (1 << count) - 1 };
        let all = self.launch.warps_per_block * self.shape.cluster as usize;
        *warp = Warp {
            registers,
            fragments: vec![Fragment { pc: 0, mask, state: State::Ready }],
            live: mask,
            index: index as u32,
            block: rank,
            clock: vec![0; all],
            proxy: vec![0; all],
            local: vec![0; self.program.local_bytes * 32],
            local_written: vec![false; self.program.local_bytes * 32],
            ..Warp::default()
        };
        warp.clock[index] = 1;
        self.program.initialize(&mut warp.registers, shared_base(rank), |special| {
            self.special(special, block, rank, first)
        });
    }

    /// A special register's value in each lane.
    fn special(&self, special: Special, block: u64, rank: usize, first: u32) -> [u32; 32] {
        let ([bx, by, _], [tx, ty, _]) = (self.shape.blocks, self.shape.threads);
        let place = |axis: usize| match axis {
            0 => (block % bx as u64) as u32,
            1 => (block / bx as u64 % by as u64) as u32,
            _ => (block / bx as u64 / by as u64) as u32,
        };
        let lane = |f: &dyn Fn(u32) -> u32| std::array::from_fn(|l| f(l as u32));
        let cluster = self.shape.cluster;
        match special {
            Special::Tid(0) => lane(&|l| (first + l) % tx),
            Special::Tid(1) => lane(&|l| (first + l) / tx % ty),
            Special::Tid(_) => lane(&|l| (first + l) / tx / ty),
            Special::Ntid(axis) => [self.shape.threads[axis]; 32],
            Special::Ctaid(axis) => [place(axis); 32],
            Special::Nctaid(axis) => [self.shape.blocks[axis]; 32],
            Special::Lane => lane(&|l| l),
            Special::Warp => [first / 32; 32],
            Special::Warps => [self.launch.warps_per_block as u32; 32],
            Special::ClusterRank => [rank as u32; 32],
            Special::ClusterSize => [cluster; 32],
            Special::ClusterId(axis) => {
                [if axis == 0 { place(0) / cluster } else { place(axis) }; 32]
            }
            Special::Clusters(axis) => {
                [if axis == 0 { bx / cluster } else { self.shape.blocks[axis] }; 32]
            }
            Special::ClusterCtaid(axis) => [if axis == 0 { rank as u32 } else { 0 }; 32],
            Special::ClusterNctaid(axis) => [if axis == 0 { cluster } else { 1 }; 32],
            Special::LaneMask(kind) => lane(&|l| kind.mask(l)),
            Special::DynamicShared => [self.shape.shared; 32],
            Special::TotalShared => [self.program.shared_bytes + self.shape.shared; 32],
        }
    }

    /// Runs one warp until it waits, yields or has had its turn. False if it could not run at all.
    fn turn(&mut self, running: &mut Running, warp: usize) -> Step<bool> {
        let mut left = TURN;
        let mut ran = false;
        while left > 0 {
            let Some((at, stop)) = running.warps[warp].pick() else { break };
            ran = true;
            let yielded = self.fragment(running, warp, at, stop, &mut left)?;
            running.warps[warp].merge();
            if yielded {
                break;
            }
        }
        Ok(ran)
    }

    /// Runs one fragment until its pc reaches `stop`, the warp changes shape, or it has to wait.
    fn fragment(
        &mut self,
        running: &mut Running,
        warp: usize,
        at: usize,
        stop: usize,
        left: &mut u32,
    ) -> Step<bool> {
        let program = self.program;
        loop {
            let Fragment { pc, mask, .. } = running.warps[warp].fragments[at];
            if pc >= stop {
                return Ok(false);
            }
            if *left == 0 {
                return Ok(true);
            }
            *left -= 1;
            let Some(instruction) = program.instructions.get(pc) else {
                return Err(self.place(
                    Fault::new(Kind::Trap, "the program ends without `ret`"),
                    running,
                    warp,
                    pc,
                ));
            };
            let before = self.tally();
            let end = self
                .execute(instruction, running, warp, mask)
                .inspect(|(flow, _)| self.record(running, (warp, pc), *flow, before))
                .and_then(|done| self.follow(running, (warp, at), (pc, mask), stop, done))
                .map_err(|f| self.place(f, running, warp, pc))?;
            if let Some(yielded) = end {
                return Ok(yielded);
            }
        }
    }

    /// What an instruction at `pc` that `active` of the lanes of `mask` executed means for its fragment: nothing if
    /// the fragment goes on, else whether its warp yields its turn.
    #[inline(always)]
    fn follow(
        &mut self,
        running: &mut Running,
        (warp, at): (usize, usize),
        (pc, mask): (usize, u32),
        stop: usize,
        (flow, active): (Flow, u32),
    ) -> Step<Option<bool>> {
        let w = &mut running.warps[warp];
        let waits =
            matches!(flow, Flow::Barrier(_) | Flow::Converge(_) | Flow::ClusterBarrier { .. });
        if waits && active != mask {
            // Lanes whose guard fails do not take part: they go on alone.
            let rest = Fragment { pc: pc + 1, mask: mask & !active, state: State::Ready };
            w.fragments.push(rest);
            w.fragments[at].mask = active;
        }
        match flow {
            Flow::Next => w.fragments[at].pc = pc + 1,
            Flow::Branch { taken, target } => {
                w.branch(at, taken, target, pc + 1);
                if taken != mask && taken != 0 || target <= pc || stop != usize::MAX {
                    w.merge();
                    return Ok(Some(false));
                }
            }
            Flow::Exit(gone) => {
                self.exit(running, warp, at, gone)?;
                return Ok(Some(false));
            }
            Flow::Yield => {
                w.poll(pc);
                w.fragments[at].pc = pc + 1;
                return Ok(Some(true));
            }
            Flow::Converge(members) => {
                w.fragments[at].state = State::Converge(members);
                self.converge(w, pc);
                return Ok(Some(false));
            }
            Flow::Barrier(arrival) => {
                self.arrive(running, warp, at, active, &arrival)?;
                return Ok(Some(false));
            }
            Flow::ClusterBarrier { arrive, wait } => {
                self.cluster_barrier(running, warp, at, active, arrive, wait);
                return Ok(Some(false));
            }
        }
        Ok(None)
    }

    #[inline(always)]
    fn execute(
        &mut self,
        instruction: &crate::decode::program::Instruction,
        running: &mut Running,
        warp: usize,
        mask: u32,
    ) -> Step<(Flow, u32)> {
        let w = &mut running.warps[warp];
        w.executed += 1;
        if w.executed > self.options.budget {
            return Err(Fault::new(
                Kind::Trap,
                format!("more than {} instructions of a warp", self.options.budget),
            ));
        }
        let mut active = mask;
        if let Some((guard, negated)) = instruction.guard {
            let value = w.registers.predicate[guard as usize];
            if w.registers.defined[2][guard as usize] & mask != mask {
                return Err(Fault::new(Kind::Uninitialized, "the guard predicate was never set"));
            }
            active &= if negated { !value } else { value };
        }
        self.counters.warp_instructions[instruction.work as usize] += 1;
        self.counters.lane_instructions[instruction.work as usize] += active.count_ones() as u64;
        if active == 0 {
            return Ok((Flow::Next, 0));
        }
        let mut context = Context {
            warp: w,
            cluster: &mut running.cluster,
            memory: self.memory,
            counters: &mut self.counters,
            launch: &self.launch,
        };
        (instruction.run)(&mut context, active).map(|flow| (flow, active))
    }

    /// Joins what waits for convergence at `pc` with what has come there.
    fn converge(&self, warp: &mut Warp, pc: usize) {
        let waiting = |f: &Fragment| f.pc == pc && matches!(f.state, State::Converge(_));
        let together = warp.fragments.iter().filter(|f| waiting(f)).fold(0, |m, f| m | f.mask);
        let live = warp.live;
        for f in &mut warp.fragments {
            if let State::Converge(members) = f.state
                && f.pc == pc
                && members & live & !together == 0
            {
                f.state = State::Ready;
            }
        }
        warp.merge();
    }

    fn exit(&mut self, running: &mut Running, warp: usize, at: usize, gone: u32) -> Step<()> {
        let w = &mut running.warps[warp];
        w.live &= !gone;
        w.fragments[at].mask &= !gone;
        if w.fragments[at].mask == 0 {
            w.fragments.swap_remove(at);
        } else {
            w.fragments[at].pc += 1;
        }
        running.cluster.activity += 1;
        let waiting: Vec<usize> =
            w.fragments.iter().filter(|f| f.state != State::Ready).map(|f| f.pc).collect();
        for pc in waiting {
            self.converge(&mut running.warps[warp], pc);
        }
        // Barriers wait for threads that have not exited, so an exit may complete one.
        let block = running.warps[warp].block;
        for barrier in 0..16 {
            if running.barriers[block * 16 + barrier].threads > 0 {
                self.complete(running, block, barrier as u32)?;
            }
        }
        self.complete_cluster(running);
        Ok(())
    }

    fn finish(&mut self, mut running: Running) -> Step<()> {
        for warp in &running.warps {
            if !warp.open_copies.is_empty() || warp.copy_groups.iter().any(|g| !g.is_empty()) {
                let message = "the kernel ends with asynchronous copies that nobody waited for";
                return Err(self.place(
                    Fault::new(Kind::InFlight, message),
                    &running,
                    warp.index as usize,
                    usize::MAX,
                ));
            }
        }
        if !running.cluster.late.is_empty() {
            let message =
                "the kernel ends while asynchronous copies into shared memory are under way";
            return Err(self.place(Fault::new(Kind::InFlight, message), &running, 0, usize::MAX));
        }
        let longest = running.warps.iter().map(|w| w.executed - w.polled).max().unwrap_or(0);
        self.counters.longest_warp = self.counters.longest_warp.max(longest);
        for warp in 0..running.warps.len() {
            self.finish_warp(&mut running.warps[warp])
                .map_err(|f| self.place(f, &running, warp, usize::MAX))?;
        }
        self.spare.extend(running.warps);
        Ok(())
    }

    fn finish_warp(&mut self, warp: &mut Warp) -> Step<()> {
        if !warp.products.is_empty() {
            let message =
                "the kernel ends with products of the tensor cores that nobody waited for";
            return Err(Fault::new(Kind::InFlight, message));
        }
        warp.bulk.values_mut().try_for_each(|groups| groups.finish(self.memory))
    }

    fn deadlock(&self, running: &Running) -> Box<Fault> {
        let stuck = running.warps.iter().position(|w| !w.fragments.is_empty()).unwrap_or(0);
        let places: Vec<String> = running
            .warps
            .iter()
            .flat_map(|w| w.fragments.iter().map(move |f| (w, f)))
            .take(8)
            .map(|(w, f)| {
                let line = self.program.instructions.get(f.pc).map_or(0, |i| i.line);
                format!("warp {} lanes {:#010x} {:?} before line {line}", w.index, f.mask, f.state)
            })
            .collect();
        let pc = running.warps[stuck].fragments.first().map_or(0, |f| f.pc);
        let message = format!("nothing can go on: {}", places.join("; "));
        let converging = running
            .warps
            .iter()
            .any(|w| w.fragments.iter().any(|f| matches!(f.state, State::Converge(_))));
        let kind = if converging { Kind::Divergence } else { Kind::Deadlock };
        self.place(Fault::new(kind, message), running, stuck, pc)
    }

    fn place(
        &self,
        mut fault: Box<Fault>,
        running: &Running,
        warp: usize,
        pc: usize,
    ) -> Box<Fault> {
        let block = running.first_block + running.warps[warp].block as u64;
        let [bx, by, _] = self.shape.blocks;
        fault.kernel = self.program.name.clone();
        fault.block = [
            (block % bx as u64) as u32,
            (block / bx as u64 % by as u64) as u32,
            (block / bx as u64 / by as u64) as u32,
        ];
        fault.warp = (warp % self.launch.warps_per_block) as u32;
        if let Some(instruction) = self.program.instructions.get(pc) {
            fault.line = instruction.line;
            fault.text = self.program.line_text(instruction.line);
        }
        fault
    }
}

/// xorshift64*: order shuffling only.
pub(super) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A seed of 0 stays 0 and shuffles nothing.
    fn shuffle<T>(&mut self, list: &mut [T]) {
        if self.0 == 0 {
            return;
        }
        for i in (1..list.len()).rev() {
            list.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}
