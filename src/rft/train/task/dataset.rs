//! [`DataTask`]: prompts from a file, scored by configured rewards.

mod heldout;

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use crate::data::{self, Dataset, Example, PromptFormat, PromptSource, Row};
use crate::io::interrupt;
use crate::reward::spec::gold_field;
use crate::reward::{Reward, excerpt};
use crate::text::{ChatOptions, ChatTemplate, Codec, Exchange};
use crate::train::config::{ChatSetting, DataConfig, DataFormat, HistoryKey, RunConfig};
use crate::train::env::{Environment, Frame, ROUNDS, Shown, built_in};
use crate::train::phase::scored::crosses;
use crate::train::task::mixture::Mixture;
use crate::train::task::{AnswerBounds, Demo, Prompt, ScoredAnswer, Task, last_content};
use gradus::error::{Error, Result};
use gradus::rng::{Purpose, Rng};

/// Tokens of an answer where nothing says how long one is.
const ANSWER: usize = 256;

/// A data set with the vocabulary of a model. Prompts come in an order that each epoch shuffles anew.
pub(crate) struct DataTask {
    codec: Arc<dyn Codec>,
    writer: PromptWriter,
    reward: Arc<dyn Reward>,
    /// What answers between turns and reads rows too, if it is built in.
    environment: Option<Arc<dyn Environment>>,
    /// How what is said between turns is written, where anything answers.
    frame: Option<Frame>,
    /// Texts that end an answer.
    stop: Vec<String>,
    seed: u64,
    train: Vec<DataPrompt>,
    heldout: Vec<Prompt>,
    /// Those of `data.suites`.
    suites: Vec<(String, Vec<Prompt>)>,
    /// Longest prompt in tokens.
    longest: usize,
    /// Longest answer with its end, in tokens, unless a run says how long one may be.
    answer: usize,
    /// Where the right answers are, and the fields in which rewards look for them.
    golds: Golds,
    /// How often each training row comes in an epoch; none where each comes once.
    mixture: Option<Mixture>,
    /// The order of the epoch that was asked for last.
    order: Mutex<(u64, Vec<u32>)>,
}

/// A prompt, and what would answer it.
pub(super) struct DataPrompt {
    pub prompt: Prompt,
    demo: Option<String>,
    then: Vec<Exchange>,
}

/// How a conversation becomes a prompt.
pub(crate) struct PromptWriter {
    template: Option<ChatTemplate>,
    format: PromptFormat,
}

impl PromptWriter {
    /// Through the chat template of the model's folder, if there is one and the configuration wants
    /// it to.
    pub fn new(config: &DataConfig, folder: Option<&Path>) -> Result<PromptWriter> {
        let template = folder.map(ChatTemplate::load).transpose()?.flatten();
        let template = match (config.chat, template) {
            (ChatSetting::Off, _) => None,
            (ChatSetting::On, None) => {
                return Err(Error::config("data.chat", "`on`, but the model has no chat template"));
            }
            (ChatSetting::On | ChatSetting::Auto, template) => template,
        };
        let format = PromptFormat {
            source: source(config),
            system: (!config.system.is_empty()).then(|| config.system.clone()),
            chat: chat_options(),
        };
        Ok(PromptWriter { template, format })
    }

    /// How what is said to a policy between its turns is written.
    ///
    /// # Errors
    /// `Config` for a chat template that is not append-only.
    pub fn frame(&self, as_sampled: bool) -> Result<Frame> {
        match &self.template {
            None => Ok(Frame::plain()),
            Some(template) => Frame::of(template, &self.format.chat, as_sampled),
        }
    }

    /// The prompt of a conversation.
    pub fn converse(&self, messages: &[Value]) -> Result<Prompt> {
        match &self.template {
            None => Ok(Prompt::plain(last_content(messages))),
            Some(template) => {
                let text = template.render(messages, &self.format.chat)?;
                let question = Some(last_content(messages).to_string());
                Ok(Prompt { text, rendered: true, question, fields: Arc::default() })
            }
        }
    }
}

/// Templates that print a date print this one, as a run has to have the same prompts tomorrow. It is
/// the one that Llama 3's template falls back to.
const DATE: Duration = Duration::from_secs(1_721_952_000); // 26 July 2024

/// How a run's prompts are rendered.
pub(crate) fn chat_options() -> ChatOptions {
    ChatOptions { now: Some(UNIX_EPOCH + DATE), ..ChatOptions::default() }
}

/// `data.template`, or else `data.format`.
fn source(config: &DataConfig) -> PromptSource {
    if !config.template.is_empty() {
        return PromptSource::Template(config.template.clone());
    }
    match config.format {
        DataFormat::Auto => PromptSource::Auto,
        DataFormat::Gsm8k => PromptSource::Gsm8k,
        DataFormat::Countdown => PromptSource::Countdown,
        DataFormat::Messages => PromptSource::Messages("messages".into()),
        DataFormat::Prompt => PromptSource::Prompt("prompt".into()),
    }
}

impl DataTask {
    /// Reads what `config.data` names.
    ///
    /// # Errors
    /// `Io`, `Format` for files and rows; `Config` if no prompt is left to train on.
    pub fn load(
        config: &RunConfig,
        codec: Arc<dyn Codec>,
        writer: PromptWriter,
        reward: Arc<dyn Reward>,
        notes: &mut Vec<String>,
    ) -> Result<DataTask> {
        let data = &config.data;
        let as_sampled = config.env.history == HistoryKey::AsSampled;
        // In rounds nothing is said to the policy.
        let answers = !config.env.kind.is_empty() && config.env.kind != ROUNDS;
        let frame = answers.then(|| writer.frame(as_sampled)).transpose()?;
        let mut task = DataTask {
            codec,
            writer,
            reward,
            environment: built_in(&config.env),
            frame,
            stop: config.rl.stop.clone(),
            seed: config.seed,
            train: Vec::new(),
            heldout: Vec::new(),
            suites: Vec::new(),
            longest: 0,
            answer: ANSWER,
            golds: Golds::new(config),
            mixture: None,
            order: Mutex::new((u64::MAX, Vec::new())),
        };
        let (mut examples, dropped) = task.read(data, &data.path, notes)?;
        let rows = examples.len();
        task.hold_out(data, &mut examples, notes)?;
        task.read_suites(data, notes)?;
        let asked = task.heldout.iter().chain(task.suites.iter().flat_map(|(_, prompts)| prompts));
        let held: HashSet<&str> = asked.map(|p| p.text.as_str()).collect();
        examples.retain(|example| !held.contains(example.prompt.text.as_str()));
        // With all of it held out the data is for an evaluation.
        if examples.is_empty() && data.heldout_share < 1.0 {
            return Err(nothing_left(data, rows, dropped, task.heldout.len()));
        }
        task.mixture = Mixture::of(data, &examples, notes)?;
        task.train = examples;
        if config.model.path.is_empty() {
            task.answer = task.longest_answer()?.unwrap_or(ANSWER);
        }
        if crosses(config)? {
            task.longest = task.longest.max(task.longest_context()?);
        }
        task.note(data, notes);
        Ok(task)
    }

    /// Most tokens of what an objective over contexts makes of a prompt.
    fn longest_context(&self) -> Result<usize> {
        let mut longest = 0;
        for DataPrompt { prompt, .. } in &self.train {
            for context in self.written(prompt)? {
                longest = longest.max(self.encode(&context)?.len());
            }
        }
        Ok(longest)
    }

    /// Says how the prompts are split.
    fn note(&self, data: &DataConfig, notes: &mut Vec<String>) {
        let held = self.heldout.len();
        notes.push(match self.train.len() {
            0 => format!("    data {held} prompts"),
            train => format!("    data {train} prompts to train on, {held} held out"),
        });
        if held == 0 && (data.heldout_share > 0.0 || !data.heldout.is_empty()) {
            let advice = "name a file in data.heldout or raise data.heldout_share";
            notes.push(format!(
                "    data no prompt is held out, so nothing will be scored: {advice}"
            ));
        }
    }

    /// The prompts of a file that are short enough, and the number of those that are not.
    fn read(
        &mut self,
        data: &DataConfig,
        path: &str,
        notes: &mut Vec<String>,
    ) -> Result<(Vec<DataPrompt>, usize)> {
        let writer = &self.writer;
        let rows = Dataset::load(path.as_ref())?;
        let (mut examples, mut dropped, mut unfit) = (Vec::new(), 0, Unfit::default());
        let all = rows.examples(&writer.format, writer.template.as_ref())?;
        for (row, example) in all.into_iter().enumerate() {
            interrupt::check()?;
            let Example { prompt: text, rendered, question, demo, then, mut fields } = example;
            self.golds
                .place(&mut fields)
                .map_err(|reason| Error::format(path, format!("row {row}: {reason}")))?;
            let prompt = Prompt { text, rendered, question, fields: Arc::new(fields) };
            let tokens = self.encode(&prompt)?.len();
            if tokens == 0 || tokens > data.max_prompt_tokens {
                dropped += 1;
                continue;
            }
            self.longest = self.longest.max(tokens);
            unfit.check(row, "reward", self.reward.check_row(&prompt.fields));
            if let Some(environment) = &self.environment {
                unfit.check(row, "env.kind", environment.check_row(&prompt.fields));
            }
            examples.push(DataPrompt { prompt, demo, then });
        }
        unfit.refuse(path)?;
        if dropped > 0 {
            let most = data.max_prompt_tokens;
            notes.push(format!(
                "    data {path}: {dropped} prompts that are empty or over {most} tokens left out"
            ));
        }
        Ok((examples, dropped))
    }

    /// Tokens of the longest answer to learn from, its end included; none where no row has one.
    fn longest_answer(&self) -> Result<Option<usize>> {
        let answers = self.train.iter().flat_map(|asked| {
            let then = asked.then.iter().map(|exchange| exchange.answer.as_str());
            asked.demo.as_deref().into_iter().chain(then)
        });
        let lengths = answers.map(|answer| Ok(self.codec.encode_rendered(answer)?.len() + 1));
        Ok(lengths.collect::<Result<Vec<usize>>>()?.into_iter().max())
    }

    /// The demonstration of an example.
    fn shown(&self, example: &DataPrompt) -> Result<Demo> {
        let DataPrompt { prompt, demo, then } = example;
        let answer = demo.clone().ok_or_else(|| unanswered(1, 1, example))?;
        if self.frame.is_none() && !then.is_empty() {
            let reason = "`completion` holds an episode, and nothing is said in one without an env.kind \
                          other than rounds";
            return Err(unfit_for("env.kind", prompt, reason));
        }
        Ok(Demo { prompt: prompt.clone(), answer, then: then.clone() })
    }

    /// Number `index` of an endless stream of examples.
    fn example(&self, index: u64) -> &DataPrompt {
        let n = self.train.len() as u64;
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if order.0 != index / n {
            let epoch = [(index / n) as u32, ((index / n) >> 32) as u32];
            let mut fresh: Vec<u32> = match &self.mixture {
                None => (0..n as u32).collect(),
                Some(mixture) => mixture.epoch(self.seed, epoch),
            };
            let words = [1, epoch[0], epoch[1]];
            Rng::new(self.seed, Purpose::Data, words).shuffle(&mut fresh);
            *order = (index / n, fresh);
        }
        &self.train[order.1[(index % n) as usize] as usize]
    }
}

impl DataTask {
    /// The contexts of a row, each written as a user's message; they share the row's fields.
    fn written(&self, prompt: &Prompt) -> Result<Vec<Prompt>> {
        let texts = data::contexts(&prompt.fields).map_err(|reason| unfit(prompt, &reason))?;
        let write = |text: String| {
            let message = serde_json::json!({ "role": "user", "content": text });
            let context = self.writer.converse(&[message])?;
            Ok(Prompt { fields: prompt.fields.clone(), ..context })
        };
        texts.into_iter().map(write).collect()
    }
}

/// The answers that the row of a prompt has.
fn scored(prompt: &Prompt) -> Result<Vec<ScoredAnswer>> {
    let answers = data::answers(&prompt.fields).map_err(|reason| unfit(prompt, &reason))?;
    Ok(answers.into_iter().map(|(text, score)| ScoredAnswer { text, score }).collect())
}

fn unfit(prompt: &Prompt, reason: &str) -> Error {
    unfit_for("data.path", prompt, reason)
}

fn unfit_for(key: &str, prompt: &Prompt, reason: &str) -> Error {
    let shown: String = prompt.text.chars().take(60).collect();
    Error::config(key, format!("the row of the prompt `{}`: {reason}", shown.escape_debug()))
}

impl Task for DataTask {
    fn codec(&self) -> &dyn Codec {
        self.codec.as_ref()
    }

    fn train_prompt(&self, index: u64) -> Prompt {
        self.example(index).prompt.clone()
    }

    fn demo(&self, index: u64) -> Result<Demo> {
        self.shown(self.example(index))
    }

    fn train_demo(&self, index: u64) -> Result<Demo> {
        self.demo(index)
    }

    fn demos(&self) -> Option<usize> {
        Some(self.train.len())
    }

    fn longest_demo(&self) -> Result<usize> {
        let mut missing = self.train.iter().filter(|asked| asked.demo.is_none());
        if let Some(first) = missing.next() {
            return Err(unanswered(1 + missing.count(), self.train.len(), first));
        }
        let mut longest = 0;
        for example in &self.train {
            let demo = self.shown(example)?;
            let pieces = Shown::of(&demo, self.codec(), self.frame.as_ref(), &self.stop)?;
            let behind: usize = pieces.iter().map(|piece| piece.ids().len()).sum();
            longest = longest.max(self.encode(&demo.prompt)?.len() + behind);
        }
        Ok(longest)
    }

    fn answers(&self, index: u64) -> Result<(Prompt, Vec<ScoredAnswer>)> {
        let prompt = &self.example(index).prompt;
        Ok((prompt.clone(), scored(prompt)?))
    }

    fn answer_bounds(&self) -> Result<AnswerBounds> {
        let mut bounds = AnswerBounds { longest: 0, fewest: usize::MAX, most: 0 };
        for DataPrompt { prompt, .. } in &self.train {
            let answers = scored(prompt)?;
            bounds.fewest = bounds.fewest.min(answers.len());
            bounds.most = bounds.most.max(answers.len());
            let mut longest = 0;
            for answer in &answers {
                longest = longest.max(self.codec.encode_rendered(&answer.text)?.len() + 1);
            }
            bounds.longest = bounds.longest.max(self.longest + longest);
        }
        Ok(bounds)
    }

    fn contexts(&self, index: u64) -> Result<Vec<Prompt>> {
        self.written(&self.example(index).prompt)
    }

    fn context_count(&self) -> Result<usize> {
        let mut count = None;
        for DataPrompt { prompt, .. } in &self.train {
            let n = self.written(prompt)?.len();
            if *count.get_or_insert(n) != n {
                let reason = format!("{n} `contexts`, and other rows have another number");
                return Err(unfit(prompt, &reason));
            }
        }
        Ok(count.unwrap_or(0))
    }

    fn heldout(&self, count: usize) -> Vec<Prompt> {
        self.heldout.iter().take(count).cloned().collect()
    }

    fn suites(&self, count: usize) -> Vec<(String, Vec<Prompt>)> {
        let first = |prompts: &[Prompt]| prompts.iter().take(count).cloned().collect();
        self.suites.iter().map(|(name, prompts)| (name.clone(), first(prompts))).collect()
    }

    fn converse(&self, messages: &[Value]) -> Result<Prompt> {
        self.writer.converse(messages)
    }

    fn verifier(&self) -> Arc<dyn Reward> {
        self.reward.clone()
    }

    /// The answer's length is a default: only `rl.max_new_tokens` bounds what a model writes.
    fn lengths(&self) -> (usize, usize) {
        (self.longest, self.answer)
    }
}

fn unanswered(missing: usize, of: usize, first: &DataPrompt) -> Error {
    let given = first.prompt.fields.get("completion").filter(|value| !value.is_null());
    let odd = given.map_or(String::new(), |value| {
        let got = excerpt(&value.to_string());
        format!("; the first of them has `completion` {got}, expected a text or messages, the assistant's in turn")
    });
    let reason = format!(
        "`sft`, `distill` and `rl.divert` need an answer in every row, as `completion` or as the last \
         message; {missing} of {of} training rows have none{odd}"
    );
    Error::config("phases", reason)
}

/// Rows that the reward cannot judge by, or that the environment cannot read.
#[derive(Default)]
struct Unfit {
    rows: usize,
    first: Option<(usize, String)>,
}

impl Unfit {
    fn check(&mut self, row: usize, who: &str, checked: std::result::Result<(), String>) {
        if let Err(reason) = checked {
            self.rows += 1;
            self.first.get_or_insert((row, format!("{who}: {reason}")));
        }
    }

    fn refuse(self, path: &str) -> Result<()> {
        let Some((row, reason)) = self.first else { return Ok(()) };
        let others = match self.rows - 1 {
            0 => String::new(),
            more => format!(" ({more} more rows cannot be judged either)"),
        };
        Err(Error::format(path, format!("row {row}: {reason}{others}")))
    }
}

/// Where rows keep the right answers.
struct Golds {
    /// A column or a path; empty for the rewards' own columns.
    path: String,
    /// The fields that the rewards compare with, each once.
    fields: Vec<&'static str>,
}

/// Fields that hold lists, and which of them `countdown` reads beside its target.
const LISTS: [&str; 3] = ["tool_calls", "boxes", "tests"];
const NUMBERS: [&str; 2] = ["nums", "numbers"];

impl Golds {
    fn new(config: &RunConfig) -> Golds {
        let reward = &config.reward;
        let fields: BTreeSet<_> = reward.functions.iter().filter_map(|p| gold_field(p)).collect();
        Golds { path: reward.answer.clone(), fields: fields.into_iter().collect() }
    }

    /// Copies the right answer to where the rewards look for it, and reads JSON texts where they
    /// expect lists. With rewards of several kinds those that have a column of their own keep it.
    fn place(&self, row: &mut Row) -> std::result::Result<(), String> {
        if !self.path.is_empty() {
            let found = data::at(row, &self.path).map(|value| value.into_owned());
            let (path, columns): (_, Vec<&String>) = (&self.path, row.keys().collect());
            let value = match found {
                Some(Value::Null) => {
                    return Err(format!("`reward.answer`: `{path}` is null, expected a value"));
                }
                Some(value) => value,
                None => {
                    let reason = format!("there is no `{path}` in columns {columns:?}");
                    return Err(format!("`reward.answer`: {reason}"));
                }
            };
            for &field in &self.fields {
                if self.fields.len() == 1 || !row.contains_key(field) {
                    row.insert(field.into(), value.clone());
                }
            }
            // Programs and services of one's own find it under the usual name.
            row.insert("answer".into(), value);
        }
        let lists = LISTS.into_iter().filter(|list| self.fields.contains(list));
        let numbers = NUMBERS.into_iter().filter(|_| self.fields.contains(&"target"));
        for field in lists.chain(numbers) {
            if let Some(value) = row.get_mut(field) {
                *value = data::parsed(value).into_owned();
            }
        }
        Ok(())
    }
}

/// Why a file of `rows` prompts, without the `dropped` ones, leaves none to train on.
fn nothing_left(data: &DataConfig, rows: usize, dropped: usize, held: usize) -> Error {
    let (most, share) = (data.max_prompt_tokens, data.heldout_share);
    let split = match data.heldout.is_empty() {
        true => format!("data.heldout_share = {share}"),
        false => "all stand in data.heldout, too".to_string(),
    };
    let reason = format!(
        "no prompt is left to train on: of {} rows {dropped} are empty or longer than \
         data.max_prompt_tokens = {most}, and of the others {held} different prompts are held out \
         ({split})",
        rows + dropped
    );
    Error::config("data.path", reason)
}
