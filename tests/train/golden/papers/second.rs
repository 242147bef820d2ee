//! Recipes from L to Z.

use super::{Learns, Paper, RL_RATE, SFT_RATE, grpo, phase, remix, round};
use crate::objective::Advantage;

pub const PAPERS: &[Paper] = &[
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
        recipe: "love",
        phases: &[
            phase("sft", Learns::Texts, SFT_RATE, &[("sft.epochs", "1")]),
            phase(
                "rl",
                Learns::Tokens("reft", Advantage::Gae(0.95), (0.0, 0.0), 0.0),
                RL_RATE,
                &[("env.kind", "'zoom'"), ("env.credit", "'turn'"), ("value.gamma", "1.0")],
            ),
        ],
    },
    Paper {
        recipe: "mine",
        phases: &[phase(
            "rl",
            Learns::Tokens("ce", Advantage::One, (0.0, 0.0), 0.0),
            2e-5,
            &[("rl.source", "'data'"), ("rl.keep", "'top'"), ("rl.keep_share", "0.1")],
        )],
    },
    Paper {
        recipe: "motif",
        phases: &[phase(
            "rl",
            grpo("grpo", 0.0),
            5e-6,
            &[
                ("env.kind", "'rounds'"),
                ("env.max_turns", "3"),
                ("env.continuations", "4"),
                ("quantize.type", "'nf4'"),
                ("rl.group", "8"),
                ("rl.beta2", "0.99"),
                ("rl.weight_decay", "0.1"),
                ("rl.grad_clip", "0.1"),
            ],
        )],
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
        recipe: "musicrl",
        phases: &[
            phase(
                "quality",
                Learns::Tokens("verl/gpg", Advantage::Raw, (0.04, 0.0), 0.0),
                RL_RATE,
                &[
                    ("rl.temperature", "0.99"),
                    ("rl.fresh_reference", "false"),
                    ("value.lambda", "1.0"),
                    ("value.gamma", "1.0"),
                    ("value.whiten", "false"),
                ],
            ),
            phase(
                "preference",
                Learns::Tokens("verl/gpg", Advantage::Raw, (0.04, 0.0), 0.0),
                1e-5,
                &[("rl.temperature", "0.99"), ("rl.fresh_reference", "true")],
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
        recipe: "prefix_rft",
        phases: &[phase(
            "rl",
            Learns::Tokens("prefix_rft", Advantage::Group(None), (0.0, 0.0), 1e-3),
            RL_RATE,
            &[
                ("rl.group", "8"),
                ("rl.steps", "500"),
                ("rl.prefix_samples", "1"),
                ("rl.prefix_share", "[0.05, 0.95]"),
                ("rl.prefix_steps", "500"),
                ("rl.prefix_quantile", "0.2"),
            ],
        )],
    },
    Paper {
        recipe: "proactive",
        phases: &[phase(
            "rl",
            grpo("grpo", 0.0),
            RL_RATE,
            &[
                ("env.kind", "'ask'"),
                ("env.credit", "'episode'"),
                ("env.question_cost", "0.05"),
                ("env.question_value", "0.2"),
            ],
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
        recipe: "remix",
        phases: &[
            phase(
                "mix",
                remix(1.0),
                RL_RATE,
                &[
                    ("rl.updates_per_batch", "2"),
                    ("rl.replay_window", "2"),
                    ("rl.replay_share", "0.4"),
                    ("rl.kl_share", "1.0"),
                    ("rl.steps", "50"),
                ],
            ),
            phase(
                "mix9",
                remix(0.9),
                1e-5,
                &[
                    ("rl.updates_per_batch", "2"),
                    ("rl.replay_window", "2"),
                    ("rl.replay_share", "0.4"),
                    ("rl.kl_share", "0.9"),
                    ("rl.steps", "10"),
                ],
            ),
            phase(
                "mix8",
                remix(0.8),
                1e-5,
                &[
                    ("rl.updates_per_batch", "2"),
                    ("rl.replay_window", "2"),
                    ("rl.replay_share", "0.4"),
                    ("rl.kl_share", "0.8"),
                    ("rl.steps", "10"),
                ],
            ),
            phase(
                "mix7",
                remix(0.7),
                1e-5,
                &[
                    ("rl.updates_per_batch", "2"),
                    ("rl.replay_window", "2"),
                    ("rl.replay_share", "0.4"),
                    ("rl.kl_share", "0.7"),
                    ("rl.steps", "10"),
                ],
            ),
            phase(
                "mix6",
                remix(0.6),
                1e-5,
                &[
                    ("rl.updates_per_batch", "2"),
                    ("rl.replay_window", "2"),
                    ("rl.replay_share", "0.4"),
                    ("rl.kl_share", "0.6"),
                    ("rl.steps", "10"),
                ],
            ),
            phase(
                "mix5",
                remix(0.5),
                1e-5,
                &[
                    ("rl.updates_per_batch", "2"),
                    ("rl.replay_window", "2"),
                    ("rl.replay_share", "0.4"),
                    ("rl.kl_share", "0.5"),
                    ("rl.steps", "10"),
                ],
            ),
            phase(
                "on_policy",
                remix(1.0),
                1e-5,
                &[
                    ("rl.updates_per_batch", "1"),
                    ("rl.replay_window", "0"),
                    ("rl.fresh_reference", "true"),
                ],
            ),
        ],
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
        recipe: "rif_rft",
        phases: &[
            phase(
                "probe",
                Learns::Nothing,
                0.0,
                &[
                    ("rl.keep", "'threshold'"),
                    ("rl.keep_threshold", "1.0"),
                    ("rl.store", "'solved'"),
                    ("rl.group", "8"),
                ],
            ),
            phase("rl", grpo("grpo", 0.0), RL_RATE, &[("rl.prompts_of", "'solved'")]),
        ],
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
        recipe: "sft_mix",
        phases: &[phase(
            "sft",
            Learns::Texts,
            SFT_RATE,
            &[("data.mix", "'task'"), ("data.mix_power", "0.5"), ("sft.prompt_weight", "0.0")],
        )],
    },
    Paper {
        recipe: "skywork",
        phases: &[phase(
            "rl",
            grpo("grpo", 0.0),
            RL_RATE,
            &[
                ("rl.group", "32"),
                ("rl.updates_per_batch", "1"),
                ("reward.functions", "['0.8*numeric', '0.2*format']"),
                ("checkpoint.best", "'entropy/watched'"),
            ],
        )],
    },
    Paper {
        recipe: "subnet",
        phases: &[phase("rl", grpo("grpo", 0.0), 1e-7, &[("rl.group", "8")])],
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
        recipe: "ui_venus",
        phases: &[phase(
            "rl",
            grpo("deepseekmath_grpo", 4e-3),
            4e-7,
            &[
                ("rl.group", "8"),
                ("reward.functions", "['point', 'format']"),
                ("data.mix", "'action'"),
            ],
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
        recipe: "vla_rl",
        phases: &[
            phase("collect", Learns::Nothing, 0.0, &[("env.kind", "'grid'")]),
            phase("value_fit", Learns::Returns, 0.0, &[("value.fit_steps", "5")]),
            phase(
                "rl",
                Learns::Tokens("reft", Advantage::Walk(0.99, 0.95), (0.0, 0.0), 0.0),
                RL_RATE,
                &[
                    ("env.kind", "'grid'"),
                    ("env.credit", "'turn'"),
                    ("rl.temperature", "1.5"),
                    ("rl.clip_high", "0.2"),
                    ("rl.clip_low", "0.2"),
                    ("rl.grad_clip", "1.0"),
                    ("value.gamma", "0.99"),
                    ("value.clip", "0.2"),
                    ("value.coef", "0.0"),
                    ("value.whiten", "false"),
                ],
            ),
        ],
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
