//! The library has what the header says: every struct's size, every op's name, every default.

use std::ffi::CString;

use crate::common::parsed::{self, Kind, Struct};
use gradus_c::sys;

fn size_of_struct(name: &str) -> usize {
    let name = CString::new(name).unwrap();
    // SAFETY: a text that ends with NUL.
    unsafe { sys::gradus_sizeof(name.as_ptr()) }
}

#[test]
fn sizes_are_those_of_the_header() {
    let all = parsed::structs();
    assert!(all.len() > 70, "{} structs were found", all.len());
    for s in all {
        let name = s.name.trim_end_matches("_args");
        assert_eq!(size_of_struct(name), s.size, "gradus_{}", s.name);
        assert_eq!(s.name.ends_with("_args"), s.fields[0].name == "struct_size", "{}", s.name);
    }
    assert_eq!(size_of_struct("no such op"), 0);
}

#[test]
fn every_op_has_defaults_for_every_size() {
    for s in parsed::ops() {
        let op = CString::new(s.name.trim_end_matches("_args")).unwrap();
        let mut full = vec![0xAAu64; s.size / 8 + 8];
        // SAFETY: as many bytes as the size says.
        let status = unsafe { sys::gradus_init(op.as_ptr(), full.as_mut_ptr().cast(), s.size) };
        assert_eq!((status, full[0]), (0, s.size as u64), "{}", s.name);
        assert_eq!(full[s.size / 8], 0xAA, "{}: bytes behind the struct", s.name);
        // An older header's struct: the same, cut off. A newer one's: the same, and zeros.
        for size in [8, s.size - 8, s.size + 24] {
            let mut other = vec![0x55u64; s.size / 8 + 8];
            // SAFETY: as above.
            let status = unsafe { sys::gradus_init(op.as_ptr(), other.as_mut_ptr().cast(), size) };
            assert_eq!((status, other[0]), (0, size as u64), "{} of {size}", s.name);
            let known = size.min(s.size) / 8;
            assert_eq!(other[1..known], full[1..known], "{} of {size}", s.name);
            assert!(other[known..size / 8].iter().all(|&word| word == 0));
            assert_eq!(other[size / 8], 0x55, "{}: bytes behind the struct", s.name);
        }
        for size in [0, 7, 1 << 20] {
            // SAFETY: refused sizes are not written.
            let status = unsafe { sys::gradus_init(op.as_ptr(), full.as_mut_ptr().cast(), size) };
            assert_eq!(status, sys::GRADUS_INVALID_ARGUMENT as i32, "{} of {size}", s.name);
        }
    }
}

/// (name, documented, found) of every number in a struct that lies at `base`.
fn defaults(s: &Struct, all: &[Struct], base: *const u8) -> Vec<(String, f64, f64)> {
    let mut found = Vec::new();
    for field in s.fields.iter().filter(|f| f.name != "struct_size") {
        // SAFETY: fields lie inside their struct.
        let at = unsafe { base.add(field.offset) };
        if let Kind::Struct(inner) = &field.kind {
            let inner = all.iter().find(|s| s.name == *inner).unwrap();
            found.extend(defaults(inner, all, at));
        }
        for i in 0..field.count {
            // SAFETY: the elements of the field have this type.
            let value = unsafe {
                match field.kind {
                    Kind::I32 => at.cast::<i32>().add(i).read() as f64,
                    Kind::I64 => at.cast::<i64>().add(i).read() as f64,
                    Kind::F64 => at.cast::<f64>().add(i).read(),
                    _ => continue,
                }
            };
            found.push((format!("{}.{}", s.name, field.name), field.default(), value));
        }
    }
    found
}

#[test]
fn defaults_are_those_of_the_comments() {
    let all = parsed::structs();
    let (mut other_than_0, mut wrong) = (0, Vec::new());
    for s in parsed::ops() {
        let op = CString::new(s.name.trim_end_matches("_args")).unwrap();
        let mut words = vec![0u64; s.size / 8];
        // SAFETY: as many bytes as the size says.
        let status = unsafe { sys::gradus_init(op.as_ptr(), words.as_mut_ptr().cast(), s.size) };
        assert_eq!(status, 0);
        for (name, documented, found) in defaults(&s, &all, words.as_ptr().cast()) {
            if found != documented {
                wrong.push(format!("{name} is {found}, its comment says {documented}"));
            }
            other_than_0 += (found != 0.0) as usize;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(other_than_0 > 100, "{other_than_0} defaults");
}
