//! The table: rows of (name, time, bytes, flops), and the same as JSON.

use std::path::Path;

use gradus::{Error, Result};
use serde_json::{Value, json};

use super::case::{Case, Work};
use super::floors::Floors;
use super::timing::{OnGpu, Times};

/// Column names.
pub const HEAD: &str = "  op              shape                           dtype         ms  \
                        [     p10,      p90]       GB/s    GFLOP/s   % of floor";

/// One measurement. Rows that are not of an op, such as a step's parts, may be pushed as well.
pub struct Row {
    /// `cpu` or `cuda`: whose floors hold.
    pub device: &'static str,
    /// What was measured.
    pub op: String,
    /// Extents and settings.
    pub shape: String,
    /// Of the operands.
    pub dtype: &'static str,
    /// Milliseconds.
    pub times: Times,
    /// Least bytes read and written.
    pub bytes: u64,
    /// Operations of floating point.
    pub flops: u64,
    /// Which units do them.
    pub work: Work,
    /// How it was measured, on CUDA.
    pub on_gpu: Option<OnGpu>,
}

impl Row {
    /// A case's measurement.
    pub fn of(device: &'static str, case: &Case, times: Times, on_gpu: Option<OnGpu>) -> Row {
        Row {
            device,
            op: case.op.to_string(),
            shape: case.shape.clone(),
            dtype: case.dtype.name(),
            times,
            bytes: case.bytes,
            flops: case.flops,
            work: case.work,
            on_gpu,
        }
    }

    fn gb_s(&self) -> f64 {
        self.bytes as f64 / self.times.median / 1e6
    }

    fn gflop_s(&self) -> f64 {
        self.flops as f64 / self.times.median / 1e6
    }
}

/// All rows of a run.
pub struct Table {
    /// Time spent on each row.
    pub seconds: f64,
    /// Of each device.
    pub floors: Vec<Floors>,
    /// Why CUDA is not in it.
    pub left_out: Option<String>,
    /// Names of rows that the device has no memory for, and what it said.
    pub rows_left_out: Vec<(String, String)>,
    /// What was predicted and not measured.
    pub predicted: Vec<Value>,
    rows: Vec<Row>,
}

impl Table {
    /// Without rows.
    pub fn new(seconds: f64) -> Table {
        Table {
            seconds,
            floors: Vec::new(),
            left_out: None,
            rows_left_out: Vec::new(),
            predicted: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Keeps a row and returns its line.
    pub fn push(&mut self, row: Row) -> String {
        let line = self.line(&row);
        self.rows.push(row);
        line
    }

    fn floor(&self, row: &Row) -> Option<(f64, &'static str)> {
        let floors = self.floors.iter().find(|floors| floors.device == row.device)?;
        floors.floor(row.bytes, row.flops, row.work)
    }

    fn line(&self, row: &Row) -> String {
        let floor = self.floor(row).map_or("-".to_string(), |(ms, bound)| {
            format!("{:.0} % {bound}", 100.0 * ms / row.times.median)
        });
        let how = row.on_gpu.as_ref().map_or(String::new(), |how| {
            let graph = match &how.graph {
                Ok(times) => format!("{:.4} ms from a graph", times.median),
                Err(_) => "no graph".to_string(),
            };
            format!("   L2 {}, {graph}", if how.cold() { "cold" } else { "warm" })
        });
        format!(
            "  {:<15} {:<31} {:<5} {:>10.4}  [{:>8.4}, {:>8.4}] {:>10.1} {:>10.1}   {floor}{how}\n",
            row.op,
            row.shape,
            row.dtype,
            row.times.median,
            row.times.p10,
            row.times.p90,
            row.gb_s(),
            row.gflop_s(),
        )
    }

    fn json(&self) -> Value {
        let floors = self.floors.iter().map(|f| {
            json!({
                "device": f.device, "name": f.name, "source": f.source, "bytes_per_s": f.bytes,
                "f32_flops_per_s": f.f32_flops, "f64_flops_per_s": f.f64_flops,
                "product_flops_per_s": f.product_flops,
            })
        });
        let rows = self.rows.iter().map(|row| {
            let (floor, how) = (self.floor(row), row.on_gpu.as_ref());
            let graph = how.and_then(|how| how.graph.as_ref().ok());
            json!({
                "device": row.device, "op": row.op, "shape": row.shape, "dtype": row.dtype,
                "ms": row.times.median, "ms_p10": row.times.p10, "ms_p90": row.times.p90,
                "samples": row.times.samples, "bytes": row.bytes, "flops": row.flops,
                "gb_per_s": row.gb_s(), "gflop_per_s": row.gflop_s(),
                "floor_ms": floor.map(|f| f.0), "bound": floor.map(|f| f.1),
                "percent_of_floor": floor.map(|f| 100.0 * f.0 / row.times.median),
                "l2_cold": how.map(OnGpu::cold), "operand_sets": how.map(|how| how.sets),
                "graph_ms": graph.map(|t| t.median), "graph_ms_p10": graph.map(|t| t.p10),
                "graph_ms_p90": graph.map(|t| t.p90), "graph_samples": graph.map(|t| t.samples),
                "graph_left_out": how.and_then(|how| how.graph.as_ref().err()),
            })
        });
        let left_out = self.rows_left_out.iter();
        let left_out = left_out.map(|(name, reason)| json!({ "name": name, "reason": reason }));
        json!({
            "gradus": env!("CARGO_PKG_VERSION"),
            "optimized": !cfg!(debug_assertions),
            "threads": rayon::current_num_threads(),
            "seconds": self.seconds,
            "floors": floors.collect::<Vec<_>>(),
            "cuda_left_out": self.left_out,
            "rows_left_out": left_out.collect::<Vec<_>>(),
            "predicted": self.predicted,
            "rows": rows.collect::<Vec<_>>(),
        })
    }

    /// Writes the table as JSON.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = format!("{:#}\n", self.json());
        std::fs::write(path, text).map_err(Error::io(path))
    }
}
