//! The command line: train, sample, eval, quantize, merge, lerp, diff, report, compare, config, recipes, env,
//! serve, toy, doctor, bench.
//!
//! Exit codes: 0 done; 1 the run failed; 2 wrong usage or configuration; 3 a file could not be read
//! or written; 129, 130 and 143 stopped by SIGHUP, SIGINT and SIGTERM, with a checkpoint.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gradus::escape::escaped;
use gradus::{Error, Result};
use gradus_rft::bench::{Only, Predicted, Settings, Shapes, bench, names};
use gradus_rft::io::interrupt;
use gradus_rft::recipes;
use gradus_rft::train::eval::{AtK, Evaluation, Vote};
use gradus_rft::train::progress::line;
use gradus_rft::train::{
    Ask, Asking, ModelDefaults, Resume, RunConfig, RunOrModel, chat, evaluate, explain,
    model_defaults, sample, train,
};

mod convert;
mod doctor;
#[cfg(feature = "hf")]
mod env;
mod report;
#[cfg(feature = "serve")]
mod serve;
mod toy;

/// Reinforcement fine-tuning of quantized language models.
#[derive(Parser)]
#[command(name = "gradus", version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 the run failed, 2 wrong usage or configuration, \
                          3 a file could not be read or written, 129/130/143 stopped by SIGHUP, \
                          SIGINT or SIGTERM (with a checkpoint; a second signal ends at once)";

#[derive(Subcommand)]
enum Command {
    /// Warm up, quantize, attach adapters and run GRPO; without options, the built-in demo.
    Train(TrainArgs),
    /// Sample completions from a run, or from a model.
    Sample {
        #[command(flatten)]
        source: Source,
        /// Prompt; without one, held-out prompts.
        #[arg(long)]
        prompt: Option<String>,
        /// Talk: one line in, one answer out, through the model's chat template.
        #[arg(long, conflicts_with = "prompt")]
        chat: bool,
        /// Completions per prompt.
        #[arg(short = 'n', long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
        samples: u16,
        #[command(flatten)]
        heat: Heat,
    },
    /// Score held-out prompts with a run, or with a model.
    Eval {
        #[command(flatten)]
        source: Source,
        /// Take so many samples of each prompt, and score the majority's answer and the best one too.
        #[arg(long, value_name = "SAMPLES", value_parser = clap::value_parser!(u16).range(2..=4096))]
        vote: Option<u16>,
        #[command(flatten)]
        heat: Heat,
    },
    /// Write a model with 4-bit weights, as bitsandbytes lays them out.
    Quantize(convert::QuantizeArgs),
    /// Write a model with an adapter added to its weights.
    Merge(convert::MergeArgs),
    /// Write a model between two of the same shape.
    Lerp(convert::LerpArgs),
    /// Count the weights in which two models of the same shape differ.
    Diff(convert::DiffArgs),
    /// Write a page about a run: curves, samples, settings. It loads nothing and can be sent around.
    Report(report::ReportArgs),
    /// Say what runs came to, and in what they differ.
    Compare(report::CompareArgs),
    /// Show the configuration.
    Config {
        /// TOML file; the defaults without one.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Recipe that is laid under it.
        #[arg(long, value_name = "NAME")]
        recipe: Option<String>,
        #[command(flatten)]
        model: ModelArgs,
        /// Every key with its value, meaning and source.
        #[arg(long)]
        explain: bool,
        /// Every reward that `reward.functions` can name.
        #[arg(long)]
        rewards: bool,
    },
    /// List the recipes, published methods by name, or print the file of one.
    Recipes {
        /// Which one.
        name: Option<String>,
    },
    /// Try an environment of several turns.
    #[cfg(feature = "hf")]
    Env {
        #[command(subcommand)]
        command: env::EnvCommand,
    },
    /// Serve a run or a model over HTTP, as OpenAI's clients ask for it.
    #[cfg(feature = "serve")]
    Serve(serve::ServeArgs),
    /// Write a toy task as JSON lines; without a name, list them.
    Toy(toy::ToyArgs),
    /// What this machine has, what will be used, and why.
    Doctor,
    /// Time, traffic and distance from the floor of each op, on the CPU and on CUDA.
    Bench {
        /// Only rows whose `op shape dtype` contains one of these texts, separated by `|`, or is the
        /// text after a `=`.
        #[arg(long, value_name = "TEXT|TEXT")]
        ops: Option<String>,
        /// Which rows there are.
        #[arg(long, value_enum, default_value_t)]
        shapes: Shapes,
        /// Only this device.
        #[arg(long, value_enum)]
        device: Option<Only>,
        /// Print the names of the rows and measure nothing.
        #[arg(long)]
        list: bool,
        /// Also write the rows to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Time to spend on each row.
        #[arg(long, default_value_t = 0.3)]
        seconds: f64,
        /// Whose times `--device emu` predicts.
        #[arg(long, value_enum, default_value_t)]
        gpu: Predicted,
    },
}

/// A model from disk with what it is asked.
#[derive(clap::Args, Clone, Default)]
struct ModelArgs {
    /// Hugging Face folder: config.json, safetensors, tokenizer.json.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// PEFT adapter to go on from.
    #[arg(long, value_name = "DIR", requires = "model")]
    adapter: Option<PathBuf>,
    /// Prompts: a .jsonl, .json or .parquet file, or a folder of them.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Reward, may be repeated and is added up: a name, WEIGHT*NAME, cmd:COMMAND or a URL.
    #[arg(long, value_name = "REWARD", allow_hyphen_values = true)]
    reward: Vec<String>,
    /// What answers the policy between its turns, as env.kind names it: tool, grid, ask, zoom, rounds or
    /// cmd:COMMAND.
    #[arg(long, value_name = "KIND")]
    env: Option<String>,
    /// Sets one key, for example `rl.learning_rate=5e-4`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// A run or a model.
#[derive(clap::Args)]
struct Source {
    /// Run folder.
    #[arg(long, default_value = "runs/latest", conflicts_with = "model")]
    run: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

/// How tokens are chosen.
#[derive(clap::Args)]
struct Heat {
    /// Sampling temperature, 0 for the most likely token at every place. By default rl.temperature of
    /// a run, the generation_config.json of a model, and eval.temperature for an evaluation.
    #[arg(long, allow_negative_numbers = true)]
    temperature: Option<f64>,
}

#[derive(clap::Args, Default)]
struct TrainArgs {
    /// TOML file; every key is optional.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Recipe that is laid under all other settings; `gradus recipes` lists them.
    #[arg(long, value_name = "NAME")]
    recipe: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// Seed of the run, below 2^63.
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: Option<u64>,
    /// Folder for run folders.
    #[arg(long)]
    out: Option<PathBuf>,
    /// `auto` (the latest run, if it has this configuration) or a run folder.
    #[arg(long)]
    resume: Option<String>,
}

fn main() -> ExitCode {
    interrupt::large_files_are_errors();
    let command = Cli::parse().command;
    // The others call their arguments by the names of keys.
    let has_keys = match command {
        Command::Train(_) | Command::Config { .. } => true,
        Command::Sample { .. } | Command::Eval { .. } => true,
        #[cfg(feature = "hf")]
        Command::Env { .. } => true,
        #[cfg(feature = "serve")]
        Command::Serve(_) => true,
        Command::Quantize(_) | Command::Merge(_) | Command::Recipes { .. } => false,
        Command::Lerp(_) | Command::Diff(_) => false,
        Command::Report(_) | Command::Compare(_) => false,
        Command::Toy(_) | Command::Doctor | Command::Bench { .. } => false,
    };
    let error = match run(command) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "error: {error}");
    if let Some(hint) = hint(&error, has_keys) {
        let _ = writeln!(std::io::stderr(), "hint: {hint}");
    }
    ExitCode::from(exit_code(&error))
}

fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Config { .. } | Error::InvalidArgument { .. } => 2,
        Error::Io { .. } | Error::Format { .. } => 3,
        Error::Interrupted { signal } => (128 + signal) as u8,
        _ => 1,
    }
}

fn hint(error: &Error, has_keys: bool) -> Option<&'static str> {
    match error {
        Error::Config { key, .. } => match key.as_str() {
            "recipe" => Some("gradus recipes lists the recipes"),
            "toy" | "rows" | "noise" => Some("gradus toy lists the toys with their rewards"),
            "reward" | "reward.functions" => Some("gradus config --rewards lists the rewards"),
            flag if flag.starts_with("--") => None,
            "temperature" => None,
            _ => has_keys.then_some("gradus config --explain lists every key"),
        },
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Some("free some space; a run that has a checkpoint goes on from it with --resume auto")
        }
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::FileTooLarge => {
            Some("the limit on the size of files (ulimit -f) is too low for this file")
        }
        _ => None,
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Train(args) => {
            let resume = match args.resume.as_deref() {
                None => Resume::No,
                Some("auto") => Resume::Auto,
                Some(folder) => Resume::From(folder.into()),
            };
            let asked = configuration(&args)?;
            asked.config.check_plan(&asked.strict)?;
            train(asked.config, &resume).map(|_| ())
        }
        Command::Sample { source, prompt, chat: talks, samples, heat } => {
            let (what, temperature) = asked(&source, &heat, Asking::Sample)?;
            match talks {
                true => chat(&what, temperature, print),
                false => sampled(&what, &Ask { prompt, samples: samples.into(), temperature }),
            }
        }
        Command::Eval { source, vote, heat } => {
            let defaults = |folder: &Path| {
                // A file that is given to an evaluation is evaluated as a whole.
                let mut defaults = model_defaults(folder)?.config;
                (defaults.data.heldout_share, defaults.eval.max_prompts) = (1.0, 1 << 20);
                Ok(defaults)
            };
            let what = opened(&source, Asking::Eval, defaults)?;
            let result = evaluate(&what, heat.temperature, vote.map(usize::from))?;
            print(&format!("{}\n", escaped(&scores(&result)?)))
        }
        Command::Quantize(args) => convert::quantize(&args),
        Command::Merge(args) => convert::merge(&args),
        Command::Lerp(args) => convert::lerp(&args),
        Command::Diff(args) => print(&escaped(&convert::diff(&args)?).to_string()),
        Command::Report(args) => report::write(&args),
        Command::Compare(args) => report::compare(&args, print),
        Command::Config { rewards: true, .. } => print(&gradus_rft::reward::spec::help()),
        Command::Config { config, recipe, model, explain, .. } => {
            let args = TrainArgs { config, recipe, model, ..TrainArgs::default() };
            let Asked { config, set, strict } = configuration(&args)?;
            print(&if explain { explain::explain(&config, &set)? } else { config.to_toml() })?;
            // What a run would refuse is shown all the same: it says which keys there are.
            config.check_plan(&strict)
        }
        Command::Recipes { name: None } => print(&recipes::list()?),
        Command::Recipes { name: Some(name) } => print(recipes::find(&name)?.text),
        #[cfg(feature = "hf")]
        Command::Env { command } => env::run(command, print),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(&args),
        Command::Toy(args) => toy::write(&args),
        Command::Doctor => print(&doctor::report()),
        Command::Bench { ops, shapes, device, list, json, seconds, gpu } => {
            measured(&Settings { ops, shapes, device, seconds, gpu }, list, json.as_deref())
        }
    }
}

/// Runs `sample`.
fn sampled(what: &RunOrModel, ask: &Ask) -> Result<()> {
    let mut text = String::new();
    for line in sample(what, ask)? {
        let verdict = line.verdict().map_or(String::new(), |v| v + "   ");
        text += &line.show(&format!("{verdict}log-prob {:.3}", line.logp));
    }
    print(&escaped(&text).to_string())
}

/// Runs `bench`: names of rows, or the rows, also in a file.
fn measured(settings: &Settings, list: bool, json: Option<&Path>) -> Result<()> {
    if list {
        return names(settings)?.iter().try_for_each(|name| print(&format!("{name}\n")));
    }
    let table = bench(settings, print)?;
    json.map_or(Ok(()), |path| table.write(path))
}

/// An evaluation in a line.
fn scores(result: &Evaluation) -> Result<String> {
    let (score, count, error) = (result.scored()?, result.completions, result.error);
    let mut text = format!("accuracy {score:.4} ± {error:.4} over {count} completions");
    for (count, what) in [(result.abstained, "no opinion"), (result.failed, "reward failed")] {
        if count > 0 {
            text += &format!(", {what} {count}");
        }
    }
    if let Some(why) = &result.failure {
        text += &format!(" (the first: {why})");
    }
    if let Some(Vote { samples, majority, best }) = result.vote {
        text +=
            &format!("\nmajority vote {majority:.4}, best {best:.4} of {samples} samples a prompt");
        text += &format!("\n{}", AtK::line(&result.at));
    }
    for (name, its) in &result.suites {
        text += &format!("\n{name}: {}", scores(its)?.replace('\n', &format!("\n{name}: ")));
    }
    Ok(text)
}

/// The run or the model that `asking` asks; `defaults` are those of a model's folder.
fn opened(
    source: &Source,
    asking: Asking,
    defaults: impl FnOnce(&Path) -> Result<RunConfig>,
) -> Result<RunOrModel> {
    match &source.model.model {
        Some(folder) => {
            let mut config = defaults(folder)?;
            let set = apply(&source.model, &source.model.set, &mut config)?;
            config.refuse_unread_by(asking, &set)?;
            Ok(RunOrModel::Model(config))
        }
        None => {
            let ModelArgs { model: _, adapter: _, data, reward, env, set } = &source.model;
            let given = [
                ("--data", data.is_some()),
                ("--reward", !reward.is_empty()),
                ("--env", env.is_some()),
                ("--set", !set.is_empty()),
            ];
            if let Some((name, _)) = given.into_iter().find(|given| given.1) {
                let reason = "goes with --model; a run has its own data, reward and settings";
                return Err(Error::config(name, reason));
            }
            Ok(RunOrModel::Run(source.run.clone()))
        }
    }
}

/// What is sampled from, and the temperature if it is another than the configuration's.
fn asked(source: &Source, heat: &Heat, asking: Asking) -> Result<(RunOrModel, Option<f64>)> {
    let mut greedy = None;
    let what = opened(source, asking, |folder| {
        let ModelDefaults { config, temperature, ignored } = model_defaults(folder)?;
        greedy = temperature;
        for setting in ignored {
            line(&format!("  generation_config.json: {setting} is not applied"));
        }
        Ok(config)
    })?;
    let heats = |set: &String| set.trim_start().starts_with("rl.temperature");
    let set = source.model.set.iter().any(heats);
    Ok((what, heat.temperature.or(greedy.filter(|_| !set))))
}

/// The configuration of a run.
struct Asked {
    config: RunConfig,
    /// The keys that the user set.
    set: BTreeSet<String>,
    /// Those that have to be read: the command line's, and a file's where they change something.
    strict: BTreeSet<String>,
}

fn configuration(args: &TrainArgs) -> Result<Asked> {
    let names_model = |set: &String| set.trim_start().starts_with("model.path");
    let defaults = match args.model.model.is_some() || args.model.set.iter().any(names_model) {
        true => RunConfig::pretrained(),
        false => RunConfig::default(),
    };
    // A recipe lies under all other settings, wherever it is named.
    let of_recipe = |set: &String| {
        let (key, name) = set.split_once('=')?;
        (key.trim() == "recipe").then(|| name.trim().trim_matches('"').to_string())
    };
    let named = args.model.set.iter().filter_map(of_recipe).next_back();
    let recipe = match (args.recipe.clone(), named) {
        (Some(a), Some(b)) if a != b => {
            return Err(Error::config("recipe", format!("--recipe is `{a}` and --set is `{b}`")));
        }
        (a, b) => a.or(b),
    };
    let file = args.config.as_deref();
    // What a file of settings gets wrong is a wrong setting, not a file that cannot be read.
    let mut config =
        RunConfig::layered(defaults.clone(), recipe.as_deref(), file).map_err(|error| {
            match (error, file) {
                (Error::Format { reason, .. }, Some(path)) => {
                    Error::config(path.display().to_string(), reason)
                }
                (error, _) => error,
            }
        })?;
    let by_file = file.map_or_else(|| Ok(BTreeSet::new()), RunConfig::keys_of)?;
    let below = if config.model.path.is_empty() { defaults } else { RunConfig::pretrained() };
    let mut strict = config.changed_by(&by_file, below)?;
    let sets: Vec<String> =
        args.model.set.iter().filter(|set| of_recipe(set).is_none()).cloned().collect();
    strict.extend(apply(&args.model, &sets, &mut config)?);
    let named = recipe.map(|_| "recipe".to_string());
    let set = by_file.into_iter().chain(strict.iter().cloned()).chain(named).collect();
    if let Some(seed) = args.seed {
        config.seed = seed;
    }
    if let Some(out) = &args.out {
        config.out = out.to_string_lossy().into_owned();
    }
    Ok(Asked { config, set, strict })
}

/// Lays the command line over a configuration; returns the keys that it sets.
fn apply(args: &ModelArgs, sets: &[String], config: &mut RunConfig) -> Result<BTreeSet<String>> {
    let mut keys = BTreeSet::new();
    for (name, value, key) in [
        ("model.path", &args.model, &mut config.model.path),
        ("model.adapter", &args.adapter, &mut config.model.adapter),
        ("data.path", &args.data, &mut config.data.path),
    ] {
        if let Some(value) = value {
            *key = value.to_string_lossy().into_owned();
            keys.insert(name.to_string());
        }
    }
    if let Some(kind) = &args.env {
        config.env.kind = kind.clone();
        keys.insert("env.kind".into());
    }
    if !args.reward.is_empty() {
        config.reward.functions = args.reward.clone();
        keys.insert("reward.functions".into());
    }
    for assignment in sets {
        config.apply_set(assignment)?;
        keys.extend(assignment.split_once('=').map(|(key, _)| key.trim().to_string()));
    }
    Ok(keys)
}

/// Standard output; a reader that has gone away is not an error.
fn print(text: &str) -> Result<()> {
    match std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("standard output")(e))
        }
        _ => Ok(()),
    }
}
