//! `gradus doctor`: what is here, what will be used, and why.

use gradus::device::{GpuProbe, probe_gpu};

/// The report, one finding per line.
pub fn report() -> String {
    let mut text = format!("gradus {}\n\n", env!("CARGO_PKG_VERSION"));
    let mut row = |name: &str, value: String| text += &format!("  {name:<14}{value}\n");
    row("cpu", cpu());
    row("threads", format!("{} (set `threads` to use fewer)", rayon::current_num_threads()));
    row("vector units", vector_units());
    row("memory", memory());
    row("gpu driver", gpu());
    row("device", "cpu: this build has no GPU kernels yet, every op runs on the host".into());
    row("runs folder", runs_folder());
    text
}

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.to_string())
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
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| -> Option<u64> {
        let line = info.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    match (kib("MemAvailable:"), kib("MemTotal:")) {
        (Some(free), Some(total)) => {
            format!(
                "{:.1} of {:.1} GiB available",
                free as f64 / 1048576.0,
                total as f64 / 1048576.0
            )
        }
        _ => "unknown".into(),
    }
}

fn gpu() -> String {
    match probe_gpu() {
        GpuProbe::Library(path) => format!("found at {path}"),
        GpuProbe::Missing(names) => format!("none ({} not found)", names.join(", ")),
    }
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
