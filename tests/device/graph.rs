//! Captures, pinned memory and streams: what is recorded is done at the launch and not before, what a
//! capture cannot hold is refused, and a failed capture leaves the stream as it was.

use std::sync::Arc;

use gradus::device::driver::Event;
use gradus::device::fault::{Fault, FaultDriver};
use gradus::device::{
    Call, DeviceBuffer, Driver, DriverError, DryDriver, EmuDriver, Gpu, Graph, PinnedBuffer,
    RecordingDriver, Stream,
};
use gradus::ops::{Lerp, lerp};
use gradus::{Device, Error, Result};

fn code<T: std::fmt::Debug>(result: gradus::device::DriverResult<T>) -> i32 {
    result.unwrap_err().code
}

fn emulator() -> (EmuDriver, Stream, u64) {
    let driver = EmuDriver::new();
    let (stream, at) = (driver.stream().unwrap(), driver.alloc(8).unwrap());
    driver.upload(stream, at, &[1; 8]).unwrap();
    (driver, stream, at)
}

fn bytes(driver: &EmuDriver, stream: Stream, at: u64) -> [u8; 8] {
    let mut data = [0; 8];
    driver.download(stream, &mut data, at).unwrap();
    data
}

#[test]
fn captured_work_is_done_at_the_launch() {
    let (driver, stream, at) = emulator();
    let other = driver.stream().unwrap();
    let from = driver.alloc(4).unwrap();
    driver.upload(other, from, &[5; 4]).unwrap();
    driver.begin_capture(stream).unwrap();
    let mut data = vec![2; 4];
    driver.upload(stream, at, &data).unwrap();
    data.fill(9);
    driver.fill(stream, at + 2, 3, 4).unwrap();
    driver.copy(stream, at + 4, from, 1).unwrap();
    // Another stream is not concerned.
    assert_eq!(bytes(&driver, other, at), [1; 8]);
    let graph = driver.end_capture(stream).unwrap();
    assert_eq!(bytes(&driver, stream, at), [1; 8]);
    driver.launch_graph(stream, graph).unwrap();
    assert_eq!(bytes(&driver, stream, at), [2, 2, 3, 3, 5, 3, 1, 1]);
    driver.upload(stream, from, &[6; 4]).unwrap();
    driver.launch_graph(stream, graph).unwrap();
    assert_eq!(bytes(&driver, stream, at), [2, 2, 3, 3, 6, 3, 1, 1]);
    driver.destroy_graph(graph).unwrap();
    assert_eq!(code(driver.launch_graph(stream, graph)), DriverError::INVALID_HANDLE);
}

/// A forbidden call and its name.
type Forbidden = (&'static str, fn(&EmuDriver, Stream, u64) -> i32);

#[test]
fn what_a_capture_cannot_hold_spoils_it() {
    let forbidden: [Forbidden; 8] = [
        ("alloc", |d, _, _| code(d.alloc(1))),
        ("free", |d, _, at| code(d.free(at))),
        ("load", |d, _, _| code(d.load("x", ".version 8.4\n.target sm_80\n.address_size 64\n"))),
        ("pinned", |d, _, _| code(d.alloc_pinned(1))),
        ("synchronize", |d, s, _| code(d.synchronize(s))),
        ("download", |d, s, at| code(d.download(s, &mut [0], at))),
        ("record", |d, s, _| code(d.record(Event(1), s))),
        ("nested", |d, s, _| {
            let first = code(d.begin_capture(s));
            assert_eq!(first, DriverError::ILLEGAL_STATE);
            code(d.alloc(1))
        }),
    ];
    for (name, call) in forbidden {
        let (driver, stream, at) = emulator();
        driver.begin_capture(stream).unwrap();
        assert_eq!(call(&driver, stream, at), DriverError::CAPTURE_UNSUPPORTED, "{name}");
        assert_eq!(code(driver.fill(stream, at, 0, 1)), DriverError::CAPTURE_INVALIDATED, "{name}");
        assert_eq!(code(driver.end_capture(stream)), DriverError::CAPTURE_INVALIDATED, "{name}");
        assert_eq!(code(driver.end_capture(stream)), DriverError::ILLEGAL_STATE, "{name}");
        assert_eq!(bytes(&driver, stream, at), [1; 8], "{name}");
        driver.free(at).unwrap();
    }
    assert_eq!(code(EmuDriver::new().begin_capture(Stream(0))), DriverError::CAPTURE_UNSUPPORTED);
}

#[test]
fn other_threads_are_not_concerned() {
    let (driver, stream, _) = emulator();
    driver.begin_capture(stream).unwrap();
    std::thread::scope(|scope| {
        let elsewhere = scope.spawn(|| {
            let at = driver.alloc(4).unwrap();
            driver.free(at).unwrap();
            code(driver.end_capture(stream))
        });
        assert_eq!(elsewhere.join().unwrap(), DriverError::CAPTURE_WRONG_THREAD);
    });
    let graph = driver.end_capture(stream).unwrap();
    driver.launch_graph(stream, graph).unwrap();
}

/// Three buffers of a device and y = (a + b) / 2.
struct Mean {
    gpu: Arc<Gpu>,
    a: DeviceBuffer<f32>,
    b: DeviceBuffer<f32>,
    y: DeviceBuffer<f32>,
}

impl Mean {
    fn new(driver: Arc<dyn Driver>) -> Mean {
        let gpu = Arc::new(Gpu::new(driver).unwrap());
        let of = |x: f32| DeviceBuffer::from_host(&gpu, &[x; 40]).unwrap();
        Mean { a: of(1.0), b: of(3.0), y: of(0.0), gpu }
    }

    fn run(&mut self) -> Result<()> {
        let args = Lerp {
            a: self.a.view(&[40])?,
            b: self.b.view(&[40])?,
            weight: 0.5,
            y: self.y.view_mut(&[40])?,
        };
        lerp(&Device::Gpu(self.gpu.clone()), args)
    }

    fn capture(&mut self) -> Result<Graph> {
        let gpu = self.gpu.clone();
        gpu.capture(|| self.run())
    }

    fn result(&self) -> f32 {
        self.y.to_host().unwrap()[39]
    }
}

#[test]
fn a_graph_reads_what_is_there_when_it_is_launched() {
    let driver = Arc::new(RecordingDriver::new(Arc::new(EmuDriver::new())));
    let mut mean = Mean::new(driver.clone());
    mean.run().unwrap();
    let graph = mean.capture().unwrap();
    mean.b.upload(&[5.0; 40]).unwrap();
    assert_eq!(mean.result(), 2.0);
    driver.take();
    graph.launch().unwrap();
    assert_eq!(driver.take(), [Call::LaunchGraph(1)]);
    assert_eq!(mean.result(), 3.0);
    drop((graph, mean));
    let (calls, is) = (driver.take(), |call: &Call| *call == Call::DestroyGraph);
    assert_eq!(calls.iter().filter(|call| is(call)).count(), 1);
}

/// Each refusal says what is missing, reaches no driver, and leaves the stream usable.
#[test]
fn what_was_not_prepared_is_named() {
    let driver = Arc::new(RecordingDriver::new(Arc::new(EmuDriver::new())));
    let mut mean = Mean::new(driver.clone());
    let named = |result: Result<Graph>, what: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(what) && text.contains("run once before"), "{text}");
    };
    named(mean.capture(), "kernel `lerp_f32`");
    mean.run().unwrap();
    let gpu = mean.gpu.clone();
    named(gpu.capture(|| gpu.synchronize()), "wait");
    let refused = gpu.capture(|| mean.y.to_host().map(drop)).unwrap_err();
    assert!(matches!(refused, Error::Driver { code: 900, .. }), "{refused}");
    named(gpu.capture(|| DeviceBuffer::<f32>::new(&gpu, 3).map(drop)), "device buffer");
    named(gpu.capture(|| PinnedBuffer::<f32>::new(&gpu, 3).map(drop)), "pinned");
    named(gpu.capture(|| gpu.reserve_scratch(1 << 20)), "scratch");
    named(gpu.capture(|| gpu.capture(|| Ok(())).map(drop)), "another capture");
    mean.b.upload(&[5.0; 40]).unwrap();
    mean.run().unwrap();
    assert_eq!(mean.result(), 3.0);
}

/// Memory that is given back in a capture stays until the graph is.
#[test]
fn a_graph_keeps_what_was_freed_in_its_capture() {
    let emulator = Arc::new(EmuDriver::new());
    let mut mean = Mean::new(emulator.clone());
    mean.run().unwrap();
    let (gpu, before) = (mean.gpu.clone(), emulator.live_allocations());
    let graph = gpu.capture(move || mean.run()).unwrap();
    assert_eq!(emulator.live_allocations(), before);
    graph.launch().unwrap();
    gpu.synchronize().unwrap();
    drop(graph);
    assert_eq!(emulator.live_allocations(), before - 3);
}

#[test]
fn pinned_memory_is_copied_in_stream_order() {
    let driver = Arc::new(RecordingDriver::new(Arc::new(EmuDriver::new().with_late_streams(0))));
    let mut mean = Mean::new(driver.clone());
    let gpu = mean.gpu.clone();
    let mut pinned = PinnedBuffer::<f32>::new(&gpu, 80).unwrap();
    assert_eq!(pinned.to_vec().unwrap(), vec![0.0; 80]);
    mean.run().unwrap();
    let graph = gpu.capture(|| {
        pinned.upload(0, mean.a.view_mut(&[40])?)?;
        mean.run()?;
        pinned.download(40, mean.y.view(&[40])?)
    });
    let graph = graph.unwrap();
    gpu.synchronize().unwrap();
    driver.take();
    for x in [7.0f32, 9.0] {
        pinned.write(0, &[x; 40]).unwrap();
        graph.launch().unwrap();
        let mut out = [0.0; 2];
        pinned.read(78, &mut out).unwrap();
        assert_eq!(out, [(x + 3.0) / 2.0; 2]);
        assert_eq!(driver.take(), [Call::LaunchGraph(1), Call::Synchronize]);
    }
    for (at, len) in [(79, 2), (81, 0), (usize::MAX, 2)] {
        pinned.read(at, &mut vec![0.0; len]).unwrap_err();
        pinned.write(at, &vec![0.0; len]).unwrap_err();
    }
    // The graph keeps the memory it copies from and to.
    drop(pinned);
    assert!(!driver.take().contains(&Call::FreePinned));
    graph.launch().unwrap();
    drop(graph);
    assert!(driver.take().contains(&Call::FreePinned));
}

/// An event orders two streams that know nothing of each other; without the wait the second is late.
#[test]
fn a_missing_wait_between_streams_shows() {
    let seen = |seed: u64, wait: bool| {
        let driver = EmuDriver::new().with_late_streams(seed);
        let (a, b) = (driver.stream().unwrap(), driver.stream().unwrap());
        let (event, at) = (driver.event().unwrap(), driver.alloc(8).unwrap());
        driver.fill(b, at, 0, 8).unwrap();
        driver.synchronize(b).unwrap();
        driver.fill(a, at, 7, 8).unwrap();
        driver.record(event, a).unwrap();
        if wait {
            driver.wait_event(b, event).unwrap();
        }
        driver.copy(b, at + 4, at, 4).unwrap();
        bytes(&driver, b, at)[4]
    };
    assert_eq!(seen(0, false), 0);
    for seed in 0..20 {
        assert_eq!(seen(seed, true), 7);
    }
    assert!((1..20).any(|seed| seen(seed, false) == 7));
}

/// A capture and its launch, one driver call of which fails.
#[test]
fn a_fault_in_a_capture_leaves_the_stream_usable() {
    let story = |gpu: &Arc<Gpu>, mean: &mut Mean| -> Result<f32> {
        let mut pinned = PinnedBuffer::<f32>::new(gpu, 40)?;
        let graph = gpu.capture(|| {
            pinned.upload(0, mean.a.view_mut(&[40])?)?;
            mean.run()?;
            pinned.download(0, mean.y.view(&[40])?)
        })?;
        pinned.write(0, &[5.0; 40])?;
        graph.launch()?;
        Ok(pinned.to_vec()?[3])
    };
    let faulty = || Arc::new(FaultDriver::new(Arc::new(EmuDriver::new())));
    let driver = faulty();
    let mut mean = Mean::new(driver.clone());
    mean.run().unwrap();
    let start = driver.calls().len() as u64;
    assert_eq!(story(&mean.gpu.clone(), &mut mean).unwrap(), 4.0);
    let end = driver.calls().len() as u64;
    let names = driver.calls().split_off(start as usize);
    for call in ["alloc_pinned", "begin_capture", "upload_async", "end_capture", "launch_graph"] {
        assert!(names.contains(&call), "{call}");
    }
    for at in start..end {
        for (code, sticky) in [(DriverError::INVALID_VALUE, false), (719, true)] {
            let driver = faulty();
            let mut mean = Mean::new(driver.clone());
            mean.run().unwrap();
            driver.set(Some(Fault { at, code, for_ever: sticky }));
            let gpu = mean.gpu.clone();
            let result = story(&gpu, &mut mean);
            let call = driver.calls()[at as usize];
            let hidden = ["free_pinned", "destroy_graph", "synchronize"].contains(&call);
            match result {
                Ok(value) => assert!(hidden && value == 4.0, "{call} was swallowed"),
                Err(Error::Driver { code: got, .. }) => assert_eq!(got, code, "{call}"),
                Err(Error::DeviceLost { .. }) => assert!(sticky, "{call}"),
                Err(other) => panic!("{call}: {other}"),
            }
            if !sticky {
                assert_eq!(story(&gpu, &mut mean).unwrap(), 4.0, "after {call}");
                drop((mean, gpu));
                let live = driver.live();
                let leaks = [live.graphs, live.pinned, live.allocations, live.streams];
                assert!(leaks.iter().sum::<i64>() <= hidden as i64, "{call}: {live:?}");
            }
        }
    }
}

#[test]
fn a_dry_run_counts_memory_and_launches() {
    let driver = Arc::new(DryDriver::new(EmuDriver::new().info().clone()));
    let mut mean = Mean::new(driver.clone());
    mean.run().unwrap();
    assert_eq!(mean.result(), 0.0);
    let usage = driver.usage();
    assert_eq!((usage.live, usage.peak, usage.allocations), (480, 480, 3));
    assert_eq!(usage.launches["lerp_f32"], 1);
    assert!(usage.launches.len() == 1 && usage.pinned_peak == 0);
    let graph = mean.capture().unwrap();
    driver.restart();
    graph.launch().unwrap();
    graph.launch().unwrap();
    let mut pinned = PinnedBuffer::<f32>::new(&mean.gpu, 5).unwrap();
    pinned.write(0, &[1.0; 5]).unwrap();
    pinned.download(0, mean.y.view(&[5]).unwrap()).unwrap();
    assert_eq!(pinned.to_vec().unwrap(), [0.0; 5]);
    assert_eq!((driver.usage().launches["lerp_f32"], driver.usage().pinned), (2, 20));
    drop((pinned, graph, mean));
    let usage = driver.usage();
    assert_eq!((usage.live, usage.peak, usage.pinned, usage.pinned_peak), (0, 480, 0, 20));
    assert_eq!(driver.alloc(1).unwrap() % 256, 0);
}
