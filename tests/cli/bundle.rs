//! The script that measures on a GPU for 15 minutes, where there is none.
#![cfg(unix)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use super::runs::{gradus, must, text};

/// A bundle with this build's command line and test executables that only list.
fn bundle(folder: &Path) {
    let script = crate::common::root().join("tools/gpu-bundle/measure.sh");
    std::fs::copy(script, folder.join("measure.sh")).unwrap();
    symlink(env!("CARGO_BIN_EXE_gradus"), folder.join("gradus")).unwrap();
    for file in ["ops", "device", "train", "run.sh"] {
        let path = folder.join(file);
        std::fs::write(&path, "#!/bin/sh\necho \"$2::one: test\"\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn measure(folder: &Path, arguments: &[&str]) -> Output {
    Command::new("bash").arg(folder.join("measure.sh")).args(arguments).output().unwrap()
}

#[test]
fn a_dry_run_prints_the_plan_and_looks_at_every_file() {
    let folder = tempfile::tempdir().unwrap();
    bundle(folder.path());
    let plan = measure(folder.path(), &["--dry-run"]);
    let said = text(&plan);
    assert!(plan.status.success(), "{said}");
    for line in
        ["constants    60 s", "left out: no --against", "left out: no --peers", "total       900 s"]
    {
        assert!(said.contains(line), "{line}: {said}");
    }
    // The same bundle stands for another one.
    let both = measure(folder.path(), &["--dry-run", "--against", folder.path().to_str().unwrap()]);
    assert!(both.status.success() && !text(&both).contains("no --against"), "{}", text(&both));
    for (arguments, said) in [
        (&["--against", "nowhere", "--dry-run"][..], "--against nowhere: it has no gradus"),
        (&["--peers", "nowhere", "--dry-run"], "--peers nowhere: it has no gpu_compare.py"),
        (&["--fast"], "--fast is no option"),
        (&["--out"], "--out wants a folder"),
    ] {
        let refused = measure(folder.path(), arguments);
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
        assert!(text(&refused).contains(said), "{}", text(&refused));
    }
    std::fs::write(folder.path().join("device"), "#!/bin/sh\n").unwrap();
    let renamed = text(&measure(folder.path(), &["--dry-run"]));
    assert!(renamed.contains("device has no test called conformance"), "{renamed}");
    std::fs::remove_file(folder.path().join("train")).unwrap();
    let missing = text(&measure(folder.path(), &["--dry-run"]));
    assert!(missing.contains("train is missing"), "{missing}");
}

#[test]
fn without_a_gpu_nothing_is_measured() {
    if must(gradus(&["doctor"])).contains("runs on cuda") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    bundle(folder.path());
    let refused = measure(folder.path(), &[]);
    let said = text(&refused);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("no GPU to measure"), "{said}");
}
