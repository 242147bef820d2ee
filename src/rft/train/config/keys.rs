//! Every key: what it means, its default, what it may be, and where the default is from.
//!
//! "pilot" is the demo's own tuning (docs/LOG.md), "ours" a choice of this project.

use crate::train::config::auto::Auto;
use crate::train::config::bounds::Bounds;
use crate::train::config::choice::{
    AdvantageKey, ChatSetting, CheckpointingKey, CombineKey, Control, CreditKey, DataFormat,
    DistillSource, DivergenceKey, HistoryKey, ImportanceKey, KeepKey, KlKey, ModelDtype,
    OptimizerKey, QuantizeType, RestKey, ScaleKey, Schedule, SourceKey, TaskName,
};
use crate::train::config::plan::{PhaseEntry, entries};
use crate::train::config::section::{
    AtLeast, InOrder, Positive, PowersOfTwo, StepsOrShare, TextBytes, section,
};
use crate::train::phase::Phase;

/// Longest text that ends a completion, in bytes: the end of a completion is looked at after every
/// token.
const STOP_LIMIT: usize = 256;

/// Most further batches of a step: their number is a part of the key of every draw.
const MOST_EXTRA_BATCHES: usize = 63;

/// Largest share of replayed completions: ten times as many as were sampled.
const MOST_REPLAY: f64 = 0.9;

/// Largest decay of a moment: 1 would never forget.
const MOST_DECAY: f64 = 1.0 - 1e-12;

/// Dropout keeps something.
const MOST_DROPOUT: f64 = 0.999;

section! {
    /// A whole run.
    RunConfig by [Run] {
        /// Names every random draw of the run.
        seed: u64 = 0; range 0..=i64::MAX as u64; source "ours",
        /// Folder that holds the run folders.
        out: String = "runs".into(); source "ours" neutral,
        /// First part of the run folder's name.
        name: String = "demo".into(); folder "rft".into(); source "ours" neutral,
        /// Worker threads, 0 = one per core; results do not depend on it.
        threads: usize = 0; range 0..=1 << 12; source "ours" neutral,
        /// cpu, cuda, cuda:N, or auto: a CUDA device if there is a driver.
        device: String = "auto".into(); source "ours",
        /// A published method whose settings are laid under one's own; `gradus recipes` lists them.
        recipe: String = String::new(); source "ours: none",
        /// Phases in order: kinds, names of tables [phase.NAME], and repetitions such as
        /// 5*(collect,tune).
        phases: Vec<PhaseEntry> = entries(&[Phase::Sft, Phase::Quantize, Phase::Rl]);
            folder entries(&[Phase::Quantize, Phase::Rl]);
            source "ReFT (2401.08967): SFT, then RL",
    }
    sections {
        /// What is learned, without data.
        task: TaskConfig,
        /// Prompts from a file.
        data: DataConfig,
        /// How completions are scored.
        reward: RewardConfig,
        /// Episodes of several turns.
        env: EnvConfig,
        /// The decoder.
        model: ModelSection,
        /// Supervised warm-up.
        sft: SftConfig,
        /// 4-bit weights.
        quantize: QuantizeConfig,
        /// Adapters.
        lora: LoraConfig,
        /// Reinforcement fine-tuning.
        rl: RlConfig,
        /// The critic, for `rl.advantage = "gae"`.
        value: ValueConfig,
        /// Records that outlive their batch.
        buffer: BufferConfig,
        /// A teacher, for the phase `distill`.
        distill: DistillConfig,
        /// Held-out accuracy.
        eval: EvalConfig,
        /// Saved states.
        checkpoint: CheckpointConfig,
    }
    tables {
        /// Settings of single phases, by their names in `phases`.
        phase,
    }
}

section! {
    /// The task that needs no data.
    TaskConfig by [BuiltIn] {
        /// Which one.
        name: TaskName = TaskName::Countdown; source "ours",
        /// Digits in a prompt.
        digits: usize = 3; source "pilot, docs/LOG.md",
        /// Operators an answer may use, out of +-*.
        operators: String = "+-".into(); source "pilot",
        /// Smallest target.
        min_target: u32 = 0; source "pilot",
        /// Largest target.
        max_target: u32 = 30; source "pilot",
    }
}

section! {
    /// Prompts from a file.
    DataConfig by [File] {
        /// Prompts: a .jsonl, .json or .parquet file, or a folder of them; empty: the task's own.
        path: String = String::new(); by [Data]; source "ours",
        /// Held-out prompts; empty: a share of data.path.
        heldout: String = String::new(); source "ours",
        /// Share of data.path that is held out, by a hash of the prompt.
        heldout_share: f64 = 0.1; range 0.0..=1.0; source "ours",
        /// Further held-out sets, each NAME=FILE: scored once before anything is learned and at the end, by the
        /// same rewards; their prompts are not trained on.
        suites: Vec<String> = Vec::new(); source "ours: none",
        /// How a row becomes a prompt.
        format: DataFormat = DataFormat::Auto; source "ours",
        /// A template (minijinja) over the row's fields that writes the prompt, instead of data.format.
        template: String = String::new(); source "ours",
        /// System message of chat prompts.
        system: String = String::new(); source "ours",
        /// Whether prompts go through the model's chat template.
        chat: ChatSetting = ChatSetting::Auto; source "ours",
        /// Column or dotted path of what kind a row is of, for data.mix_power; empty: all rows are of one.
        mix: String = String::new(); source "ours",
        /// A kind of n rows has a share of training in proportion to n to this power: 1 = as many as it
        /// has, 0 = all kinds the same.
        mix_power: f64 = 1.0; range 0.0..=1.0; source "ours: 1; mT5 (2010.11934): 0.3",
        /// Prompts with more tokens are left out.
        max_prompt_tokens: usize = 512; range 1..=1 << 20; source "TRL: 512",
    }
}

section! {
    /// How completions are scored.
    RewardConfig by [Rewards] {
        /// Rewards that make one score: names, WEIGHT*NAME, cmd:COMMAND or a URL; empty: the task's
        /// verifier.
        functions: Vec<String> = Vec::new(); by [Score]; source "ours",
        /// How several rewards make one score.
        combine: CombineKey = CombineKey::Sum; source "TRL: weighted sum",
        /// Bounds [low, high] of each reward, before its weight; [] = none.
        clamp_parts: Bounds = Bounds::None; range InOrder; source "ours",
        /// Bounds [low, high] of the score; [] = none.
        clamp: Bounds = Bounds::None; range InOrder; source "trlX: cliprange_reward",
        /// Column or dotted path of the right answers; empty: each reward's own column.
        answer: String = String::new(); by [FileRewards]; source "verl: reward_model.ground_truth",
        /// Leave special tokens out of the text that is scored.
        skip_special_tokens: bool = true; by [Score]; source "TRL: true",
        /// Processes of a cmd: reward or environment, 0 = one per thread.
        workers: usize = 0; range 0..=1 << 10; by [Outside, Program]; source "ours" neutral,
        /// Seconds a sample may take, with all its tests where a program is judged, or a turn of an episode.
        timeout: f64 = 30.0; range 1e-3..=86_400.0; by [Outside, Program]; source "ours" neutral,
        /// Further seconds until a cmd: first answers, for example to load a model; 0 = twice
        /// reward.timeout.
        startup: f64 = 0.0; range 0.0..=86_400.0; by [Outside, Program]; source "ours" neutral,
        /// Further tries of a failed call.
        retries: usize = 1; range 0..=100; by [Outside]; source "ours" neutral,
    }
}

section! {
    /// Episodes of several turns: something answers the policy between them.
    EnvConfig by [Episodes] {
        /// What answers: tool, grid, ask, zoom, rounds, own or cmd:COMMAND; empty: nothing does, and a completion
        /// is an episode.
        kind: String = String::new(); by [Run, Sample]; source "ours: none",
        /// Most answers of an episode; one that ends here counts as cut off. Under rounds their number.
        max_turns: usize = 8; range 1..=1 << 12; source "ours",
        /// Most tokens of an episode behind its prompt, sampled or said; 0 = env.max_turns times two of the
        /// longest answers. Under rounds what a later one may have beyond the longest prompt, with its
        /// answer; 0 = five of the longest answers.
        max_tokens: usize = 0; range 0..=1 << 20; source "ours; TRL and verl count both too",
        /// What the policy reads of its own earlier answers.
        history: HistoryKey = HistoryKey::Template; by [Said]; source "ours",
        /// What a question costs under ask.
        question_cost: f64 = 0.1; range 0.0..=1.0; by [Asks]; source "ours",
        /// What a question is worth under ask if its answer rules out all that could still be; a share of that
        /// for a share of them.
        question_value: f64 = 0.0; range 0.0..=1.0; by [Asks]; source "ours: off",
        /// How often a sample is continued under rounds; its reward is the mean.
        continuations: usize = 4; range 1..=1 << 8; by [Rounds]; source "MOTIF (arXiv:2507.02851): 4",
        /// A template (minijinja) that writes the prompt of the next round: over the row's fields, with the
        /// question as prompt and the last answer as completion.
        carry: String = "{{ prompt }}\n{{ completion }}\n".into(); by [Rounds]; source "ours",
        /// Which tokens the reward of a turn reaches: those of the episode, or those up to that turn's end.
        credit: CreditKey = CreditKey::Episode; by [Turns]; source "ours; VLA-RL (arXiv:2505.18719): turn",
    }
}

section! {
    /// The decoder: a folder, or the shape of a fresh one (Llama), which reads data.path as bytes.
    ModelSection by [Fresh] {
        /// A Hugging Face folder; the shape is then its own.
        path: String = String::new(); by [Run]; source "ours",
        /// A PEFT adapter to go on from.
        adapter: String = String::new(); by [Quantize]; source "ours",
        /// Width of the residual stream.
        hidden: usize = 96; source "pilot",
        /// Blocks.
        layers: usize = 2; source "pilot",
        /// Query heads.
        heads: usize = 4; source "pilot",
        /// Key/value heads, a divisor of heads.
        kv_heads: usize = 4; source "pilot",
        /// Width of a head, even.
        head_dim: usize = 24; source "pilot",
        /// Width of the gated MLP.
        ffn: usize = 288; source "pilot",
        /// eps of the RMSNorms.
        norm_eps: f64 = 1e-5; source "Llama: 1e-5",
        /// Base of the rotary frequencies.
        rope_theta: f64 = 10_000.0; source "RoFormer: 10000",
        /// The head shares the embedding's matrix.
        tie_embeddings: bool = false; source "Llama: false",
        /// Weights and activations; what trains is f32 either way.
        dtype: ModelDtype = ModelDtype::F32; by [Run]; source "ours",
    }
}

section! {
    /// Supervised warm-up.
    SftConfig by [Demos] {
        /// demos: demonstrations of the task; buffer:NAME: the records of a buffer.
        source: String = "demos".into(); source "ours",
        /// Whether the buffer is empty after the phase, so that each round learns from its own records.
        drain: bool = true; by [Sft]; source "ours",
        /// A template (minijinja) that writes the text to learn from a buffer's record: the row's fields,
        /// `prompt`, `completion`, `score`, `feedback`. All of it carries loss; empty: the completion.
        template: String = String::new(); source "ours: none; LeTI (2305.10314): score and feedback first",
        /// Whether the phase begins with an optimizer that has seen nothing.
        fresh_optimizer: bool = false; by [Sft]; source "ours",
        /// Passes over the demonstrations.
        epochs: usize = 6; folder 3; range 0..=1 << 16; source "pilot; model folder: TRL 3",
        /// Demonstrations, 0 = every training row once, 4,000 where they never end.
        demos: usize = 4_000; folder 0; range 0..=1 << 24;
            source "pilot; model folder: all rows",
        /// Demonstrations per step.
        batch: usize = 64; folder 16; range 1..=1 << 16; source "pilot; model folder: QLoRA 16",
        /// Tokens of a micro-batch of demonstrations that are packed end to end and do not see each
        /// other, 0 = rl.micro_batch demonstrations; changes rounding, not meaning.
        packing: usize = 0; range 0..=1 << 30; source "TRL packing: off",
        /// Peak learning rate; auto: 2e-4 for adapters, 2e-5 for whole weights.
        learning_rate: Auto = Auto::Value(2e-3); folder Auto::Auto; range 0.0..=1e3;
            source "pilot; model folder: QLoRA 2e-4, TRL 2e-5",
        /// Decay of AdamW's second moment.
        beta2: f64 = 0.95; folder 0.999; range 0.0..=MOST_DECAY;
            source "pilot; model folder: QLoRA 0.999",
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0; range 0.0..=1e3; source "ours",
        /// Steps of linear warm-up, or below 1 their share of the phase; auto: 20, or 10 on a model from
        /// disk, and a tenth of a phase that has fewer steps.
        warmup_steps: Auto = Auto::Auto; range StepsOrShare;
            source "pilot; model folder: QLoRA 3 % of a run; shares: transformers",
        /// Learning rate over the phase.
        lr_schedule: Schedule = Schedule::Linear; folder Schedule::Constant;
            source "pilot; model folder: QLoRA constant",
        /// Largest global gradient norm.
        grad_clip: f64 = 1.0; folder 0.3; range Positive(f64::INFINITY);
            source "TRL: 1.0; model folder: QLoRA 0.3",
        /// Learning rate of a block beside that of the block above it; of the embedding beside that of the
        /// lowest, of the highest beside that of the head. 1 = all move at the same rate.
        layer_decay: f64 = 1.0; range Positive(1.0); by [Sft]; source "ours: off; ELECTRA (2003.10555): 0.8 to 0.9",
        /// Share of the blocks, the lowest ones, that do not move, nor does the embedding; 0 = all move.
        freeze_share: f64 = 0.0; range 0.0..=1.0; by [Sft]; source "ours: off",
        /// Weight of a prompt's tokens beside the answer's, 0 = they carry no loss.
        prompt_weight: f64 = 0.0; range 0.0..=1e6;
            by [Demos, Divert]; source "TRL completion_only_loss; LeTI (2305.10314): 1",
        /// Weight of an answer's tokens up to its last closing mark of reasoning, such as `</think>`.
        reasoning_weight: f64 = 1.0; range 0.0..=1e6; by [Sft, Divert]; source "ours",
    }
}

section! {
    /// 4-bit weights.
    QuantizeConfig by [Quantize] {
        /// What the blocks' weights become.
        r#type: QuantizeType = QuantizeType::Nf4; source "QLoRA (2305.14314): nf4",
        /// Values per block.
        blocksize: usize = 64; range PowersOfTwo(32, 4096); source "QLoRA: 64",
        /// Quantize the block maxima too.
        double_quant: bool = true; source "QLoRA: true",
    }
}

section! {
    /// Adapters.
    LoraConfig by [FreshAdapter] {
        /// Rank of the adapters.
        rank: usize = 16; range 1..=1 << 12; source "pilot",
        /// The update is scaled by alpha / rank.
        alpha: f64 = 32.0; range Positive(1e6); source "pilot",
        /// all-linear, or names such as q_proj,v_proj.
        targets: String = "all-linear".into(); source "QLoRA: all linear layers",
        /// Scale by alpha / sqrt(rank).
        rslora: bool = false; source "PEFT use_rslora: false",
        /// Share of an adapter's inputs that an update drops; not where ratios are taken, and never when
        /// sampling.
        dropout: f64 = 0.0; range 0.0..=MOST_DROPOUT; by [Adapters]; source "PEFT lora_dropout: 0.0; QLoRA: 0.05, 0.1",
    }
}

section! {
    /// Reinforcement fine-tuning.
    RlConfig by [Rl] {
        /// Steps.
        steps: usize = 600; folder 200; by [Update]; source "pilot; model folder: ours",
        /// Prompts per step.
        prompts: usize = 64; folder 8; range 1..=1 << 16;
            by [Prompts]; source "pilot; model folder: 8 of 8 samples, TRL's sizes",
        /// Buffer whose prompts alone are asked, each once a round; empty: all training prompts.
        prompts_of: String = String::new(); by [Judge]; source "ours: all; RIF-RFT (2507.05386): those that some sample solved",
        /// τ with which a prompt of that buffer is drawn in proportion to exp((0.5 - success)/τ), where its success is
        /// the mean reward of its records in the buffer; auto: each once a round.
        prompts_tau: Auto = Auto::Auto; range Positive(1e6); by [Judge]; source "ours: auto; VLA-RL (2505.18719) has such a curriculum",
        /// Who gives the answers to learn from.
        source: SourceKey = SourceKey::Rollout; source "ours",
        /// Samples per prompt.
        group: usize = 8; range 1..=1 << 12; by [Sample]; source "TRL: 8",
        /// Updates per batch of rollouts.
        updates_per_batch: usize = 1; range 1..=1 << 10; source "TRL num_iterations: 1",
        /// Sequences per micro-batch, 0 = the samples of a prompt, but at most 16; changes rounding, not
        /// meaning.
        micro_batch: usize = 32; folder 0; range 0..=1 << 16; by [MicroBatch]; source "ours",
        /// Whether updates keep the input of each block alone and compute its activations again on the way
        /// back, which takes less memory and a pass forward more; changes no bit.
        gradient_checkpointing: CheckpointingKey = CheckpointingKey::Auto; by [Backward]; source "ours" neutral,
        /// Compute what neighboring sequences of a micro-batch begin with in common, such as a group's
        /// prompt, once in updates and scores; changes rounding, not meaning.
        shared_prompts: bool = true; by [Update, Returns]; source "ours",
        /// Sampling temperature; log-probs are of that distribution.
        temperature: f64 = 1.0; range 1e-3..=1e3; by [Sample, Rl]; source "TRL: 1.0",
        /// Nucleus of the sampler.
        top_p: f64 = 1.0; range Positive(1.0); by [Sample]; source "TRL: 1.0",
        /// Largest k of the sampler, 0 = off.
        top_k: i64 = 0; range AtLeast(0); by [Sample]; source "TRL: 0",
        /// Sequences decoded together, per thread on the CPU and in all on a GPU; 0 = what fits the
        /// device.
        slots: usize = 0; range 0..=1 << 16; by [Run, Sample]; source "ours" neutral,
        /// Smallest relative probability of the sampler, 0 = off.
        min_p: f64 = 0.0; range 0.0..=1.0; by [Sample]; source "TRL: off",
        /// Longest completion, or answer of an episode, 0 = what the task needs: with data.path the longest demonstration of
        /// a fresh model, 256 of a model from disk.
        max_new_tokens: usize = 0; folder 128; range 0..=1 << 20; by [Run, Sample]; source "ours",
        /// Texts that end a completion, which keeps them.
        stop: Vec<String> = Vec::new(); range TextBytes(STOP_LIMIT); by [Run, Sample]; source "ours: none",
        /// Completions that were cut off carry no loss.
        mask_truncated_completions: bool = false; by [Online]; source "TRL: false; DAPO (2503.14476): true",
        /// Samples of a prompt, the last ones, that go on from the beginning of its demonstration; that is a
        /// part of the completion and is learned at ratios of 1. 0 = none.
        prefix_samples: usize = 0; range 0..=1 << 12; by [Online]; source "ours: none; Prefix-RFT (2507.01679): 1",
        /// Least and largest share of the demonstration that is such a beginning; each is drawn anew.
        prefix_share: Bounds = Bounds::Within(0.05, 0.95); range InOrder; by [Online]; source "Prefix-RFT: 0.05 to 0.95",
        /// Steps of the phase over which the least share falls, on a half cosine from the largest one.
        prefix_steps: usize = 500; range AtLeast(1); by [Online]; source "Prefix-RFT: 500",
        /// Share of the batch's tokens of beginnings, those of the largest entropy, that carry the surrogate.
        prefix_quantile: f64 = 0.2; range 0.0..=1.0; by [Online]; source "Prefix-RFT: 0.2",
        /// Tokens before the longest completion over which the reward falls in a straight line, 0 = none.
        overlong_buffer: usize = 0; range 0..=1 << 20; by [Judge]; source "ours: none; DAPO: 4096 of 20480",
        /// What a completion of the full length loses; auto: 1.
        overlong_penalty: Auto = Auto::Auto; range Positive(1e6); by [Judge]; source "DAPO: 1",
        /// Further batches that a step may sample until rl.prompts prompts have rewards that differ,
        /// 0 = none. Prompts whose rewards are all equal are then left out.
        dynamic_sampling: usize = 0; range 0..=MOST_EXTRA_BATCHES; by [Judge]; source "ours: none; verl max_num_gen_batches: 10",
        /// Completions that are learned from and stored.
        keep: KeepKey = KeepKey::All; by [Keep]; source "GRPO: all; RAFT (2304.06767): best",
        /// Share of the batch for rl.keep = top; auto: 0.2.
        keep_share: Auto = Auto::Auto; range Positive(1.0); by [Keep]; source "RAFT: 0.2",
        /// Smallest reward for rl.keep = threshold; auto: 1.
        keep_threshold: Auto = Auto::Auto; range -1e6..=1e6; by [Keep]; source "ours: a right answer",
        /// Leave out a completion that repeats an earlier one of its prompt, in the batch or in the buffer
        /// of rl.store.
        dedupe: bool = false; by [Keep]; source "ours",
        /// Buffer that takes in the completions that are kept; empty: none.
        store: String = String::new(); by [Keep]; source "ours",
        /// Buffer whose completions of a step's prompts mml learns beside those of the step; empty: none.
        book: String = String::new(); by [Rl]; source "ours: none; 2205.14318: such a book",
        /// Whether the demonstration of a prompt is in its book, and right.
        book_demos: bool = false; by [Rl]; source "ours; 2205.14318: true",
        /// Batches before this one from which completions are learned again, 0 = none.
        replay_window: usize = 0; range 0..=1 << 10; source "ours: none; ReMix (2507.06892): 2",
        /// Share of what is learned from that comes from those batches.
        replay_share: f64 = 0.0; range 0.0..=MOST_REPLAY; source "ours: none; ReMix: 0.4",
        /// Buffer that takes in prompts with their demonstrations where no completion has more than
        /// rl.divert_below; empty: none.
        divert: String = String::new(); by [Judge]; source "ours: none; ReLIFT (2506.07527): such a buffer",
        /// Reward up to which a completion counts as failed; auto: 0.
        divert_below: Auto = Auto::Auto; range -1e6..=1e6; by [Judge]; source "ReLIFT: all completions wrong",
        /// `NAME >= N: PHASE`: when the buffer NAME has N records, the phase PHASE of the kind sft
        /// learns them at the end of the step, with an optimizer of its own; empty: never.
        then: String = String::new(); source "ours: never; ReLIFT: 128",
        /// Texts of single tokens whose mean entropy is a metric of each step; none: [].
        watch: Vec<String> = Vec::new(); range TextBytes(STOP_LIMIT); by [Keep];
            source "ours: none; Skywork-R1V3 (2507.06167): words such as Wait",
        /// Token loss or sequence objective; what the next keys leave at auto goes with its name.
        loss: String = "grpo".into(); by [Keep]; source "DeepSeekMath (2402.03300): grpo",
        /// Lower clip bound in the loss's own terms, for PPO the distance from a ratio of 1.
        clip_low: Auto = Auto::Auto; range 0.0..=1.0; source "auto: the preset's",
        /// Upper clip bound, likewise.
        clip_high: Auto = Auto::Auto; range 0.0..=1e6; source "auto: the preset's",
        /// Weight of the KL to the policy that RL began with, 0 = none; a sequence objective's own β.
        beta: Auto = Auto::Auto; range 0.0..=1e6; source "auto: the preset's; TRL: 0.0",
        /// Share of a KL in the loss that is to that policy; the rest is to the policy before the step's
        /// updates.
        kl_share: f64 = 1.0; range 0.0..=1.0; source "ours: one anchor; ReMix (2507.06892): 1, later 0.5",
        /// Whether that policy is the one that the phase began with, in the place of the run's first phase
        /// of RL.
        fresh_reference: bool = false; source "ours; ReMix: true when it goes on-policy",
        /// Where that KL is put.
        kl: KlKey = KlKey::Auto; source "auto: the preset's; GRPO: loss, ReFT: reward",
        /// How advantages are estimated.
        advantage: AdvantageKey = AdvantageKey::Auto;
            by [Advantage]; source "auto: the preset's; GRPO: group, ReFT: gae",
        /// What group advantages are divided by.
        scale: ScaleKey = ScaleKey::Auto;
            by [Advantage]; source "auto: the preset's; TRL: group, Dr. GRPO: none",
        /// Weight of the entropy bonus.
        entropy_coef: Auto = Auto::Auto; range 0.0..=1e6;
            source "auto: the preset's; ReLIFT: 1e-3, others 0",
        /// Largest size of an advantage, inf = any.
        advantage_clamp: f64 = f64::INFINITY; range Positive(f64::INFINITY);
            source "off; DDPO (2305.13301): 10",
        /// Share of the batch's tokens, those of the largest entropy, that carry the surrogate.
        top_entropy_quantile: f64 = 1.0; range 0.0..=1.0; source "TRL: 1.0; 2506.01939: 0.2",
        /// Tokens weigh their probability, but at least this; 1 = all weigh the same.
        token_weight_floor: f64 = 1.0; range 0.0..=1.0; source "off; GOLD (2009.07839): 0.1",
        /// Weight of tokens that another policy sampled.
        importance_sampling: ImportanceKey = ImportanceKey::None;
            source "TRL vllm_importance_sampling_mode",
        /// Largest importance weight, or ratio that is not masked.
        importance_sampling_cap: f64 = 3.0; range Positive(1e6);
            source "TRL vllm_importance_sampling_cap: 3.0",
        /// Reward from which a completion is right for mml and desirable for kto.
        label_threshold: Auto = Auto::Auto; range -1e30..=1e30; source "auto: 0.5, ours",
        /// Weight of kto's desirable completions.
        desirable_weight: Auto = Auto::Auto; range 0.0..=1e6; source "auto: TRL 1.0",
        /// Weight of kto's other completions.
        undesirable_weight: Auto = Auto::Auto; range 0.0..=1e6; source "auto: TRL 1.0",
        /// Share of pairs that dpo, robust, exo and cpo take to be swapped.
        label_smoothing: Auto = Auto::Auto; range 0.0..=0.5;
            source "auto: dpo, cpo 0, exo 1e-3 (TRL), robust 0.1 (ours)",
        /// What simpo wants between the chosen and the rejected.
        margin: Auto = Auto::Auto; range 0.0..=1e6; source "auto: TRL simpo_gamma 0.5",
        /// Two model folders of the model's shape, before and after: the weights in which they differ move alone;
        /// [] = all.
        only_changed: Vec<String> = Vec::new(); by [Rl]; source "ours: all; 2505.11711 trains the changed ones again",
        /// Peak learning rate; auto: 1e-5 for adapters, 1e-6 for whole weights.
        learning_rate: Auto = Auto::Value(2e-3); folder Auto::Auto; range 0.0..=1e3;
            by [Update]; source "pilot; model folder: TRL GRPO 1e-6, adapters ten times that (LoRA Without Regret)",
        /// The optimizer; paged_adamw needs a GPU.
        optim: OptimizerKey = OptimizerKey::AdamW; by [Run]; source "QLoRA: paged",
        /// Decay of AdamW's first moment.
        beta1: f64 = 0.9; range 0.0..=MOST_DECAY; by [Update]; source "AdamW: 0.9",
        /// Decay of AdamW's second moment.
        beta2: f64 = 0.95; folder 0.999; range 0.0..=MOST_DECAY;
            by [Update]; source "pilot; model folder: AdamW 0.999",
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0; range 0.0..=1e3; by [Update]; source "TRL: 0.0",
        /// Largest global gradient norm.
        grad_clip: f64 = 1.0; range Positive(f64::INFINITY); by [Update]; source "TRL: 1.0",
        /// Learning rate over the phase.
        lr_schedule: Schedule = Schedule::Linear; by [Update]; source "TRL: linear",
        /// Steps of linear warm-up, or below 1 their share of the phase; auto: 10, and a tenth of a phase
        /// that has fewer steps.
        warmup_steps: Auto = Auto::Auto; range StepsOrShare; by [Update]; source "pilot; shares: transformers",
        /// Negative control.
        control: Control = Control::None; by [Keep, Update]; source "ours",
    }
}

section! {
    /// The critic of `rl.advantage = "gae"`.
    ValueConfig by [Critic] {
        /// Rollout batches of the collect phase.
        collect_steps: usize = 4; by [Collect]; source "VLA-RL (2505.18719)",
        /// Critic updates of the value_fit phase.
        fit_steps: usize = 50; by [ValueFit]; source "VLA-RL: 5; pilot",
        /// Critic learning rate.
        learning_rate: f64 = 1e-2; range 0.0..=1e3; by [ValueFit, Critic]; source "pilot",
        /// Clip of the critic's change in a batch, inf = off.
        clip: Auto = Auto::Auto; range Positive(f64::INFINITY);
            source "auto: the preset's; ReFT: 0.2",
        /// Weight of the critic's loss in the policy's, whose trunk it then moves; 0 = a head of its own.
        coef: Auto = Auto::Auto; range 0.0..=1e6; source "auto: the preset's; ReFT: 5, others 0",
        /// Whiten advantages over the batch.
        whiten: bool = true; source "ReFT: true; VLA-RL: false",
        /// Discount.
        gamma: f64 = 1.0; range 0.0..=1.0; by [Returns, Critic]; source "ReFT: 1.0",
        /// GAE's lambda.
        lambda: f64 = 0.95; range 0.0..=1.0; source "ReFT: 0.95",
    }
}

section! {
    /// Buffers: records that outlive their batch.
    BufferConfig by [Store] {
        /// Most records of a buffer; the oldest leave.
        capacity: usize = 16_384; range 1..=1 << 24; source "ours",
    }
}

section! {
    /// The phase `distill`: the policy learns a teacher's distributions.
    DistillConfig by [Distill] {
        /// The teacher's folder, with the model's tokenizer.
        teacher: String = String::new(); source "ours",
        /// What both read: rollouts, drawn and learned with the settings of `rl`, or demonstrations,
        /// with those of `sft`.
        source: DistillSource = DistillSource::Rollout; source "GKD (2306.13649): on-policy",
        /// What is to become small.
        divergence: DivergenceKey = DivergenceKey::ReverseKl;
            source "MiniLLM (2306.08543): reverse KL",
        /// Weight of the teacher in the mixture of jsd, which alone takes it; auto: 0.5.
        beta: Auto = Auto::Auto; range 1e-3..=0.999; source "TRL GKD: 0.5",
        /// γ of the teacher's logits u + γ·(c − u), with c behind the whole prompt and u behind its last token
        /// alone; 1 = c, which is no guidance.
        guidance: f64 = 1.0; range 0.0..=1e3; source "ours: 1, off",
        /// Tokens that count, those that the teacher finds likeliest; 0 = the whole vocabulary.
        top_k: usize = 0; range 0..=1 << 10; source "GKD: the whole vocabulary",
        /// What becomes of the others.
        rest: RestKey = RestKey::Drop; source "ours",
    }
}

section! {
    /// Held-out accuracy.
    EvalConfig by [Evaluate] {
        /// RL steps between evaluations.
        every: usize = 100; folder 20; range AtLeast(1); by [Rl]; source "ours",
        /// Held-out prompts.
        max_prompts: usize = 256; folder 32; range 1..=1 << 20; source "ours",
        /// Completions per held-out prompt.
        samples: usize = 2; folder 1; range 1..=1 << 12; source "ours",
        /// Sampling temperature of evaluations, 0 = greedy.
        temperature: f64 = 1.0; range 0.0..=1e3; source "ours",
    }
}

section! {
    /// Saved states.
    CheckpointConfig by [Run] {
        /// Steps between checkpoints.
        every: usize = 100; folder 20; range AtLeast(1); source "ours" neutral,
        /// Checkpoints kept.
        keep: usize = 2; range 1..=1 << 16; source "ours" neutral,
        /// A metric of steps that evaluate: the state where it was largest is kept in the folder `best` of the run;
        /// empty: none.
        best: String = String::new(); source "ours: none; Skywork-R1V3 (2507.06167): entropy/watched",
    }
}
