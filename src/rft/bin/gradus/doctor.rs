//! `gradus doctor`: what is here, what will be used, and why.

use gradus::Device;
use gradus::device::{GpuProbe, probe_gpu, shipped_ptx};
use gradus::ops::{Lerp, lerp};
use gradus_rft::bench::cpu_name;
use gradus_rft::io::system_memory;
use gradus_rft::io::system_memory::Room;

/// The report, one finding per line.
pub fn report() -> String {
    let mut text = format!("gradus {}\n\n", env!("CARGO_PKG_VERSION"));
    let mut row = |name: &str, value: String| text += &format!("  {name:<14}{value}\n");
    row("cpu", cpu_name());
    row("threads", format!("{} (set `threads` to use fewer)", rayon::current_num_threads()));
    row("vector units", vector_units());
    row("memory", memory());
    row("gpu driver", probe_gpu().to_string());
    for (name, value) in gpu() {
        row(name, value);
    }
    row("kernels", kernels());
    row("trainer", trainer());
    row("runs folder", runs_folder());
    text
}

/// What `device = "auto"` takes.
fn trainer() -> String {
    match Device::best() {
        Ok(device) => format!("runs on {} (set `device` for another)", device.name()),
        Err(error) => format!("{error}; device=cpu runs without it"),
    }
}

fn vector_units() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let avx512 = std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512dq")
            && std::is_x86_feature_detected!("avx512vl");
        if avx512 {
            return "AVX-512 (same bits as every other)".into();
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return "AVX2 + FMA (same bits as every other)".into();
        }
        "none used: without FMA every fused multiply-add is emulated, expect a slow run".into()
    }
    #[cfg(not(target_arch = "x86_64"))]
    "the target's own".into()
}

fn memory() -> String {
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    match (Room::now(), system_memory::total_memory()) {
        (Some(room), Some(total)) => {
            let (free, total) = (gib(room.bytes), gib(total));
            format!("{free:.1} of {total:.1} GiB available ({})", room.limit)
        }
        _ => "unknown".into(),
    }
}

/// The first CUDA device, which kernels it gets, and whether they launch.
fn gpu() -> Vec<(&'static str, String)> {
    if matches!(probe_gpu(), GpuProbe::Missing(_)) {
        return Vec::new();
    }
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(error) => return vec![("gpu", error.to_string())],
    };
    let Device::Gpu(gpu) = &device else { return Vec::new() };
    let info = gpu.info();
    let gib = info.memory as f64 / (1u64 << 30) as f64;
    let (major, minor) = info.capability;
    vec![
        ("gpu", format!("{}, {gib:.0} GiB, {} multiprocessors", info.name, info.multiprocessors)),
        (
            "capability",
            format!("{major}.{minor}, driver speaks CUDA {}.{}", info.cuda.0, info.cuda.1),
        ),
        ("kernel set", gpu.kernel_set().name().to_string()),
        ("launch", launches(&device)),
    ]
}

/// One small kernel against the CPU.
fn launches(device: &Device) -> String {
    let (a, b) = ([1f32; 1000], [3f32; 1000]);
    let run = |device: &Device| {
        let mut y = vec![0f32; 1000];
        lerp(device, Lerp { a: a[..].into(), b: b[..].into(), weight: 0.25, y: (&mut y).into() })
            .map(|()| y)
    };
    match (run(device), run(&Device::Cpu)) {
        (Ok(gpu), Ok(cpu)) if gpu == cpu => "lerp gives the bits of the CPU".into(),
        (Ok(_), _) => "lerp gives WRONG results: please report this".into(),
        (Err(error), _) => format!("failed: {error}"),
    }
}

/// Ops with kernels, and the PTX version they need. Reads every text: a damaged file of the program is told here.
fn kernels() -> String {
    let texts = match shipped_ptx() {
        Ok(texts) => texts,
        Err(error) => return format!("{error}: install gradus again"),
    };
    let mut ops: Vec<&str> = texts.iter().map(|(op, ..)| *op).collect();
    ops.dedup();
    let version = texts
        .iter()
        .filter_map(|(_, _, ptx)| ptx.lines().find_map(|l| l.strip_prefix(".version ")))
        .max()
        .unwrap_or("none");
    format!("{} sources in PTX {version}, sets sm80 and sm90a: {}", ops.len(), ops.join(" "))
}

fn runs_folder() -> String {
    let probe = std::path::Path::new("runs");
    let existed = probe.exists();
    let file = probe.join(".doctor");
    let written = std::fs::create_dir_all(probe).and_then(|()| std::fs::write(&file, b"x"));
    let _ = std::fs::remove_file(&file);
    if !existed {
        let _ = std::fs::remove_dir(probe);
    }
    match written {
        Ok(()) => "runs/ is writable".into(),
        Err(error) => format!("runs/ cannot be written: {error}; use --out"),
    }
}
