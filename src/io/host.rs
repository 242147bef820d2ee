//! The memory of this machine and of this process, where the system tells.

use std::fs;

fn kib(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Bytes that new allocations can have without swapping.
pub fn available_memory() -> Option<u64> {
    kib("/proc/meminfo", "MemAvailable:").map(|n| n << 10)
}

/// Bytes of memory in all.
pub fn total_memory() -> Option<u64> {
    kib("/proc/meminfo", "MemTotal:").map(|n| n << 10)
}

/// Most bytes this process has held at once.
pub fn peak_memory() -> Option<u64> {
    kib("/proc/self/status", "VmHWM:").map(|n| n << 10)
}
