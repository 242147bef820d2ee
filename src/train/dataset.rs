//! [`DataTask`]: prompts from a file, scored by configured rewards.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::data::{Asked, Format, ask, load_rows};
use crate::error::{Error, Result};
use crate::reward::Reward;
use crate::rng::{Purpose, Rng};
use crate::text::{ChatOptions, ChatTemplate, Codec};
use crate::train::config::{DataConfig, RunConfig};
use crate::train::task::{Demo, Prompt, Task};

/// A data set with the vocabulary of a model. Prompts come in an order that each epoch shuffles anew.
pub(crate) struct DataTask {
    codec: Arc<dyn Codec>,
    writer: PromptWriter,
    reward: Arc<dyn Reward>,
    seed: u64,
    train: Vec<Example>,
    heldout: Vec<Prompt>,
    /// Longest prompt in tokens.
    longest: usize,
    /// The order of the epoch that was asked for last.
    order: Mutex<(u64, Vec<u32>)>,
}

/// A prompt, and what would answer it.
struct Example {
    prompt: Prompt,
    demo: Option<String>,
}

/// How a conversation becomes a prompt.
pub(crate) struct PromptWriter {
    template: Option<ChatTemplate>,
}

impl PromptWriter {
    /// Through `template`, if the configuration wants it to.
    pub fn new(config: &DataConfig, template: Option<ChatTemplate>) -> Result<PromptWriter> {
        match (config.chat.as_str(), template) {
            ("off", _) => Ok(PromptWriter { template: None }),
            ("on", None) => {
                Err(Error::config("data.chat", "`on`, but the model has no chat template"))
            }
            (_, template) => Ok(PromptWriter { template }),
        }
    }

    fn prompt(&self, asked: Asked) -> Result<Example> {
        let fields = Arc::new(asked.fields);
        let text = match &self.template {
            Some(template) => render(template, &asked.messages)?,
            None => asked.plain,
        };
        let prompt = Prompt { text, rendered: self.template.is_some(), fields };
        Ok(Example { prompt, demo: asked.demo })
    }

    /// The prompt of a conversation.
    pub fn converse(&self, messages: &[Value]) -> Result<Prompt> {
        let last = messages.last().and_then(|m| m["content"].as_str()).unwrap_or_default();
        match &self.template {
            None => Ok(Prompt::plain(last)),
            Some(template) => {
                let text = render(template, messages)?;
                Ok(Prompt { text, rendered: true, fields: Arc::default() })
            }
        }
    }
}

fn render(template: &ChatTemplate, messages: &[Value]) -> Result<String> {
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    template.render(messages, &options).map_err(|e| {
        let got = Value::from(messages).to_string();
        Error::invalid("chat template", "messages", got, format!("what it takes: {e}"))
    })
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
        let mut task = DataTask {
            codec,
            writer,
            reward,
            seed: config.seed,
            train: Vec::new(),
            heldout: Vec::new(),
            longest: 0,
            order: Mutex::new((u64::MAX, Vec::new())),
        };
        let mut examples = task.read(data, &data.path, notes)?;
        task.heldout = if data.heldout.is_empty() {
            let share = data.heldout_share;
            let (held, train) = examples.into_iter().partition(|e| is_held(&e.prompt.text, share));
            examples = train;
            distinct(held)
        } else {
            distinct(task.read(data, &data.heldout, notes)?)
        };
        let held: HashSet<&str> = task.heldout.iter().map(|p| p.text.as_str()).collect();
        examples.retain(|example| !held.contains(example.prompt.text.as_str()));
        if examples.is_empty() {
            return Err(Error::config("data.path", "no prompt is left to train on"));
        }
        task.train = examples;
        let (train, held) = (task.train.len(), task.heldout.len());
        notes.push(format!("    data {train} prompts to train on, {held} held out"));
        Ok(task)
    }

    /// The prompts of a file that are short enough.
    fn read(
        &mut self,
        data: &DataConfig,
        path: &str,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Example>> {
        let format = Format::parse(&data.format)?;
        let (mut examples, mut dropped) = (Vec::new(), 0);
        for (i, row) in load_rows(path.as_ref())?.into_iter().enumerate() {
            let asked = ask(row, format, &data.system);
            let asked = asked.map_err(|e| Error::format(path, format!("row {}: {e}", i + 1)))?;
            let example = self.writer.prompt(asked)?;
            let tokens = self.encode(&example.prompt)?.len();
            if tokens == 0 || tokens > data.max_prompt_tokens {
                dropped += 1;
                continue;
            }
            self.longest = self.longest.max(tokens);
            examples.push(example);
        }
        if dropped > 0 {
            let most = data.max_prompt_tokens;
            notes.push(format!("    data {path}: {dropped} prompts over {most} tokens left out"));
        }
        Ok(examples)
    }

    /// Number `index` of an endless stream of examples.
    fn example(&self, index: u64) -> &Example {
        let n = self.train.len() as u64;
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if order.0 != index / n {
            let mut fresh: Vec<u32> = (0..n as u32).collect();
            let words = [1, (index / n) as u32, ((index / n) >> 32) as u32];
            Rng::new(self.seed, Purpose::Data, words).shuffle(&mut fresh);
            *order = (index / n, fresh);
        }
        &self.train[order.1[(index % n) as usize] as usize]
    }
}

impl Task for DataTask {
    fn codec(&self) -> &dyn Codec {
        self.codec.as_ref()
    }

    fn train_prompt(&self, index: u64) -> Prompt {
        self.example(index).prompt.clone()
    }

    fn demo(&self, index: u64) -> Result<Demo> {
        let example = self.example(index);
        match &example.demo {
            Some(answer) => Ok(Demo { prompt: example.prompt.clone(), answer: answer.clone() }),
            None => Err(Error::config(
                "phases",
                "`sft` needs an answer in every row, as `completion` or as the last message",
            )),
        }
    }

    fn heldout(&self, count: usize) -> Vec<Prompt> {
        self.heldout.iter().take(count).cloned().collect()
    }

    fn converse(&self, messages: &[Value]) -> Result<Prompt> {
        self.writer.converse(messages)
    }

    fn verifier(&self) -> Arc<dyn Reward> {
        self.reward.clone()
    }

    /// The answer's length is a default: only `rl.max_new_tokens` bounds what a model writes.
    fn lengths(&self) -> (usize, usize) {
        (self.longest, 256)
    }
}

/// FNV-1a of the text decides the split, so that it depends on nothing but the prompt.
fn is_held(text: &str, share: f64) -> bool {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x0000_0100_0000_01b3));
    ((hash ^ (hash >> 32)) as u32 as f64) < share * (1u64 << 32) as f64
}

/// Each prompt once.
fn distinct(examples: Vec<Example>) -> Vec<Prompt> {
    let mut seen = HashSet::new();
    let prompts = examples.into_iter().map(|e| e.prompt);
    prompts.filter(|p| seen.insert(p.text.clone())).collect()
}
