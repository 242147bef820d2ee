//! Looks for a GPU driver without ever panicking, printing or linking against it.

use std::path::PathBuf;

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
            GpuProbe::Missing(names) if names.is_empty() => {
                write!(f, "none: NVIDIA has no driver for {}", std::env::consts::OS)
            }
            GpuProbe::Missing(names) => {
                let names = names.join(", ");
                write!(f, "none ({names} not found); a GPU needs the driver, not the toolkit")
            }
        }
    }
}

/// Looks for the driver library in the places the dynamic loader would.
pub fn probe_gpu() -> GpuProbe {
    let os = std::env::consts::OS;
    let variable = if os == "windows" { "PATH" } else { "LD_LIBRARY_PATH" };
    let listed = std::env::var_os(variable).unwrap_or_default();
    let listed = std::env::split_paths(&listed).filter(|path| !path.as_os_str().is_empty());
    let folders: Vec<PathBuf> = match os == "windows" {
        // The loader takes the system's folder first.
        true => system_folder().into_iter().chain(listed).collect(),
        false => listed.chain(FOLDERS.map(PathBuf::from)).collect(),
    };
    for name in names(os) {
        if let Some(path) =
            folders.iter().map(|folder| folder.join(name)).find(|path| path.exists())
        {
            return GpuProbe::Library(path.to_string_lossy().into_owned());
        }
    }
    GpuProbe::Missing(names(os).iter().map(|name| name.to_string()).collect())
}

/// What the driver's library is called on a system; nothing where there is none.
fn names(os: &str) -> &'static [&'static str] {
    if os == "windows" {
        &["nvcuda.dll"]
    } else if os == "macos" {
        &[]
    } else {
        &["libcuda.so.1", "libcuda.so"]
    }
}

/// Where Linux has it, containers and WSL included.
const FOLDERS: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
];

/// Where Windows has it.
fn system_folder() -> Option<PathBuf> {
    std::env::var_os("SystemRoot").map(|root| PathBuf::from(root).join("System32"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_system_has_its_name_of_the_driver() {
        assert_eq!(names("linux"), ["libcuda.so.1", "libcuda.so"]);
        assert_eq!(names("windows"), ["nvcuda.dll"]);
        assert!(names("macos").is_empty());
        let none = GpuProbe::Missing(Vec::new()).to_string();
        assert_eq!(none, format!("none: NVIDIA has no driver for {}", std::env::consts::OS));
        let missing = GpuProbe::Missing(vec!["nvcuda.dll".into()]).to_string();
        assert!(missing.starts_with("none (nvcuda.dll not found)"), "{missing}");
    }
}
