//! Predictions beside the measured rows of `benches/results`: the table `predicted.json`, the choice of
//! constants, and a test that a few rows are still predicted as the table says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use gradus::device::shipped_ptx;
use gradus::device::timing::rates::{Gpu as Model, H100, H200};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Prediction, Recorded, Recorder, halves};
use crate::bench::case::Case;
use crate::bench::peers::large_of;
use crate::bench::{Shapes, cases};

/// Within this factor a prediction counts as right.
const RIGHT: f64 = 1.3;

fn results(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../benches/results").join(file)
}

fn read(file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(results(file)).unwrap()).unwrap()
}

/// A measured row.
#[derive(Clone, Debug)]
struct Measured {
    gpu: &'static str,
    name: String,
    /// From a graph where there is one, else from the host.
    us: f64,
    graph: bool,
    /// What the run was.
    run: usize,
}

fn rows(gpu: &'static str, run: usize, value: &Value) -> Vec<Measured> {
    let one = |row: &Value| {
        let text = |key: &str| row[key].as_str().unwrap().to_string();
        let graph = row["graph_ms"].as_f64();
        let us = 1e3 * graph.or(row["ms"].as_f64()).unwrap();
        let dtype = row["dtype"].as_str().unwrap_or("bf16");
        let name = format!("{} {} {dtype}", text("op"), text("shape"));
        Measured { gpu, name, us, graph: graph.is_some(), run }
    };
    value["rows"].as_array().into_iter().flatten().map(one).collect()
}

/// All measured rows.
fn measured() -> Vec<Measured> {
    let mut all = Vec::new();
    for gpu in ["H100", "H200"] {
        let file = read(&format!("2026-11-26-{}.json", gpu.to_lowercase()));
        for (run, value) in file["runs"].as_array().unwrap().iter().enumerate() {
            all.extend(rows(gpu, run, value));
        }
    }
    all
}

/// Why a row was measured on another kernel than today's, by `git log` of `kernels`.
fn outdated(row: &Measured) -> Option<&'static str> {
    let has = |text: &str| row.name.contains(text);
    let few = [" 1 x ", " 4 x ", " 16 x "].iter().any(|m| has(m));
    let h200 = row.gpu == "H200";
    if has("_step") {
        return Some("hundreds of launches of a trainer that has changed since");
    }
    if few && has(" r16") {
        return Some("before adapters of few rows took four products at a time (a76889f)");
    }
    if has("linear_logprob") {
        return Some("in chunks of 32 rows, which have 2,048 since");
    }
    let many = [" 512 x ", " 2048 x ", " 8192 x "].iter().any(|m| has(m));
    if has("nf4_matmul") && many && has("bf16") {
        return Some("expanded tile by tile; the weight is written out first since");
    }
    if h200 && has("matmul") && (!few || has("_dx")) {
        return Some("with copies past the L1, which were given up (4988946)");
    }
    if h200 && row.run == 0 && has("rmsnorm") {
        return Some("before 16 loads were under way (4988946)");
    }
    None
}

fn model(gpu: &str) -> Model {
    if gpu == "H100" { H100 } else { H200 }
}

/// Every other shape is fitted.
fn fitted(rows: &[Measured]) -> BTreeSet<String> {
    let names: BTreeSet<&String> = rows.iter().map(|r| &r.name).collect();
    names.into_iter().step_by(2).cloned().collect()
}

fn predicted(row: &Measured, p: &Prediction) -> f64 {
    if row.graph { p.us } else { p.call_us }
}

/// The text of a kernel, hashed: while it is the same, its row is comparable.
fn hash(kernel: &str) -> String {
    let entry = format!(".entry {kernel}(");
    let found = shipped_ptx().unwrap().into_iter().filter(|(_, set, _)| set.name() == "sm90a");
    let body = found.filter_map(|(.., ptx)| Some(ptx.split_once(&entry)?.1)).next().unwrap_or("");
    let body = body.split_once("\n}").map_or(body, |(body, _)| body);
    Sha256::digest(body).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// Hashes of the kernels that the rows were measured on, by name: those of the table, which were taken from the commit
/// before the first of them changed (8f40ffb).
fn measured_kernels() -> BTreeMap<String, String> {
    serde_json::from_value(read("predicted.json")["measured_kernels"].clone()).unwrap()
}

/// The first kernel of a row that is not the one it was measured on.
fn changed<'a>(its: &'a Recorded, measured: &BTreeMap<String, String>) -> Option<&'a str> {
    let mut kernels = its.launches.iter().map(|launch| launch.kernel.as_str());
    kernels.find(|kernel| measured.get(*kernel) != Some(&hash(kernel)))
}

/// Records rows, small ones first, for so many minutes.
fn record(minutes: u64, chosen: impl Fn(&Case) -> bool) -> BTreeMap<String, Recorded> {
    let (mut recorded, begin) = (BTreeMap::new(), std::time::Instant::now());
    let all = cases(Shapes::Default).into_iter().chain(halves()).chain(large_of::<gradus::bf16>());
    let mut all: Vec<Case> = all.filter(chosen).collect();
    all.sort_by_key(|case| (case.bytes, case.name()));
    all.dedup_by_key(|case| case.name());
    for case in all {
        if begin.elapsed().as_secs() > 60 * minutes {
            break;
        }
        let start = std::time::Instant::now();
        let of_case = Recorder::new().unwrap().case(&case);
        recorded.insert(case.name(), of_case.unwrap_or_else(|e| panic!("{}: {e}", case.name())));
        println!("{} recorded in {:.1} s", case.name(), start.elapsed().as_secs_f64());
    }
    recorded
}

fn ratio(row: &Measured, recorded: &BTreeMap<String, Recorded>, model: &Model) -> f64 {
    predicted(row, &recorded[&row.name].predict(model).unwrap()) / row.us
}

/// Constants that are fitted, by name.
const KNOBS: [&str; 18] = [
    "pace",
    "cluster_start",
    "proxy",
    "clock",
    "l2_bytes",
    "memory_port",
    "launch",
    "call",
    "wait",
    "serial_atomic",
    "arithmetic",
    "branch",
    "l1",
    "l2",
    "memory",
    "barrier",
    "start",
    "special",
];

/// Multiplies a constant.
fn turn(m: &mut Model, name: &str, factor: f64) {
    let real = match name {
        "clock" => Some(&mut m.clock),
        "l2_bytes" => Some(&mut m.l2_bytes),
        "memory_port" => Some(&mut m.memory_port),
        "launch" => Some(&mut m.launch),
        "call" => Some(&mut m.call),
        "wait" => Some(&mut m.wait),
        "serial_atomic" => Some(&mut m.serial_atomic),
        _ => None,
    };
    if let Some(x) = real {
        *x *= factor;
        return;
    }
    let l = &mut m.latency;
    let x = match name {
        "pace" => &mut l.pace,
        "cluster_start" => &mut l.cluster_start,
        "proxy" => &mut l.proxy,
        "arithmetic" => &mut l.arithmetic,
        "branch" => &mut l.branch,
        "l1" => &mut l.l1,
        "l2" => &mut l.l2,
        "memory" => &mut l.memory,
        "barrier" => &mut l.barrier,
        "start" => &mut l.start,
        "special" => &mut m.slots.special,
        other => panic!("no constant {other}"),
    };
    *x = (f64::from(*x) * factor).round().max(1.0) as u16;
}

/// The fitted constants: each is turned a little up and down, again and again, while the mean square of
/// the logarithms of predicted / measured falls.
fn descend(rows: &[&Measured], recorded: &BTreeMap<String, Recorded>) -> [Model; 2] {
    use rayon::prelude::*;
    let cost = |models: &[Model; 2]| {
        let each = |row: &&Measured| {
            let model = &models[usize::from(row.gpu == "H200")];
            ratio(row, recorded, model).ln().abs().min(1.0).powi(2)
        };
        rows.par_iter().map(each).sum::<f64>() / rows.len() as f64
    };
    let mut models = [H100, H200];
    let mut best = cost(&models);
    for step in [1.25, 1.12, 1.06] {
        for (name, factor) in KNOBS.iter().flat_map(|name| [(name, step), (name, 1.0 / step)]) {
            let mut tried = models;
            tried.iter_mut().for_each(|m| turn(m, name, factor));
            let now = cost(&tried);
            if now < best - 1e-5 {
                (best, models) = (now, tried);
                println!("{name} x {factor:.3}: {best:.4}");
            }
        }
    }
    models
}

/// `cargo test -p gradus-rft --features emu --lib -- --ignored constants`. Small rows stand for all: a round over
/// large ones takes minutes.
#[test]
#[ignore = "an hour: prints constants that fit better"]
fn constants_that_fit() {
    const EVENTS: u64 = 120_000;
    let rows = measured();
    let halves = fitted(&rows);
    let wanted: BTreeSet<&str> = halves.iter().map(String::as_str).collect();
    let recorded = record(60, |c| wanted.contains(c.name().as_str()) && c.bytes < 30_000_000);
    let small = |r: &&Measured| {
        let its = recorded.get(&r.name);
        outdated(r).is_none() && its.is_some_and(|its| its.events() < EVENTS)
    };
    let chosen: Vec<&Measured> = rows.iter().filter(small).collect();
    println!("{:#?}", descend(&chosen, &recorded)[1]);
}

/// What the table of before says of a row whose kernels are still the same.
fn kept<'a>(table: &'a Value, row: &Measured) -> Option<&'a Value> {
    let mut its = table["rows"].as_array().into_iter().flatten();
    let old =
        its.find(|r| r["gpu"] == row.gpu && r["row"] == row.name && r["measured_us"] == row.us)?;
    let mut kernels = old["kernels"].as_object().into_iter().flatten();
    kernels.all(|(kernel, its)| *its == hash(kernel)).then_some(old)
}

/// Writes the table, likewise. `GRADUS_ROWS` has texts between `|`: rows whose names contain none of them, and for
/// which there is no time, stay as they are if their kernels have.
#[test]
#[ignore = "half an hour: writes benches/results/predicted.json"]
fn predictions_of_all_rows() {
    let rows = measured();
    let halves = fitted(&rows);
    let texts = std::env::var("GRADUS_ROWS").unwrap_or_default();
    let chosen = |r: &&Measured| texts.split('|').any(|text| r.name.contains(text));
    let old = read("predicted.json");
    let comparable = rows.iter().filter(|r| outdated(r).is_none() && chosen(r));
    let wanted: BTreeSet<&str> = comparable.map(|r| r.name.as_str()).collect();
    let minutes = std::env::var("GRADUS_MINUTES").map_or(60, |n| n.parse().unwrap());
    // Heads of 8,192 rows would take 10 GB each.
    let recorded = record(minutes, |c| wanted.contains(c.name().as_str()) && c.bytes < 3 << 30);
    let measured = measured_kernels();
    let (mut table, mut left_out) = (Vec::new(), Vec::new());
    for row in &rows {
        if let Some(old) = kept(&old, row).filter(|_| !recorded.contains_key(&row.name)) {
            table.push(old.clone());
            continue;
        }
        let missing = (!recorded.contains_key(&row.name))
            .then_some("not recorded: no row of today's benchmark, or too large");
        if let Some(why) = outdated(row).or(missing) {
            left_out.push(json!({ "gpu": row.gpu, "row": row.name, "why": why }));
            continue;
        }
        let its = &recorded[&row.name];
        if let Some(kernel) = changed(its, &measured) {
            let why = format!("{kernel} has changed since");
            left_out.push(json!({ "gpu": row.gpu, "row": row.name, "why": why }));
            continue;
        }
        let p = its.predict(&model(row.gpu)).unwrap();
        let kernels = its.launches.iter().map(|l| (l.kernel.clone(), hash(&l.kernel)));
        let us = predicted(row, &p);
        table.push(json!({
            "gpu": row.gpu, "row": row.name, "measured_us": row.us, "predicted_us": us,
            "ratio": us / row.us, "fitted": halves.contains(&row.name), "longest": p.longest.0,
            "busiest": p.longest.2, "share": p.longest.3, "launches": p.launches,
            "kernels": kernels.collect::<BTreeMap<_, _>>(),
        }));
    }
    let right = |half: bool| {
        let its = table.iter().filter(|r| r["fitted"] == half);
        let ratios: Vec<f64> = its.map(|r| r["ratio"].as_f64().unwrap()).collect();
        let right = ratios.iter().filter(|r| r.ln().abs() <= RIGHT.ln()).count();
        json!({ "rows": ratios.len(), "within_1.3": right })
    };
    let (judged, fitted) = (right(false), right(true));
    let out = json!({
        "judged": judged, "fitted": fitted, "rows": table, "left_out": left_out,
        "measured_kernels": measured, "choice": read("predicted.json")["choice"],
        "what": "predicted by the virtual time of tools/emu, beside benches/results/2026-11-26-*.json",
    });
    std::fs::write(results("predicted.json"), format!("{out:#}\n")).unwrap();
}

/// Rows that take seconds to record, in f32: builds with debug assertions have no others.
const CHEAP: [&str; 6] = [
    "copy_rows scatter 512 x 256 f32",
    "embedding 512 x 1536 f32",
    "copy_rows gather 512 x 1536 f32",
    "nf4_dequantize 1536 x 1536 f32",
    "score_scale 512 x 1536 f32",
    "lerp 4194304 f32",
];

/// What the table says is what the model says, of kernels that are still those of the table.
#[test]
fn cheap_rows_are_predicted_as_the_table_says() {
    let table = read("predicted.json");
    let recorded = record(60, |c| CHEAP.contains(&c.name().as_str()));
    assert_eq!(recorded.len(), CHEAP.len());
    let mut compared = 0;
    for row in table["rows"].as_array().unwrap() {
        let Some(its) = recorded.get(row["row"].as_str().unwrap()) else { continue };
        let same = |l: &gradus::device::TimedLaunch| row["kernels"][&l.kernel] == hash(&l.kernel);
        if !its.launches.iter().all(same) {
            continue;
        }
        let p = its.predict(&model(row["gpu"].as_str().unwrap())).unwrap();
        let (now, then) = (p.us, row["predicted_us"].as_f64().unwrap());
        assert!((now / then - 1.0).abs() < 0.02, "{row}: now {now} us, write the table again");
        compared += 1;
    }
    assert!(compared >= 3, "{compared} rows whose kernels have not changed");
}

/// The verdict of the table is that of its rows, and at least what it was on 2026-11-30.
#[test]
fn the_table_tells_how_good_it_is() {
    let table = read("predicted.json");
    for (half, fitted) in [("judged", false), ("fitted", true)] {
        let its = table["rows"].as_array().unwrap().iter().filter(|r| r["fitted"] == fitted);
        let ratios: Vec<f64> = its.map(|r| r["ratio"].as_f64().unwrap()).collect();
        let right = ratios.iter().filter(|r| r.ln().abs() <= RIGHT.ln()).count();
        assert_eq!(table[half]["rows"], ratios.len());
        assert_eq!(table[half]["within_1.3"], right);
    }
}
