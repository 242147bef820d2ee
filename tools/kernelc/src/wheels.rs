//! Finds NVRTC and ptxas: given paths first, then the pinned wheels, fetched once by pip.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const NVRTC: &str = "nvidia/cuda_nvrtc/lib/libnvrtc.so.12";
const PTXAS: &str = "nvidia/cuda_nvcc/bin/ptxas";

/// The pins. `--require-hashes` makes pip refuse any other file.
const REQUIREMENTS: &str = "\
nvidia-cuda-nvrtc-cu12==12.4.127 --hash=sha256:a178759ebb095827bd30ef56598ec182b85547f1508941a3d560eb7ea1fbf338
nvidia-cuda-nvcc-cu12==12.4.131 --hash=sha256:e4c9a35435c3b0e36c6397c5696334c9ea6650e524736cbd1c5d345ea099bb04
";

/// Where the compiler's two halves are.
pub struct Tools {
    pub nvrtc: PathBuf,
    pub ptxas: PathBuf,
}

/// Paths of both tools; installs the wheels into `home` when a path is not given and they are
/// not there yet.
pub fn locate(
    home: &Path,
    nvrtc: &Option<PathBuf>,
    ptxas: &Option<PathBuf>,
) -> Result<Tools, String> {
    let wheels = home.join("wheels-12.4");
    let from_wheels = nvrtc.is_none() || ptxas.is_none();
    if from_wheels && !(wheels.join(NVRTC).is_file() && wheels.join(PTXAS).is_file()) {
        install(home, &wheels)?;
    }
    Ok(Tools {
        nvrtc: nvrtc.clone().unwrap_or_else(|| wheels.join(NVRTC)),
        ptxas: ptxas.clone().unwrap_or_else(|| wheels.join(PTXAS)),
    })
}

fn install(home: &Path, wheels: &Path) -> Result<(), String> {
    let requirements = home.join("requirements.txt");
    fs::create_dir_all(home).map_err(|e| format!("{}: {e}", home.display()))?;
    fs::write(&requirements, REQUIREMENTS)
        .map_err(|e| format!("{}: {e}", requirements.display()))?;
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"])
        .args(["--platform", "manylinux2014_x86_64", "--require-hashes", "--target"])
        .arg(wheels)
        .arg("-r")
        .arg(&requirements)
        .output()
        .map_err(|e| format!("python3 -m pip: {e}; or pass --nvrtc and --ptxas"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "pip could not install the pinned wheels: {}",
        String::from_utf8_lossy(&output.stderr)
    ))
}
