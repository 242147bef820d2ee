//! Keys that name one of a few things.

use gradus::error::{Error, Result};

macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$doc])* $variant),* }

        impl $name {
            /// What `text`, the value of `key`, stands for.
            pub fn parse(key: &str, text: &str) -> Result<$name> {
                match text {
                    $($text => Ok($name::$variant),)*
                    other => {
                        let known = [$($text),*].join(", ");
                        Err(Error::config(key, format!("`{other}` is not one of {known}")))
                    }
                }
            }
        }
    };
}

choice! {
    /// `rl.advantage`.
    AdvantageKey {
        /// The preset's.
        Auto = "auto",
        /// Against the mean of the group.
        Group = "group",
        /// Against the mean of the others.
        Loo = "loo",
        /// By a critic.
        Gae = "gae",
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
        /// 1.
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
        /// No control: the run itself.
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
