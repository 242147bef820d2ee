//! Checkpoints: what is saved is loaded, and whatever is broken is found.

use std::path::Path;

use gradus::io::safetensors::{TensorData, Tensors, deserialize, serialize};
use gradus::rng::{Purpose, Rng};
use gradus::train::checkpoint::{Checkpoint, load, load_latest, save};

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
    // A damaged manifest either does not load or still vouches for the right bytes.
    let path = newest.join("manifest.json");
    let clean = std::fs::read(&path).unwrap();
    for _ in 0..400 {
        let mut bytes = clean.clone();
        bytes[rng.below(clean.len())] ^= 1 << rng.below(8);
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(found) = load(&newest) {
            assert_eq!(found.tensors, checkpoint(2).tensors);
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
