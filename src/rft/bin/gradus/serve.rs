//! `gradus serve`: a run or a model over HTTP.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use gradus::Result;
use gradus_rft::serve::{ServeOptions, serve};
use gradus_rft::train::Asking;

use super::{Heat, ModelArgs, Source, asked, print};

#[derive(clap::Args)]
pub(super) struct ServeArgs {
    /// Run folder.
    #[arg(long, default_value = "runs/latest", conflicts_with = "model")]
    run: PathBuf,
    /// Hugging Face folder: config.json, safetensors, tokenizer.json.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// PEFT adapter that the model wears; others are loaded by requests.
    #[arg(long, value_name = "DIR", requires = "model")]
    adapter: Option<PathBuf>,
    /// Sets one key, for example `quantize.type=nf4`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "model")]
    set: Vec<String>,
    /// Address. There is no authentication: one that other machines reach is for networks that are trusted.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port; 0 for one that is free.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// What requests call the model; the name of its folder without it.
    #[arg(long)]
    name: Option<String>,
    /// Tokens of the longest prompt with its answer; 4096, or what the model has, without it.
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// Answers that are decoded together; the cache has room for all of them at their longest.
    #[arg(long, default_value_t = 16)]
    slots: usize,
    /// Prompts that may wait for slots; more are refused with 429.
    #[arg(long, default_value_t = 64)]
    queue: usize,
    /// Bytes of a request's body; longer ones are refused with 413.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20)]
    max_body: usize,
    /// Seconds for the head of a request, and for its body; 408 after it.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    read_time: u64,
    /// Seconds for an answer, waiting included; 504 after it.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    timeout: u64,
    /// Load adapters from folders of this machine for clients of other machines too.
    #[arg(long)]
    allow_adapters: bool,
    #[command(flatten)]
    heat: Heat,
}

pub(super) fn run(args: &ServeArgs) -> Result<()> {
    let model = ModelArgs {
        model: args.model.clone(),
        adapter: args.adapter.clone(),
        set: args.set.clone(),
        ..ModelArgs::default()
    };
    let source = Source { run: args.run.clone(), model };
    let (what, temperature) = asked(&source, &args.heat, Asking::Serve)?;
    let options = ServeOptions {
        host: args.host,
        port: args.port,
        name: args.name.clone(),
        context: args.context,
        slots: args.slots,
        queue: args.queue,
        max_body: args.max_body,
        read_time: Duration::from_secs(args.read_time),
        timeout: Duration::from_secs(args.timeout),
        temperature,
        allow_adapters: args.allow_adapters,
    };
    serve(&what, &options, print)
}
