//! The shipped PTX: what the manifest says of it is true, and no newer driver is needed than
//! promised. Needs neither a compiler nor a GPU.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::common::root;
use gradus::device::{shipped_ptx, shipped_sources};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn folder() -> PathBuf {
    root().join("kernels")
}

fn manifest() -> Value {
    let text = std::fs::read_to_string(folder().join("generated/manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    value[key].as_array().unwrap()
}

fn check_hash(entry: &Value) {
    let file = entry["file"].as_str().unwrap();
    let bytes = std::fs::read(folder().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let hash: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        Some(hash.as_str()),
        entry["sha256"].as_str(),
        "{file}: run `cargo run --release -p kernelc`"
    );
}

#[test]
fn files_are_those_of_the_manifest() {
    let manifest = manifest();
    list(&manifest, "headers").iter().for_each(check_hash);
    let mut named = BTreeSet::new();
    for source in list(&manifest, "sources") {
        check_hash(source);
        for ptx in list(source, "ptx") {
            check_hash(ptx);
            named
                .insert(ptx["file"].as_str().unwrap().trim_start_matches("generated/").to_string());
        }
    }
    let there = std::fs::read_dir(folder().join("generated")).unwrap();
    let there = there.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let there: BTreeSet<String> = there.filter(|name| name.ends_with(".ptx")).collect();
    assert_eq!(named, there);
    let shipped: BTreeSet<String> =
        shipped_sources().map(|(op, set)| format!("{op}.{}.ptx", set.name())).collect();
    assert_eq!(named, shipped, "files of kernels/generated and the crate's table");
}

/// What the library unpacks is what one can read.
#[test]
fn packed_texts_are_the_files() {
    for (op, set, ptx) in shipped_ptx().unwrap() {
        let file = format!("generated/{op}.{}.ptx", set.name());
        let text = std::fs::read_to_string(folder().join(&file)).unwrap();
        assert!(ptx == text, "{file}: run `cargo run --release -p kernelc`");
    }
}

#[test]
fn ptx_loads_with_old_drivers() {
    for (op, set, ptx) in shipped_ptx().unwrap() {
        let version = ptx.lines().find_map(|l| l.strip_prefix(".version ")).unwrap();
        let (major, minor) = version.trim().split_once('.').unwrap();
        let version: (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
        assert!(version <= (8, 4), "{op} {} {version:?}", set.name());
        let target = if set.name() == "sm80" { "sm_80" } else { "sm_90a" };
        assert!(ptx.contains(&format!(".target {target}\n")), "{op} {}", set.name());
    }
}

#[test]
fn local_memory_has_a_reason() {
    let manifest = manifest();
    let mut kernels = 0;
    for source in list(&manifest, "sources") {
        for ptx in list(source, "ptx") {
            for kernel in list(ptx, "kernels") {
                kernels += 1;
                let bytes = kernel["stack_bytes"].as_u64().unwrap()
                    + kernel["spill_bytes"].as_u64().unwrap();
                assert!(bytes == 0 || kernel["local_memory_reason"].is_string(), "{kernel}");
                assert!(bytes <= 128, "{kernel}: more than slow paths need");
            }
        }
    }
    assert!(kernels > 100, "{kernels}");
}

/// Products of 16-bit operands run on tensor cores, on Hopper's warpgroups where tiles are large, and
/// leave room for a second block where they are meant to: registers that ptxas reports.
#[test]
fn products_are_on_tensor_cores_and_within_their_registers() {
    for (op, set, ptx) in shipped_ptx().unwrap() {
        let fans = op.ends_with("matmul_fan");
        if !fans && !matches!(op, "matmul" | "nf4_matmul" | "nf4_matmul_grouped") {
            continue;
        }
        for entry in ptx.split(".entry ").skip(1) {
            let name = entry.split('(').next().unwrap();
            let tile = name.contains("tile") || op == "nf4_matmul_grouped";
            let wanted = match (tile, set.name()) {
                (true, "sm90a") => "wgmma.mma_async.sync.aligned.m64n128k16",
                (true, _) => "mma.sync.aligned.m16n8k16",
                _ if name.contains("few") => "mma.sync.aligned.m16n8k16",
                _ => continue,
            };
            assert!(entry.contains(wanted), "{name} {}: no {wanted}", set.name());
        }
    }
    let manifest = manifest();
    for source in list(&manifest, "sources") {
        for kernel in list(source, "ptx").iter().flat_map(|ptx| list(ptx, "kernels")) {
            let name = kernel["name"].as_str().unwrap();
            if name.contains("_few") || name.contains("_tile") || name.contains("grouped") {
                assert_eq!(kernel["spill_bytes"], 0, "{name}");
                assert_eq!(kernel["stack_bytes"], 0, "{name}");
            }
            // Two blocks of 256 threads a multiprocessor, to keep enough loads under way.
            if name.contains("nf4_matmul_few") {
                assert!(kernel["registers"].as_u64().unwrap() <= 128, "{name}");
            }
        }
    }
}
