//! The emulator's streams: pieces of work, the queues they wait in, captures and graphs.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::thread::{self, ThreadId};

use crate::device::driver::*;
use crate::device::emu::error;

/// A piece of a stream's work.
#[derive(Clone, Debug)]
pub(super) enum Work {
    Upload {
        dst: u64,
        data: Vec<u8>,
    },
    UploadPinned {
        dst: u64,
        src: usize,
        bytes: usize,
    },
    DownloadPinned {
        dst: usize,
        src: u64,
        bytes: usize,
    },
    Copy {
        dst: u64,
        src: u64,
        bytes: usize,
    },
    Fill {
        dst: u64,
        value: u8,
        bytes: usize,
    },
    Launch {
        function: u64,
        grid: Grid,
        params: Vec<u8>,
    },
    Graph(Arc<[Work]>),
    /// The end of an event's record number ..
    Record(u64),
    /// Nothing behind it starts before the record.
    Wait(u64),
}

/// Work that is recorded instead of done.
struct Capture {
    thread: ThreadId,
    work: Vec<Work>,
    spoiled: bool,
}

/// What streams, events and graphs are about.
#[derive(Default)]
pub(super) struct Streams {
    /// `Some`: work is done as late as it may. 0 follows the dependencies of what is waited for
    /// and nothing else; any other number lets all streams go on in an order of its own.
    pub late: Option<u64>,
    queues: BTreeMap<u64, VecDeque<Work>>,
    captures: HashMap<u64, Capture>,
    graphs: HashMap<u64, Arc<[Work]>>,
    /// The last record of each event, and the records that were passed.
    recorded: HashMap<u64, u64>,
    passed: HashSet<u64>,
    records: u64,
}

impl Streams {
    /// Records or queues the work. What is to be done now is given back.
    pub fn submit(
        &mut self,
        call: &'static str,
        stream: Stream,
        work: Work,
    ) -> DriverResult<Option<Work>> {
        if let Some(capture) = self.captures.get_mut(&stream.0) {
            if capture.spoiled {
                return Err(invalidated(call));
            }
            capture.work.push(work);
            return Ok(None);
        }
        if self.late.is_none() {
            return Ok(Some(work));
        }
        self.queues.entry(stream.0).or_default().push_back(work);
        Ok(None)
    }

    /// Spoils the capture of this stream, if there is one, for a call that it does not allow.
    pub fn refuse_in(&mut self, call: &'static str, stream: Stream, code: i32) -> DriverResult<()> {
        match self.captures.get_mut(&stream.0) {
            Some(capture) => Err(capture.spoil(call, code)),
            None => Ok(()),
        }
    }

    /// Spoils the capture that this thread began, if there is one, for a call that it does not allow.
    pub fn refuse_here(&mut self, call: &'static str) -> DriverResult<()> {
        let here = thread::current().id();
        match self.captures.values_mut().find(|capture| capture.thread == here) {
            Some(capture) => Err(capture.spoil(call, DriverError::CAPTURE_UNSUPPORTED)),
            None => Ok(()),
        }
    }

    pub fn begin_capture(&mut self, stream: Stream) -> DriverResult<()> {
        let call = "cuStreamBeginCapture";
        if stream.0 == 0 {
            let text = "the default stream cannot be captured";
            return Err(error(call, DriverError::CAPTURE_UNSUPPORTED, text));
        }
        if self.captures.contains_key(&stream.0) {
            return Err(error(call, DriverError::ILLEGAL_STATE, "the stream is in a capture"));
        }
        let thread = thread::current().id();
        self.captures.insert(stream.0, Capture { thread, work: Vec::new(), spoiled: false });
        Ok(())
    }

    /// Keeps the work that was recorded under `handle`.
    pub fn end_capture(&mut self, stream: Stream, handle: u64) -> DriverResult<Graph> {
        let call = "cuStreamEndCapture";
        let none = || error(call, DriverError::ILLEGAL_STATE, "the stream is in no capture");
        let capture = self.captures.remove(&stream.0).ok_or_else(none)?;
        if capture.thread != thread::current().id() {
            self.captures.insert(stream.0, capture);
            let text = "the capture was begun by another thread";
            return Err(error(call, DriverError::CAPTURE_WRONG_THREAD, text));
        }
        if capture.spoiled {
            return Err(invalidated(call));
        }
        self.graphs.insert(handle, capture.work.into());
        Ok(Graph(handle))
    }

    pub fn graph(&self, graph: Graph) -> DriverResult<Work> {
        let none = || error("cuGraphLaunch", DriverError::INVALID_HANDLE, "no such graph");
        self.graphs.get(&graph.0).map(|work| Work::Graph(work.clone())).ok_or_else(none)
    }

    pub fn destroy_graph(&mut self, graph: Graph) -> DriverResult<()> {
        let none = || error("cuGraphExecDestroy", DriverError::INVALID_HANDLE, "no such graph");
        self.graphs.remove(&graph.0).map(|_| ()).ok_or_else(none)
    }

    /// A new record of an event. Records are counted, because an event may be recorded again
    /// before the work that waits for it has started.
    pub fn record(&mut self, event: Event) -> Work {
        self.records += 1;
        self.recorded.insert(event.0, self.records);
        Work::Record(self.records)
    }

    /// The last record of an event; an event without one holds nobody up.
    pub fn recorded(&self, event: Event) -> Option<u64> {
        self.recorded.get(&event.0).copied()
    }

    pub fn pass(&mut self, record: u64) {
        self.passed.insert(record);
    }

    /// The work to do next before the stream is empty, if it is not yet.
    pub fn next_for(&mut self, stream: Stream) -> Option<Work> {
        self.queues.get(&stream.0).filter(|queue| !queue.is_empty())?;
        let seed = self.late.unwrap_or(0);
        let chosen = if seed == 0 { self.needed(stream.0) } else { self.any(seed) };
        self.queues.get_mut(&chosen)?.pop_front()
    }

    /// The work of all streams that ends with a record, in an order that may be.
    pub fn next_before(&mut self, record: u64) -> Option<Work> {
        if self.passed.contains(&record) {
            return None;
        }
        let stream = self.holder(record)?;
        self.next_for(Stream(stream))
    }

    fn ready(&self, queue: &VecDeque<Work>) -> bool {
        match queue.front() {
            Some(Work::Wait(record)) => self.passed.contains(record),
            front => front.is_some(),
        }
    }

    /// The stream whose record is waited for, directly or not.
    fn needed(&self, stream: u64) -> u64 {
        match self.queues.get(&stream).and_then(VecDeque::front) {
            Some(Work::Wait(record)) if !self.passed.contains(record) => {
                self.holder(*record).map_or(stream, |other| self.needed(other))
            }
            _ => stream,
        }
    }

    fn holder(&self, record: u64) -> Option<u64> {
        let holds = |work: &Work| matches!(work, Work::Record(r) if *r == record);
        self.queues.iter().find(|(_, queue)| queue.iter().any(holds)).map(|(&stream, _)| stream)
    }

    /// Any stream that can go on. A record comes before what waits for it, so there is one.
    fn any(&mut self, seed: u64) -> u64 {
        let ready: Vec<u64> =
            self.queues.iter().filter(|(_, q)| self.ready(q)).map(|(&stream, _)| stream).collect();
        // xorshift64 (Marsaglia 2003).
        let next = seed ^ (seed << 13);
        let next = next ^ (next >> 7);
        let next = next ^ (next << 17);
        self.late = Some(next);
        ready[(next % ready.len() as u64) as usize]
    }
}

impl Capture {
    fn spoil(&mut self, call: &'static str, code: i32) -> DriverError {
        if self.spoiled {
            return invalidated(call);
        }
        self.spoiled = true;
        error(call, code, "not possible while a stream is captured")
    }
}

fn invalidated(call: &'static str) -> DriverError {
    let text = "an earlier call spoiled the capture";
    error(call, DriverError::CAPTURE_INVALIDATED, text)
}
