//! Runs a recording against the clock: one multiprocessor, or those of one cluster, with as many
//! blocks at a time as they hold.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use super::cost::{Cost, Port, Unit};
use super::queues::{Multiprocessor, Shares};
use super::rates::Gpu;
use super::tape::{Event, Fact, Meeting, Note, Recording};
use super::timeline::{Flight, Timeline};

/// What the replay of a launch needs to know.
pub(crate) struct Plan<'a> {
    pub timeline: &'a Timeline,
    pub recording: &'a Recording,
    /// Registers of a warp by class.
    pub registers: [usize; 3],
    /// Blocks of a cluster, warps of a block.
    pub blocks: usize,
    pub warps: usize,
    /// Clusters to run, and how many at a time.
    pub clusters: usize,
    pub together: usize,
    pub shares: Shares,
    pub gpu: &'a Gpu,
    /// How much of what a buffer is asked for comes from memory.
    pub cold: HashMap<u32, f64>,
}

/// How a replay went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replayed {
    /// When each cluster ended, in order, in clocks.
    pub ends: Vec<u64>,
    /// When the first warp passed `griddepcontrol.wait`.
    pub released: Option<u64>,
    /// Busy clocks: schedulers, their units, memory instructions, L2, memory.
    pub busy: [f64; RESOURCES],
}

/// Resources that can bind.
pub(crate) const RESOURCES: usize = 9;
/// Their names.
pub(crate) const NAMES: [&str; RESOURCES] = [
    "issue",
    "integers",
    "f32",
    "f64",
    "conversions",
    "load/store",
    "tensor cores",
    "L2",
    "memory",
];

/// A warp that runs.
struct Warp<'a> {
    events: &'a [Event],
    at: usize,
    /// Multiprocessor and scheduler.
    sm: usize,
    scheduler: usize,
    instance: usize,
    next: u64,
    ready: Vec<u32>,
    start: u64,
    /// When its copies land: since the last group, groups, all.
    open: u64,
    groups: VecDeque<u64>,
    landed: u64,
    product: u64,
    products: VecDeque<u64>,
}

#[derive(Default)]
struct Phase {
    arrived: u32,
    last: u64,
    waiting: Vec<usize>,
}

pub(crate) struct Replay<'a> {
    plan: &'a Plan<'a>,
    /// Events in the order of issue, by sample and warp.
    samples: &'a [Vec<Vec<Event>>],
    /// Arrivals that complete a phase, by sample.
    expected: Vec<HashMap<(Meeting, u32), u32>>,
    offsets: [u32; 3],
    costs: Vec<Cost>,
    sms: Vec<Multiprocessor>,
    warps: Vec<Warp<'a>>,
    phases: HashMap<(usize, Meeting, u32), Phase>,
    queue: BinaryHeap<Reverse<(u64, usize)>>,
    left: Vec<usize>,
    started: usize,
    out: Replayed,
}

/// Runs a plan over events that are in the order of issue.
///
/// # Errors
/// Warps that wait for one another for ever: the record does not tell of all meetings.
pub(crate) fn replay(plan: &Plan<'_>, samples: &[Vec<Vec<Event>>]) -> Result<Replayed, String> {
    let count = |sample: &Vec<Vec<Event>>| {
        let mut expected = HashMap::new();
        for event in sample.iter().flatten().filter(|e| e.fact > 0) {
            for note in &plan.recording.facts[event.fact as usize - 1].notes {
                if let Note::Arrives(meeting, phase) | Note::Lands(meeting, phase) = *note {
                    *expected.entry((meeting, phase)).or_insert(0) += 1;
                }
            }
        }
        expected
    };
    let [narrow, wide, _] = plan.registers.map(|n| n as u32);
    let mut replay = Replay {
        plan,
        samples,
        expected: samples.iter().map(count).collect(),
        offsets: [0, narrow, narrow + wide],
        costs: plan.timeline.steps.iter().map(|s| s.kind.cost(plan.gpu)).collect(),
        sms: (0..plan.blocks).map(|_| Multiprocessor::default()).collect(),
        warps: Vec::new(),
        phases: HashMap::new(),
        queue: BinaryHeap::new(),
        left: Vec::new(),
        started: 0,
        out: Replayed::default(),
    };
    let latency = &plan.gpu.latency;
    let later = if plan.blocks > 1 { latency.cluster_start } else { 0 };
    let first = u64::from(latency.start) + u64::from(later);
    for _ in 0..plan.together.min(plan.clusters) {
        replay.start(first);
    }
    replay.run();
    replay.finish()
}

impl<'a> Replay<'a> {
    /// Starts the next cluster.
    fn start(&mut self, time: u64) {
        let instance = self.started;
        self.started += 1;
        let sample = instance % self.samples.len();
        let registers = self.plan.registers.iter().sum();
        self.left.push(self.samples[sample].len());
        self.out.ends.push(time);
        for (w, events) in self.samples[sample].iter().enumerate() {
            let warp = Warp {
                events,
                at: 0,
                sm: w / self.plan.warps,
                scheduler: w % self.plan.warps % 4,
                instance,
                next: time,
                ready: vec![0; registers],
                start: time,
                open: 0,
                groups: VecDeque::new(),
                landed: 0,
                product: 0,
                products: VecDeque::new(),
            };
            self.warps.push(warp);
            self.queue.push(Reverse((time, self.warps.len() - 1)));
        }
    }

    fn run(&mut self) {
        while let Some(Reverse((time, w))) = self.queue.pop() {
            let warp = &self.warps[w];
            let Some(&event) = warp.events.get(warp.at) else {
                self.end(w, time);
                continue;
            };
            let (earliest, issue) = self.when(w, event);
            if issue > time {
                self.queue.push(Reverse((issue.max(earliest), w)));
                continue;
            }
            if self.issue(w, event, time) {
                let next = self.warps[w].next;
                self.queue.push(Reverse((next, w)));
            }
        }
    }

    fn end(&mut self, w: usize, time: u64) {
        let instance = self.warps[w].instance;
        // Registers of warps that have ended are of no use to anybody.
        self.warps[w].ready = Vec::new();
        self.left[instance] -= 1;
        self.out.ends[instance] = self.out.ends[instance].max(time);
        if self.left[instance] == 0 && self.started < self.plan.clusters {
            self.start(time + u64::from(self.plan.gpu.latency.next_block));
        }
    }

    fn register(&self, operand: u32) -> usize {
        (self.offsets[(operand >> 30) as usize] + (operand & 0x3fff_ffff)) as usize
    }

    /// When a warp's next instruction has its operands, and when it can be issued.
    fn when(&self, w: usize, event: Event) -> (u64, u64) {
        let (warp, pc) = (&self.warps[w], event.pc as usize);
        let (step, cost) = (&self.plan.timeline.steps[pc], self.costs[pc]);
        let mut time = warp.next;
        let operands = self.plan.timeline.reads(pc).iter().chain(self.plan.timeline.writes(pc));
        for &operand in operands {
            time = time.max(warp.start + u64::from(warp.ready[self.register(operand)]));
        }
        if cost.slots == 0 {
            return (time, time);
        }
        match step.flight {
            Flight::WaitCopies(keep) if warp.groups.len() > keep => {
                let last = warp.groups.len() - keep;
                time = warp.groups.iter().take(last).fold(time, |t, &g| t.max(g));
            }
            Flight::WaitProducts(keep) if warp.products.len() > keep => {
                let last = warp.products.len() - keep;
                time = warp.products.iter().take(last).fold(time, |t, &g| t.max(g));
            }
            _ => {}
        }
        (time, self.sms[warp.sm].open(time, warp.scheduler, cost, self.plan.gpu))
    }

    /// Issues an instruction; false if the warp waits for others.
    fn issue(&mut self, w: usize, event: Event, time: u64) -> bool {
        let pc = event.pc as usize;
        let (step, cost) = (&self.plan.timeline.steps[pc], self.costs[pc]);
        let fact = (event.fact > 0).then(|| &self.plan.recording.facts[event.fact as usize - 1]);
        let warp = &mut self.warps[w];
        let sm = &mut self.sms[warp.sm];
        sm.take(time, warp.scheduler, cost);
        let done = time + u64::from(cost.slots.max(1)) - 1;
        let mut result = done + u64::from(cost.latency);
        if let Some(fact) = fact {
            let cold = self.plan.cold.get(&fact.buffer).copied().unwrap_or(0.0);
            let landing = sm.access(done, step, fact, cold, (&self.plan.shares, self.plan.gpu));
            match cost.port {
                Port::Copy | Port::Bulk => {
                    warp.open = warp.open.max(landing);
                    warp.landed = warp.landed.max(landing);
                }
                Port::Load | Port::Atomic | Port::Shared => result = result.max(landing),
                Port::None | Port::Constant | Port::Store => {}
            }
            if step.warpgroup {
                let clocks = u64::from(fact.macs) / u64::from(self.plan.gpu.slots.wgmma_macs);
                let latency = u64::from(self.plan.gpu.latency.mma);
                warp.product = sm.multiply(done, warp.scheduler, clocks) + latency;
            }
        }
        let start = warp.start;
        warp.next = done + if cost.slots > 0 { u64::from(self.plan.gpu.latency.pace) } else { 0 };
        fly(warp, step.flight, self.plan.gpu);
        if step.flight == Flight::Grid {
            let released = self.out.released.map_or(time, |t| t.min(time));
            self.out.released = Some(released);
        }
        let jumps = warp.events.get(warp.at + 1).is_some_and(|next| next.pc < event.pc);
        if cost.unit == Unit::Control && jumps {
            warp.next += u64::from(self.plan.gpu.latency.branch);
        }
        warp.at += 1;
        for &operand in self.plan.timeline.writes(pc) {
            let register = self.register(operand);
            self.warps[w].ready[register] = (result - start) as u32;
        }
        fact.is_none_or(|fact| self.meet(w, fact, done))
    }

    /// Tells the meetings of an instruction; false if the warp waits.
    fn meet(&mut self, w: usize, fact: &Fact, time: u64) -> bool {
        let (instance, landed) = (self.warps[w].instance, self.warps[w].landed);
        let mut goes_on = true;
        for note in &fact.notes {
            match *note {
                Note::Arrives(meeting, phase) => self.arrive(instance, (meeting, phase), time),
                Note::Lands(meeting, phase) => {
                    self.arrive(instance, (meeting, phase), time.max(landed));
                }
                Note::Waits(meeting, phase) => {
                    let expected = self.expected(instance, (meeting, phase));
                    let at = self.phases.entry((instance, meeting, phase)).or_default();
                    if at.arrived < expected {
                        at.waiting.push(w);
                        goes_on = false;
                    } else {
                        let warp = &mut self.warps[w];
                        warp.next = warp.next.max(at.last + delay(meeting, self.plan.gpu));
                    }
                }
            }
        }
        goes_on
    }

    fn expected(&self, instance: usize, key: (Meeting, u32)) -> u32 {
        self.expected[instance % self.samples.len()].get(&key).copied().unwrap_or(0)
    }

    fn arrive(&mut self, instance: usize, (meeting, number): (Meeting, u32), time: u64) {
        let expected = self.expected(instance, (meeting, number));
        let phase = self.phases.entry((instance, meeting, number)).or_default();
        phase.arrived += 1;
        phase.last = phase.last.max(time);
        if phase.arrived < expected {
            return;
        }
        let (last, waiting) = (phase.last, std::mem::take(&mut phase.waiting));
        for w in waiting {
            let warp = &mut self.warps[w];
            warp.next = warp.next.max(last + delay(meeting, self.plan.gpu));
            self.queue.push(Reverse((warp.next, w)));
        }
    }

    fn finish(mut self) -> Result<Replayed, String> {
        let stuck: usize = self.left.iter().sum();
        if stuck > 0 {
            return Err(format!("{stuck} warps of the replay wait for one another"));
        }
        for sm in &self.sms {
            for (sum, busy) in self.out.busy.iter_mut().zip(sm.busy()) {
                *sum += busy / self.sms.len() as f64;
            }
        }
        Ok(self.out)
    }
}

/// From the last arrival until a waiting warp goes on.
fn delay(meeting: Meeting, gpu: &Gpu) -> u64 {
    u64::from(match meeting {
        Meeting::Block(_) | Meeting::Object(..) => gpu.latency.barrier,
        Meeting::Cluster => gpu.latency.cluster,
    })
}

/// Groups of copies and products.
fn fly(warp: &mut Warp<'_>, flight: Flight, gpu: &Gpu) {
    match flight {
        Flight::CommitCopies => warp.groups.push_back(std::mem::take(&mut warp.open)),
        Flight::WaitCopies(keep) => {
            let done = warp.groups.len().saturating_sub(keep);
            warp.groups.drain(..done);
        }
        Flight::CommitProducts => warp.products.push_back(warp.product),
        Flight::WaitProducts(keep) => {
            let done = warp.products.len().saturating_sub(keep);
            warp.products.drain(..done);
        }
        Flight::Fence => warp.next += u64::from(gpu.latency.fence),
        Flight::Proxy => warp.next += u64::from(gpu.latency.proxy),
        Flight::Grid | Flight::None => {}
    }
}
