//! `gradus report` and `gradus compare`.

use std::path::PathBuf;

use gradus::Result;
use gradus::escape::escaped;
use gradus_rft::report;
use gradus_rft::train::progress::line;

#[derive(clap::Args)]
pub(super) struct ReportArgs {
    /// Run folders, up to six, which are drawn over one another.
    #[arg(default_value = "runs/latest")]
    runs: Vec<PathBuf>,
    /// The file; without it report.html in the first run's folder.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(super) struct CompareArgs {
    /// Run folders, two to six.
    #[arg(required = true, num_args = 2..)]
    runs: Vec<PathBuf>,
}

pub(super) fn write(args: &ReportArgs) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| args.runs[0].join("report.html"));
    report::report(&args.runs, &out)?;
    line(&format!("  {}", out.display()));
    Ok(())
}

pub(super) fn compare(args: &CompareArgs, print: fn(&str) -> Result<()>) -> Result<()> {
    print(&escaped(&report::compare(&args.runs)?).to_string())
}
