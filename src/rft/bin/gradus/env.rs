//! `gradus env`: an environment before it is trained in.

use gradus::escape::escaped;
use gradus::{Error, Result};
use gradus_rft::train::RunConfig;
use gradus_rft::train::env::check;

#[derive(clap::Subcommand)]
pub(super) enum EnvCommand {
    /// Play some rows with their demonstrations and random text, together and alone, and say what is
    /// wrong.
    Check {
        /// As env.kind names it, for example 'cmd:python3 my_env.py'.
        kind: String,
        /// Rows that it plays.
        #[arg(long)]
        data: String,
        /// How many of them.
        #[arg(long, default_value_t = 4)]
        rows: usize,
        /// A key of the configuration, such as env.max_turns or reward.timeout.
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
}

pub(super) fn run(command: EnvCommand, print: fn(&str) -> Result<()>) -> Result<()> {
    let EnvCommand::Check { kind, data, rows, set } = command;
    let mut config = RunConfig::default();
    for setting in &set {
        config.apply_set(setting)?;
        let key = setting.split('=').next().unwrap_or_default().trim();
        if !["env.", "reward."].iter().any(|section| key.starts_with(section)) && key != "seed" {
            let reason = "`gradus env check` reads env.*, seed and what reward.* says of programs";
            return Err(Error::config(key, reason));
        }
    }
    (config.env.kind, config.data.path) = (kind, data);
    config.validate()?;
    let checked = check(&config, rows)?;
    print(&escaped(&checked.transcript).to_string())?;
    if checked.faults.is_empty() {
        return print("nothing is wrong with what it said\n");
    }
    let reason = format!("the environment breaks its rules:\n  {}", checked.faults.join("\n  "));
    Err(Error::Training { reason })
}
