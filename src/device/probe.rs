//! Looks for a GPU driver without ever panicking, printing or linking against it.

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuProbe {
    /// A driver library is installed at this path.
    Library(String),
    /// None was found; the names that were tried.
    Missing(Vec<String>),
}

/// The library's place, or what was looked for.
impl std::fmt::Display for GpuProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GpuProbe::Library(path) => write!(f, "found at {path}"),
            GpuProbe::Missing(names) => {
                let names = names.join(", ");
                write!(f, "none ({names} not found); a GPU needs the driver, not the toolkit")
            }
        }
    }
}

/// Looks for the driver library in the places the dynamic loader would.
pub fn probe_gpu() -> GpuProbe {
    let names = ["libcuda.so.1", "libcuda.so"];
    let mut folders: Vec<String> = std::env::var("LD_LIBRARY_PATH")
        .map(|paths| paths.split(':').filter(|p| !p.is_empty()).map(String::from).collect())
        .unwrap_or_default();
    folders.extend(
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
            .map(String::from),
    );
    folders.extend(["/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"].map(String::from));
    for name in names {
        for folder in &folders {
            let path = format!("{folder}/{name}");
            if std::path::Path::new(&path).exists() {
                return GpuProbe::Library(path);
            }
        }
    }
    GpuProbe::Missing(names.map(String::from).to_vec())
}
