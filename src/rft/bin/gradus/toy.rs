//! `gradus toy`: a toy task as JSON lines on standard output.

use std::io::{BufWriter, ErrorKind, Write};

use gradus::{Error, Result};
use gradus_rft::toy::{ToyOptions, help, toy};

#[derive(clap::Args)]
pub(super) struct ToyArgs {
    /// The toy; without one, all of them with their rewards.
    name: Option<String>,
    /// Number of rows.
    #[arg(long, default_value_t = ToyOptions::default().rows)]
    rows: u32,
    /// Names the data set.
    #[arg(long, default_value_t = ToyOptions::default().seed)]
    seed: u64,
    /// Share of demonstrations that are wrong answers of the right form, 0 to 1; the toy's own without
    /// one.
    #[arg(long, allow_negative_numbers = true)]
    noise: Option<f64>,
}

pub(super) fn write(args: &ToyArgs) -> Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let written = match &args.name {
        None => out.write_all(help().as_bytes()),
        Some(name) => {
            let options = ToyOptions { rows: args.rows, seed: args.seed, noise: args.noise };
            let mut rows = toy(name)?.rows(options)?;
            rows.try_for_each(|row| writeln!(out, "{}", serde_json::Value::Object(row)))
        }
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::io("standard output")(error))
        }
        _ => Ok(()),
    }
}
