//! Keys that name one of a few things.

use crate::near::did_you_mean;
use crate::train::config::section::Choice;

/// Declares an enum whose variants a configuration names: each variant once, with its documentation and
/// its name.
macro_rules! choice {
    (
        $(#[$meta:meta])*
        $name:ident { $(#[doc = $doc:literal] $variant:ident = $text:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $(#[doc = $doc] $variant,)* }

        impl $name {
            /// All of them, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// Its name in files.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }

        impl $crate::train::config::section::Setting for $name {
            const CHOICES: &'static [$crate::train::config::section::Choice] =
                &[$(($text, $doc)),*];
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> std::result::Result<$name, String> {
                match text {
                    $($text => Ok($name::$variant),)*
                    other => Err($crate::train::config::choice::refusal(
                        other,
                        <$name as $crate::train::config::section::Setting>::CHOICES,
                    )),
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
                to.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<$name, D::Error> {
                let text = String::deserialize(from)?;
                text.parse().map_err(<D::Error as serde::de::Error>::custom)
            }
        }
    };
}

pub(crate) use choice;

/// Why `text` is none of `choices`.
pub(crate) fn refusal(text: &str, choices: &[Choice]) -> String {
    let known: Vec<&str> = choices.iter().map(|choice| choice.0).collect();
    let meant = did_you_mean(text, known.iter().copied());
    format!("`{text}` is not one of {}{meant}", known.join(", "))
}

choice! {
    /// `env.history`.
    HistoryKey {
        /// What the chat template prints, which has to be what was sampled.
        Template = "template",
        /// What was sampled, also where the chat template would leave reasoning out.
        AsSampled = "as_sampled",
    }
}

choice! {
    /// `env.credit`.
    CreditKey {
        /// Each episode has one reward, the sum of its turns', at its last token.
        Episode = "episode",
        /// Each turn has its own reward at the last token of its answer.
        Turn = "turn",
    }
}

choice! {
    /// `task.name`.
    TaskName {
        /// Countdown-lite, from digits and operators.
        Countdown = "countdown",
    }
}

choice! {
    /// `data.format`.
    DataFormat {
        /// By the columns of the first row.
        Auto = "auto",
        /// The column `prompt`, a text or messages.
        Prompt = "prompt",
        /// The column `messages`, whose last answer is the demonstration.
        Messages = "messages",
        /// The columns `question` and `answer`, with the number behind `####`.
        Gsm8k = "gsm8k",
        /// The columns `nums` and `target`.
        Countdown = "countdown",
    }
}

choice! {
    /// `data.chat`.
    ChatSetting {
        /// If the model has one.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}

choice! {
    /// `model.dtype`.
    ModelDtype {
        /// 32-bit floats.
        F32 = "f32",
        /// 16-bit floats with the exponent of f32.
        Bf16 = "bf16",
    }
}

choice! {
    /// `quantize.type`.
    QuantizeType {
        /// 4-bit NormalFloat.
        Nf4 = "nf4",
        /// 4-bit floats.
        Fp4 = "fp4",
        /// Adapters on weights as they are.
        None = "none",
    }
}

choice! {
    /// `rl.source`.
    SourceKey {
        /// The policy, which answers prompts.
        Rollout = "rollout",
        /// The answers and scores of data.path.
        Data = "data",
    }
}

choice! {
    /// `reward.combine`.
    CombineKey {
        /// Their weighted sum.
        Sum = "sum",
        /// Their weighted harmonic mean, 0 where one is 0 or below.
        Harmonic = "harmonic",
        /// The least of them, weighted.
        Min = "min",
    }
}

choice! {
    /// `rl.gradient_checkpointing`.
    CheckpointingKey {
        /// Where a run would not fit into memory otherwise.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}

choice! {
    /// `rl.advantage`.
    AdvantageKey {
        /// The preset's.
        Auto = "auto",
        /// Against the mean of the prompt's group.
        Group = "group",
        /// Against the mean of the group's others, leave one out.
        Loo = "loo",
        /// By a critic.
        Gae = "gae",
        /// The reward itself.
        Reward = "reward",
        /// 1 for every completion that has a reward.
        One = "one",
    }
}

choice! {
    /// `rl.scale`.
    ScaleKey {
        /// The preset's.
        Auto = "auto",
        /// The group's standard deviation.
        Group = "group",
        /// The batch's standard deviation.
        Batch = "batch",
        /// By nothing.
        None = "none",
    }
}

choice! {
    /// `rl.kl`.
    KlKey {
        /// Where the preset has it.
        Auto = "auto",
        /// A term of the loss.
        Loss = "loss",
        /// Taken off the reward.
        Reward = "reward",
    }
}

choice! {
    /// `rl.keep`.
    KeepKey {
        /// All of them.
        All = "all",
        /// The best of each prompt.
        Best = "best",
        /// The share rl.keep_share of the batch, the best.
        Top = "top",
        /// Those with at least the reward rl.keep_threshold.
        Threshold = "threshold",
        /// Those with an advantage above 0.
        Positive = "positive",
    }
}

choice! {
    /// `rl.importance_sampling`: what becomes of the ratio of the policy before the updates to the one
    /// that sampled.
    ImportanceKey {
        /// Nothing: every token weighs 1.
        None = "none",
        /// A token's own, cut at the cap.
        TokenTruncate = "token_truncate",
        /// A token's own, 0 above the cap.
        TokenMask = "token_mask",
        /// The sequence's, cut at the cap.
        SequenceTruncate = "sequence_truncate",
        /// The sequence's, 0 above the cap.
        SequenceMask = "sequence_mask",
    }
}

choice! {
    /// `distill.source`.
    DistillSource {
        /// The policy's own rollouts.
        Rollout = "rollout",
        /// Demonstrations.
        Demos = "demos",
    }
}

choice! {
    /// `distill.divergence`, of the policy q and the teacher p.
    DivergenceKey {
        /// KL(q‖p): the policy writes nothing that the teacher would not.
        ReverseKl = "reverse_kl",
        /// KL(p‖q): the policy covers all that the teacher would write.
        ForwardKl = "forward_kl",
        /// Between the two, as GKD has it.
        Jsd = "jsd",
    }
}

choice! {
    /// `distill.rest`: what becomes of the tokens beyond the teacher's k likeliest.
    RestKey {
        /// They are left out, and both distributions normalized over the k.
        Drop = "drop",
        /// They are one token more, which has what the k leave.
        Bucket = "bucket",
    }
}

choice! {
    /// `rl.optim`.
    OptimizerKey {
        /// Moments beside the parameters.
        AdamW = "adamw",
        /// Moments in host memory, brought to the GPU in chunks.
        PagedAdamW = "paged_adamw",
    }
}

choice! {
    /// `sft.lr_schedule` and `rl.lr_schedule`.
    Schedule {
        /// The peak all the way.
        Constant = "constant",
        /// Down to 0 in a straight line.
        Linear = "linear",
        /// Down to 0 along half a cosine.
        Cosine = "cosine",
    }
}

choice! {
    /// `rl.control`.
    Control {
        /// The run itself.
        None = "none",
        /// Rewards are dealt out at random.
        ShuffledRewards = "shuffled_rewards",
        /// Nothing moves.
        ZeroLr = "zero_lr",
    }
}

impl Schedule {
    /// Factor of the peak at `step` of `total`.
    pub fn factor(self, step: u64, total: u64) -> f64 {
        let done = step as f64 / total.max(1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
}
