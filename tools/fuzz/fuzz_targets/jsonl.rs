//! JSON rows: what is accepted is written back as rows that say the same.
#![no_main]

use std::path::Path;

use gradus_rft::data::jsonl::{JsonLines, parse_array};
use gradus_rft::data::Row;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = Path::new("fuzz");
    let rows: Result<Vec<Row>, _> = JsonLines::new(data, path).collect();
    if let Ok(rows) = rows {
        let text: Vec<String> =
            rows.iter().map(|row| serde_json::to_string(row).expect("JSON") + "\n").collect();
        let again: Result<Vec<Row>, _> = JsonLines::new(text.concat().as_bytes(), path).collect();
        assert_eq!(again.expect("what was written is read"), rows);
    }
    let _ = parse_array(data, path);
});
