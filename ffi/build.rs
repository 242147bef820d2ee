//! Says in `gradus_build_info` which commit and features the library was built from.

use std::process::Command;

fn main() {
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit = git
        .ok()
        .filter(|o| o.status.success())
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string());
    let on = |name: &str| std::env::var(format!("CARGO_FEATURE_{name}")).is_ok();
    let features: Vec<&str> = [("CUDA", "cuda"), ("EMU", "emu")]
        .into_iter()
        .filter(|(n, _)| on(n))
        .map(|(_, f)| f)
        .collect();
    println!(
        "cargo:rustc-env=GRADUS_BUILD=commit {}; features {}",
        commit.as_deref().unwrap_or("unknown"),
        features.join(", ")
    );
    println!("cargo:rerun-if-changed=build.rs");
    // A package has none, and what is missing would count as changed in every build.
    if std::path::Path::new("../.git/HEAD").exists() {
        println!("cargo:rerun-if-changed=../.git/HEAD");
    }
}
