//! Recipes from A to K.

use super::{GROUP, Learns, Paper, RL_RATE, SFT_RATE, grpo, phase, round, size};
use crate::objective::Advantage;

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
        recipe: "alignprop",
        phases: &[phase(
            "rl",
            Learns::Tokens("verl/gpg", Advantage::Group(None), (0.0, 0.0), 0.0),
            RL_RATE,
            &[
                ("quantize.type", "'none'"),
                ("rl.gradient_checkpointing", "'on'"),
                ("rl.updates_per_batch", "1"),
            ],
        )],
    },
    Paper {
        recipe: "alol_free",
        phases: &[phase(
            "rl",
            Learns::Tokens("verl/gpg", Advantage::Group(None), (0.0, 0.0), 0.0),
            2e-5,
            &[
                ("rl.source", "'data'"),
                ("rl.keep", "'positive'"),
                ("lora.rank", "64"),
                ("lora.alpha", "16.0"),
                ("rl.grad_clip", "0.3"),
                ("rl.lr_schedule", "'constant'"),
            ],
        )],
    },
    Paper {
        recipe: "ask",
        phases: &[phase(
            "rl",
            Learns::Tokens("reft", Advantage::Gae(0.95), (0.0, 0.0), 0.0),
            RL_RATE,
            &[
                ("env.kind", "'ask'"),
                ("env.credit", "'turn'"),
                ("env.question_cost", "0.1"),
                ("rl.beta", "0.0"),
                ("value.gamma", "1.0"),
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
        recipe: "cfg_distil",
        phases: &[phase(
            "distill",
            Learns::Guided(3.0),
            1e-5,
            &[
                ("distill.source", "'rollout'"),
                ("distill.divergence", "'reverse_kl'"),
                ("distill.guidance", "3.0"),
                ("rl.temperature", "1.0"),
            ],
        )],
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
        recipe: "curve",
        phases: &[
            size("n64", &[("sft.demos", "64"), ("sft.epochs", "1")]),
            size("n128", &[("sft.demos", "128"), ("sft.epochs", "1")]),
            size("n256", &[("sft.demos", "256"), ("sft.epochs", "1")]),
            size("n512", &[("sft.demos", "512"), ("sft.epochs", "1")]),
            size("n1024", &[("sft.demos", "1024"), ("sft.epochs", "1")]),
            size("n2048", &[("sft.demos", "2048"), ("sft.epochs", "1")]),
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
        recipe: "forgetting",
        phases: &[
            phase("first", Learns::Texts, SFT_RATE, &[]),
            phase("second", grpo("grpo", 0.04), RL_RATE, &[("rl.group", "8")]),
        ],
    },
    Paper {
        recipe: "ftpedel",
        phases: &[
            phase("collect", Learns::Nothing, 0.0, &[("value.collect_steps", "16")]),
            phase(
                "rl",
                grpo("grpo", 0.0),
                RL_RATE,
                &[("rl.replay_window", "256"), ("rl.replay_share", "0.5"), ("rl.group", "8")],
            ),
        ],
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
        recipe: "groups",
        phases: &[phase(
            "sft",
            Learns::Texts,
            2e-6,
            &[("sft.layer_decay", "0.9"), ("sft.freeze_share", "0.25")],
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
];
