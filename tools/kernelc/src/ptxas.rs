//! Runs `ptxas -v` and reads registers, shared bytes, stack and spills out of its report.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::manifest::Kernel;

/// What `ptxas -v` prints about `ptx`. `label` names the temporary files.
pub fn report(ptxas: &Path, arch: &str, ptx: &str, label: &str) -> Result<String, String> {
    let dir = std::env::temp_dir().join(format!("kernelc-{}-{label}", std::process::id()));
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let (input, output) = (dir.join(format!("{label}.ptx")), dir.join(format!("{label}.cubin")));
    fs::write(&input, ptx).map_err(|e| format!("{}: {e}", input.display()))?;
    let result = Command::new(ptxas)
        .args(["-v", "-O3", &format!("-arch={arch}"), "-o"])
        .arg(&output)
        .arg(&input)
        .output()
        .map_err(|e| format!("{}: {e}", ptxas.display()));
    let _ = fs::remove_dir_all(&dir);
    let result = result?;
    let report = String::from_utf8_lossy(&result.stderr).into_owned()
        + &String::from_utf8_lossy(&result.stdout);
    if result.status.success() {
        return Ok(report);
    }
    Err(format!("ptxas refused {label}: {report}"))
}

/// What a report says of each entry, sorted by name.
pub fn inspect(report: &str, label: &str) -> Result<Vec<Kernel>, String> {
    // For one, products of warpgroups that would run one by one.
    if let Some(line) = report.lines().find(|line| line.contains("Performance Loss")) {
        return Err(format!("ptxas on {label}: {}", line.trim()));
    }
    parse(report).map_err(|line| format!("ptxas report of {label} not understood: {line}"))
}

fn parse(report: &str) -> Result<Vec<Kernel>, String> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for line in report.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let name = rest.split('\'').next().unwrap_or("").to_string();
            kernels.push(Kernel { name, ..Kernel::default() });
            continue;
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            // One such line for the entry and one for each function it calls.
            kernel.stack_bytes = kernel.stack_bytes.max(number(line, "bytes stack frame")?);
            kernel.spill_bytes +=
                number(line, "bytes spill stores")? + number(line, "bytes spill loads")?;
        } else if line.contains("Used ") {
            kernel.registers = number(line, "registers")?;
            kernel.shared_bytes =
                if line.contains("bytes smem") { number(line, "bytes smem")? } else { 0 };
        }
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(kernels)
}

/// The number that stands before `unit` in a line such as "Used 24 registers, 256 bytes smem".
fn number(line: &str, unit: &str) -> Result<u64, String> {
    let before = line.split(unit).next().unwrap_or("").trim_end();
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
    digits.parse().map_err(|_| line.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_registers_spills_and_shared_bytes() {
        let report = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'scan' for 'sm_80'
ptxas info    : Function properties for scan
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 26 registers, 256 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'copy' for 'sm_80'
ptxas info    : Function properties for copy
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 384 bytes cmem[0]
";
        let kernels = parse(report).unwrap();
        let facts = |k: &Kernel| (k.registers, k.shared_bytes, k.stack_bytes, k.spill_bytes);
        assert_eq!(kernels[0].name, "copy");
        assert_eq!(facts(&kernels[0]), (8, 0, 0, 0));
        assert_eq!(facts(&kernels[1]), (26, 256, 16, 12));
    }
}
