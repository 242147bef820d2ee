//! Checkpoints: what is saved is loaded, and whatever is broken is found. Files and folders on their
//! way to their place: readers see the old or the new, and nothing is written through planted links.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use gradus::quant::Nf4Options;
use gradus::rng::{Purpose, Rng};
use gradus_rft::io::safetensors::{TensorData, Tensors, deserialize, serialize};
use gradus_rft::pretrained::{Adapter, Pretrained};
use gradus_rft::train::checkpoint::{Checkpoint, load, load_latest, save};

fn checkpoint(step: u64) -> Checkpoint {
    let mut rng = Rng::new(step, Purpose::User, [0; 3]);
    let data: Vec<f32> = (0..300).map(|_| rng.normal() as f32).collect();
    let mut tensors = Tensors::new();
    tensors.insert("param/a".into(), TensorData::new::<f32>(&[10, 30], &data));
    tensors.insert("nf4/b.packed".into(), TensorData::new::<u8>(&[7], &[1, 2, 3, 4, 5, 6, 7]));
    tensors.insert("adam/t".into(), TensorData::new::<i64>(&[1], &[step as i64]));
    let meta = serde_json::json!({ "phase": 2, "step": step });
    Checkpoint { step, fingerprint: "abc".into(), meta, tensors }
}

#[test]
fn what_is_saved_is_loaded_and_old_ones_are_pruned() {
    let folder = tempfile::tempdir().unwrap();
    for step in 1..=5 {
        save(folder.path(), &checkpoint(step), 2).unwrap();
    }
    let (found, warnings) = load_latest(folder.path()).unwrap();
    assert_eq!((found, warnings), (Some(checkpoint(5)), vec![]));
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert_eq!(names.len(), 3, "two checkpoints and LATEST: {names:?}");
    assert_eq!(std::fs::read_to_string(folder.path().join("LATEST")).unwrap(), "00000005");
    assert_eq!(load_latest(&folder.path().join("nothing")).unwrap(), (None, vec![]));
}

/// Every flipped bit in any file of a checkpoint is found, and the one before is loaded instead.
#[test]
fn no_flipped_bit_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &checkpoint(1), 5).unwrap();
    save(folder.path(), &checkpoint(2), 5).unwrap();
    let newest = folder.path().join("00000002");
    let mut rng = Rng::new(9, Purpose::User, [0; 3]);
    for name in ["state.safetensors", "meta.json"] {
        let path = newest.join(name);
        let clean = std::fs::read(&path).unwrap();
        for _ in 0..400 {
            let mut bytes = clean.clone();
            bytes[rng.below(clean.len())] ^= 1 << rng.below(8);
            std::fs::write(&path, &bytes).unwrap();
            let (found, warnings) = load_latest(folder.path()).unwrap();
            assert_eq!(found.unwrap().step, 1);
            assert!(warnings.len() == 1 && warnings[0].contains("checksum"), "{warnings:?}");
        }
        for cut in [0, 1, clean.len() / 2, clean.len() - 1] {
            std::fs::write(&path, &clean[..cut]).unwrap();
            assert_eq!(load_latest(folder.path()).unwrap().0.unwrap().step, 1);
        }
        std::fs::write(&path, &clean).unwrap();
    }
    // A damaged manifest does not load, unless it is JSON of the same content.
    let path = newest.join("manifest.json");
    let clean = std::fs::read(&path).unwrap();
    for _ in 0..400 {
        let mut bytes = clean.clone();
        bytes[rng.below(clean.len())] ^= 1 << rng.below(8);
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(found) = load(&newest) {
            assert_eq!(found, checkpoint(2));
        }
    }
}

/// Leftovers of a killed save are not checkpoints.
#[test]
fn half_written_folders_are_not_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &checkpoint(3), 5).unwrap();
    std::fs::create_dir(folder.path().join(".00000004.tmp-1")).unwrap();
    std::fs::create_dir(folder.path().join("00000005")).unwrap();
    let (found, warnings) = load_latest(folder.path()).unwrap();
    assert_eq!(found.unwrap().step, 3);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

/// Checkpoints behind the one that a run goes on from are damaged: they count for nothing, and the
/// step that is reached again replaces them.
#[test]
fn a_damaged_checkpoint_is_replaced_and_pushes_none_out() {
    let folder = tempfile::tempdir().unwrap();
    [3, 6, 9].into_iter().for_each(|step| save(folder.path(), &checkpoint(step), 3).unwrap());
    for step in [6, 9] {
        std::fs::write(folder.path().join(format!("{step:08}/meta.json")), "{}").unwrap();
    }
    assert_eq!(load_latest(folder.path()).unwrap().0.unwrap().step, 3);
    save(folder.path(), &checkpoint(6), 1).unwrap();
    assert_eq!(load_latest(folder.path()).unwrap().0.unwrap().step, 6);
    save(folder.path(), &checkpoint(9), 1).unwrap();
    assert_eq!(load_latest(folder.path()).unwrap(), (Some(checkpoint(9)), vec![]));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "one checkpoint and LATEST");
    // More steps than eight digits have are later ones.
    save(folder.path(), &checkpoint(123_456_789), 1).unwrap();
    assert_eq!(load_latest(folder.path()).unwrap().0.unwrap().step, 123_456_789);
}

/// An adapter that is written again and again is there, whole, at every moment.
#[test]
fn a_reader_always_finds_a_whole_adapter() {
    let golden = crate::common::golden_folder().join("models/llama/adapter");
    let adapter = Adapter::load(&golden).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("adapter");
    adapter.save(&place).unwrap();
    let done = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                // Each file by its name, as other programs open them.
                for name in ["adapter_config.json", "adapter_model.safetensors"] {
                    let bytes = std::fs::read(place.join(name)).unwrap();
                    assert!(!bytes.is_empty(), "{name}");
                }
                assert_eq!(Adapter::load(&place).unwrap().tensors(), adapter.tensors());
                reads += 1;
            }
            reads
        });
        for _ in 0..200 {
            adapter.save(&place).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(reads > 3, "{reads}");
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

/// Files have the mode of any other file of this process, not that of a temporary one.
#[cfg(unix)]
#[test]
fn adapters_can_be_read_by_whom_the_umask_lets() {
    use std::os::unix::fs::PermissionsExt;
    let golden = crate::common::golden_folder().join("models/llama/adapter");
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("adapter");
    Adapter::load(&golden).unwrap().save(&place).unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        assert_eq!(mode(&place.join(name)), mode(&plain), "{name}");
    }
}

/// Links where a temporary name would be lead nowhere, and what a killed conversion left is removed,
/// but not what a living one writes.
#[cfg(unix)]
#[test]
fn folders_are_not_written_through_planted_links() {
    let golden = crate::common::golden_folder().join("models/llama");
    let folder = tempfile::tempdir().unwrap();
    let (victim, out) = (folder.path().join("victim"), folder.path().join("nf4"));
    std::fs::create_dir(&victim).unwrap();
    let planted = folder.path().join(format!(".nf4.tmp-{}", std::process::id()));
    std::os::unix::fs::symlink(&victim, &planted).unwrap();
    let left = |pid: u32| folder.path().join(format!(".nf4.tmp-{pid}"));
    [4_000_001, 4_000_002].into_iter().for_each(|pid| std::fs::create_dir(left(pid)).unwrap());
    let living = std::fs::File::open(left(4_000_002)).unwrap();
    living.lock().unwrap();
    let mut model = Pretrained::open(&golden).unwrap();
    model.quantize_to(&out, &Nf4Options::default(), &mut |_, _| {}).unwrap();
    assert!(out.join("model.safetensors").is_file() && planted.is_symlink());
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
    assert!(!left(4_000_001).exists() && left(4_000_002).exists());
    // What is there already is not touched, whatever it is.
    for taken in [&victim.join("file"), &folder.path().join("link")] {
        std::fs::write(victim.join("file"), "mine").unwrap();
        let _ = std::os::unix::fs::symlink(&victim, folder.path().join("link"));
        let error = model.quantize_to(taken, &Nf4Options::default(), &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("is not an empty folder"), "{error}");
        assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 1);
    }
}

#[test]
fn a_failed_save_says_where_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("not-a-folder");
    std::fs::write(&file, "x").unwrap();
    let error = save(&file.join("checkpoints"), &checkpoint(1), 2).unwrap_err().to_string();
    assert!(error.contains("not-a-folder"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "x");
}

#[test]
fn hostile_safetensors_are_refused() {
    let path = Path::new("x.safetensors");
    let file = |header: &str, data: &[u8]| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    };
    let one = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    for (bytes, why) in [
        (vec![], "empty"),
        (vec![255; 16], "an absurd header length"),
        (file(&format!("{{{one}}}"), &[0; 3]), "too few bytes"),
        (file(&format!("{{{one}}}"), &[0; 5]), "bytes nobody names"),
        (file(&format!("{{{one},{one}}}"), &[0; 4]), "a name twice"),
        (file(&format!("{{{}}}", one.replace("\"a\"", "\"../../etc/passwd\"")), &[0; 4]), "a path"),
        (file(&format!("{{{}}}", one.replace("[1]", "[-1]")), &[0; 4]), "a negative extent"),
        (
            file(&format!("{{{}}}", one.replace("[0,4]", "[4,0]")), &[0; 4]),
            "an end before its start",
        ),
        (file(&format!("{{{}}}", one.replace("F32", "F8_E5M2")), &[0; 4]), "an unknown dtype"),
        (file("{", &[]), "half a header"),
    ] {
        let error = deserialize(path, &bytes).expect_err(why).to_string();
        assert!(error.contains("x.safetensors"), "{why}: {error}");
    }
    let good = checkpoint(1).tensors;
    assert_eq!(deserialize(path, &serialize(&good).unwrap()).unwrap(), good);
}
