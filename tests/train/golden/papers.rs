//! What the papers say, by hand: for each recipe and each of its phases the settings that a run on a
//! model from disk has, the learning rate of its first step, and what it learns by. A recipe that says
//! something else fails.

use crate::objective::Advantage;

/// What a phase learns by.
#[derive(Clone, Copy)]
pub enum Learns {
    /// Nothing moves.
    Nothing,
    /// Cross-entropy on demonstrations or on a buffer.
    Texts,
    /// A token loss: its name, advantages, β of a KL in the loss and of one in the reward, entropy bonus.
    Tokens(&'static str, Advantage, (f64, f64), f64),
    /// An objective on whole completions with its β.
    Completions(&'static str, f64),
    /// Mutual information of completions and contexts.
    Contexts,
    /// The critic regresses on returns.
    Returns,
    /// The teacher's distributions, by a generalized JSD of this β.
    Teacher(f64),
}

/// A phase of a recipe.
pub struct Phase {
    pub name: &'static str,
    pub learns: Learns,
    /// Learning rate of the first step.
    pub rate: f64,
    pub settings: &'static [(&'static str, &'static str)],
}

/// A recipe's phases, without `quantize`.
pub struct Paper {
    pub recipe: &'static str,
    pub phases: &'static [Phase],
}

/// (R − mean) / (σ + 1e-4).
const GROUP: Advantage = Advantage::Group(Some(1e-4));

/// Adapters take ten times 1e-6, and the first of ten steps of warm-up a tenth of that.
const RL_RATE: f64 = 1e-6;

/// QLoRA's rate, and the first of ten steps of warm-up.
const SFT_RATE: f64 = 2e-5;

/// Rounds have no warm-up.
const ROUND_RATE: f64 = 2e-4;

const fn phase(
    name: &'static str,
    learns: Learns,
    rate: f64,
    settings: &'static [(&'static str, &'static str)],
) -> Phase {
    Phase { name, learns, rate, settings }
}

/// The SFT of a round: everything that was stored, once, from a fresh order.
const fn round(settings: &'static [(&'static str, &'static str)]) -> Phase {
    phase("tune", Learns::Texts, ROUND_RATE, settings)
}

/// GRPO by this name with β.
const fn grpo(name: &'static str, beta: f64) -> Learns {
    Learns::Tokens(name, GROUP, (beta, 0.0), 0.0)
}

pub const PAPERS: &[Paper] = &[
    Paper {
        recipe: "ace",
        phases: &[phase(
            "rl",
            grpo("grpo", 0.0),
            RL_RATE,
            &[
                ("rl.group", "8"),
                ("reward.functions", "['0.8*checklist', '0.2*length']"),
                ("reward.clamp_parts", "[0.0, 1.0]"),
            ],
        )],
    },
    Paper {
        recipe: "ats",
        phases: &[
            phase(
                "sft",
                Learns::Texts,
                SFT_RATE,
                &[("sft.epochs", "3"), ("sft.grad_clip", "0.3"), ("lora.rank", "16")],
            ),
            phase(
                "rl",
                grpo("grpo", 0.04),
                RL_RATE,
                &[("quantize.type", "'nf4'"), ("lora.alpha", "32.0"), ("rl.group", "8")],
            ),
        ],
    },
    Paper {
        recipe: "bigcharts",
        phases: &[
            phase("sft", Learns::Texts, SFT_RATE, &[("sft.epochs", "1")]),
            phase(
                "rl",
                grpo("deepseekmath_grpo", 0.04),
                RL_RATE,
                &[("rl.group", "8"), ("reward.functions", "['relative', 'format']")],
            ),
        ],
    },
    Paper {
        recipe: "copg",
        phases: &[phase(
            "rl",
            Learns::Completions("copg", 0.06),
            RL_RATE,
            &[("rl.source", "'data'"), ("rl.prompts", "64"), ("rl.lr_schedule", "'constant'")],
        )],
    },
    Paper {
        recipe: "curr_reft",
        phases: &[
            phase(
                "binary",
                grpo("deepseekmath_grpo", 0.04),
                RL_RATE,
                &[("rl.group", "4"), ("reward.functions", "['exact']")],
            ),
            phase(
                "choice",
                grpo("deepseekmath_grpo", 0.04),
                RL_RATE,
                &[("rl.group", "4"), ("reward.functions", "['options']")],
            ),
            phase("open", grpo("deepseekmath_grpo", 0.04), RL_RATE, &[("rl.group", "4")]),
            phase(
                "draw",
                Learns::Nothing,
                0.0,
                &[("rl.keep", "'best'"), ("rl.store", "'own'"), ("rl.group", "4")],
            ),
            round(&[("sft.source", "'buffer:own'"), ("sft.drain", "true"), ("sft.epochs", "1")]),
        ],
    },
    Paper {
        recipe: "dpo",
        phases: &[phase(
            "rl",
            Learns::Completions("dpo", 0.1),
            1e-5 / 150.0,
            &[("rl.source", "'data'"), ("rl.prompts", "64"), ("rl.warmup_steps", "0.06")],
        )],
    },
    Paper {
        recipe: "fare",
        phases: &[
            phase(
                "draw",
                Learns::Nothing,
                0.0,
                &[
                    ("rl.group", "20"),
                    ("rl.keep", "'threshold'"),
                    ("rl.keep_threshold", "1.0"),
                    ("rl.dedupe", "true"),
                    ("rl.store", "'right'"),
                ],
            ),
            round(&[("sft.source", "'buffer:right'"), ("sft.epochs", "1"), ("sft.demos", "0")]),
        ],
    },
    Paper {
        recipe: "finetunebench",
        phases: &[phase(
            "sft",
            Learns::Texts,
            SFT_RATE,
            &[("sft.epochs", "10"), ("reward.functions", "['exact']")],
        )],
    },
    Paper {
        recipe: "g1",
        phases: &[
            phase(
                "draw",
                Learns::Nothing,
                0.0,
                &[("rl.group", "8"), ("rl.temperature", "1.0"), ("rl.keep_threshold", "1.0")],
            ),
            round(&[("sft.source", "'buffer:solved'"), ("sft.epochs", "2")]),
            phase(
                "rl",
                Learns::Tokens("grpo", GROUP, (0.0, 0.0), 1e-3),
                RL_RATE,
                &[("rl.group", "5"), ("reward.functions", "['graph']")],
            ),
        ],
    },
    Paper {
        recipe: "gkd",
        phases: &[phase(
            "distill",
            Learns::Teacher(0.5),
            1e-5,
            &[
                ("distill.source", "'rollout'"),
                ("distill.divergence", "'jsd'"),
                ("rl.temperature", "1.0"),
                ("rl.learning_rate", "1e-4"),
            ],
        )],
    },
    Paper {
        recipe: "grpo",
        phases: &[phase(
            "rl",
            grpo("grpo", 0.04),
            RL_RATE,
            // 1,024 completions of 16 prompts, one update a batch.
            &[
                ("rl.prompts", "16"),
                ("rl.group", "64"),
                ("rl.updates_per_batch", "1"),
                ("rl.temperature", "1.0"),
                ("rl.lr_schedule", "'constant'"),
            ],
        )],
    },
    Paper {
        recipe: "kto",
        phases: &[phase(
            "rl",
            Learns::Completions("kto", 0.1),
            RL_RATE,
            &[("rl.source", "'data'"), ("rl.prompts", "32"), ("rl.lr_schedule", "'linear'")],
        )],
    },
    Paper {
        recipe: "leti",
        phases: &[
            phase(
                "draw",
                Learns::Nothing,
                0.0,
                &[
                    ("rl.keep", "'all'"),
                    ("rl.store", "'runs'"),
                    ("data.template", "'+{{ prompt }}'"),
                ],
            ),
            round(&[
                ("sft.source", "'buffer:runs'"),
                ("sft.epochs", "3"),
                (
                    "sft.template",
                    "'{% if score >= 1 %}+{% else %}-{{ feedback }}{% endif %}{{ prompt }}{{ completion }}'",
                ),
            ]),
        ],
    },
    Paper {
        recipe: "msrl",
        phases: &[
            phase("sft", Learns::Texts, SFT_RATE, &[("sft.epochs", "1")]),
            phase(
                "text",
                grpo("grpo", 0.0),
                RL_RATE,
                &[("reward.functions", "['chart-code']"), ("rl.group", "8")],
            ),
            phase(
                "mixed",
                grpo("grpo", 0.0),
                RL_RATE,
                &[("reward.functions", "['chart-code', '0.2*format:^\\S.*\\S$']")],
            ),
        ],
    },
    Paper {
        recipe: "prdp",
        phases: &[phase(
            "rl",
            Learns::Completions("prdp", 0.1),
            RL_RATE,
            &[("rl.updates_per_batch", "10"), ("rl.clip_high", "0.2"), ("rl.group", "8")],
        )],
    },
    Paper {
        recipe: "qlora",
        phases: &[phase(
            "sft",
            Learns::Texts,
            SFT_RATE,
            &[
                ("quantize.type", "'nf4'"),
                ("quantize.blocksize", "64"),
                ("quantize.double_quant", "true"),
                ("lora.rank", "64"),
                ("lora.alpha", "16.0"),
                ("lora.dropout", "0.1"),
                ("lora.targets", "'all-linear'"),
                ("sft.batch", "16"),
                ("sft.beta2", "0.999"),
                ("sft.weight_decay", "0.0"),
                ("sft.grad_clip", "0.3"),
                ("sft.lr_schedule", "'constant'"),
            ],
        )],
    },
    Paper {
        recipe: "raft",
        phases: &[
            phase(
                "draw",
                Learns::Nothing,
                0.0,
                // 1,024 completions a round.
                &[
                    ("rl.prompts", "128"),
                    ("rl.group", "8"),
                    ("value.collect_steps", "1"),
                    ("rl.keep", "'best'"),
                    ("rl.store", "'best'"),
                ],
            ),
            round(&[("sft.source", "'buffer:best'"), ("sft.epochs", "1"), ("sft.drain", "true")]),
        ],
    },
    Paper {
        recipe: "rationale",
        phases: &[phase(
            "sft",
            Learns::Texts,
            SFT_RATE,
            &[("sft.reasoning_weight", "1.0"), ("sft.prompt_weight", "0.0")],
        )],
    },
    Paper {
        recipe: "reft",
        phases: &[
            phase("sft", Learns::Texts, SFT_RATE, &[("sft.epochs", "2")]),
            phase(
                "rl",
                Learns::Tokens("reft", Advantage::Gae(0.95), (0.0, 0.01), 0.0),
                3e-7,
                &[
                    ("reward.functions", "['numeric:0,0.1']"),
                    ("rl.group", "1"),
                    ("rl.updates_per_batch", "2"),
                    ("rl.kl", "'reward'"),
                    ("rl.temperature", "1.0"),
                    ("rl.grad_clip", "1.0"),
                    ("value.gamma", "1.0"),
                    ("value.clip", "0.2"),
                    ("value.coef", "5.0"),
                    ("value.whiten", "true"),
                ],
            ),
        ],
    },
    Paper {
        recipe: "relift",
        phases: &[phase(
            "rl",
            Learns::Tokens("relift", Advantage::Group(None), (0.0, 0.0), 1e-3),
            RL_RATE,
            &[
                ("rl.group", "8"),
                ("rl.prompts", "16"),
                ("rl.grad_clip", "0.7"),
                ("rl.divert", "'hard'"),
                ("rl.then", "'hard >= 128: teach'"),
            ],
        )],
    },
    Paper {
        recipe: "rewrite",
        phases: &[phase(
            "rl",
            Learns::Tokens("reft", Advantage::Gae(0.95), (0.0, 0.001857), 0.0),
            5e-7,
            &[
                ("lora.rank", "8"),
                ("lora.alpha", "32.0"),
                ("rl.prompts", "128"),
                ("rl.group", "1"),
                ("rl.updates_per_batch", "4"),
                ("rl.kl", "'reward'"),
                ("rl.learning_rate", "5e-6"),
                ("rl.lr_schedule", "'cosine'"),
                ("value.gamma", "1.0"),
                ("value.clip", "0.2"),
                ("value.coef", "1.0"),
            ],
        )],
    },
    Paper {
        recipe: "rocket3",
        phases: &[
            phase("sft", Learns::Texts, SFT_RATE, &[]),
            phase(
                "rl",
                Learns::Tokens("reft", Advantage::Gae(0.95), (0.0, 0.01), 0.0),
                RL_RATE,
                &[("rl.kl", "'reward'")],
            ),
        ],
    },
    Paper {
        recipe: "sami",
        phases: &[phase(
            "rl",
            Learns::Contexts,
            RL_RATE,
            &[("rl.prompts", "64"), ("rl.group", "1"), ("rl.beta1", "0.0")],
        )],
    },
    Paper {
        recipe: "self_sampled",
        phases: &[
            phase("sft", Learns::Texts, SFT_RATE, &[("sft.source", "'demos'")]),
            phase(
                "draw",
                Learns::Nothing,
                0.0,
                &[("rl.keep_threshold", "1.0"), ("rl.dedupe", "true"), ("rl.store", "'book'")],
            ),
            round(&[("sft.source", "'buffer:book'"), ("sft.drain", "false"), ("sft.epochs", "1")]),
        ],
    },
    Paper {
        recipe: "texforce",
        phases: &[phase(
            "rl",
            grpo("grpo", 0.0),
            3e-5,
            &[
                ("lora.rank", "16"),
                ("lora.alpha", "16.0"),
                ("lora.targets", "'q_proj,k_proj,v_proj,o_proj'"),
                ("rl.clip_low", "1e-4"),
                ("rl.clip_high", "1e-4"),
                ("rl.advantage_clamp", "10.0"),
                ("rl.lr_schedule", "'constant'"),
            ],
        )],
    },
    Paper {
        recipe: "toolrl",
        phases: &[phase(
            "rl",
            grpo("grpo", 0.0),
            RL_RATE,
            &[("rl.group", "4"), ("rl.updates_per_batch", "1")],
        )],
    },
    Paper {
        recipe: "visual_rft",
        phases: &[phase(
            "rl",
            grpo("deepseekmath_grpo", 0.04),
            RL_RATE,
            &[("rl.group", "8"), ("reward.functions", "['detect', 'format']")],
        )],
    },
    Paper {
        recipe: "wsrl",
        phases: &[
            phase("collect", Learns::Nothing, 0.0, &[("value.collect_steps", "4")]),
            phase("value_fit", Learns::Returns, 0.0, &[("value.fit_steps", "50")]),
            phase(
                "rl",
                Learns::Tokens("reft", Advantage::Gae(0.95), (0.0, 0.0), 0.0),
                RL_RATE,
                &[
                    ("rl.updates_per_batch", "4"),
                    ("rl.replay_window", "4"),
                    ("rl.replay_share", "0.5"),
                ],
            ),
        ],
    },
];
