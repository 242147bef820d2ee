//! Episodes: their limits, and what cannot be had with them.

use crate::reward::command::CommandOptions;
use crate::train::config::{Control, CreditKey, EnvConfig, RunConfig};
use crate::train::env::{self, Limits, ROUNDS, Rounds};
use crate::train::phase::scored::crosses;
use gradus::error::{Error, Result};

impl EnvConfig {
    /// The limits of episodes whose answers have at most `answer` tokens; of rounds those of one round.
    pub(crate) fn limits(&self, answer: usize) -> Limits {
        let most = match self.kind == ROUNDS {
            // What a round carries over, and its own answer. An answer that is read again may have three times
            // the tokens: that many bytes stand for one that is no text.
            true => answer.saturating_mul(5),
            false => answer.saturating_mul(2).saturating_mul(self.max_turns),
        };
        let tokens = if self.max_tokens == 0 { most } else { self.max_tokens };
        let tokens = if self.kind == ROUNDS { tokens.max(answer) } else { tokens };
        Limits { turns: self.max_turns, tokens, answer }
    }
}

impl RunConfig {
    /// Refuses a name that is no environment's, and keys that are about a completion of one turn.
    pub(super) fn validate_env(&self) -> Result<()> {
        if self.env.kind.is_empty() {
            return Ok(());
        }
        env::made(&self.env, CommandOptions::default())?;
        self.validate_rounds()?;
        for (key, set, what) in [
            ("sft.template", !self.sft.template.is_empty(), "writes a completion of one turn"),
            (
                "rl.overlong_buffer",
                self.rl.overlong_buffer > 0,
                "is about the length of one answer",
            ),
            ("rl.loss", crosses(self)?, "`info_nce` compares contexts of one completion"),
        ] {
            if set {
                let reason = format!("{what}, and env.kind = {} has several", self.env.kind);
                return Err(Error::config(key, reason));
            }
        }
        Ok(())
    }

    /// Refuses rewards by turn where nothing could give them to tokens of their own; `critic`: whether advantages
    /// are a critic's.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn check_credit(&self, critic: bool) -> Result<()> {
        if self.env.credit == CreditKey::Episode {
            return Ok(());
        }
        let plays = !self.env.kind.is_empty() && self.env.kind != ROUNDS;
        let reason = if !plays {
            "but no env.kind is set in which turns have rewards"
        } else if !critic {
            "but only rl.advantage = gae has advantages that differ by token"
        } else if self.rl.control == Control::ShuffledRewards {
            "but rl.control = shuffled_rewards deals out the rewards of whole episodes"
        } else if self.rl.replay_window > 0 {
            "but rl.replay_window keeps the rewards of whole episodes alone"
        } else {
            return Ok(());
        };
        Err(Error::config("env.credit", format!("`turn`, {reason}")))
    }

    /// Continuations draw from streams behind those of the samples, and a later round needs room.
    fn validate_rounds(&self) -> Result<()> {
        let EnvConfig { kind, continuations, carry, .. } = &self.env;
        if kind != ROUNDS {
            return Ok(());
        }
        Rounds::new(carry, *continuations, "")?;
        let streams = self.rl.group.max(self.eval.samples) * (1 + continuations);
        if streams > STREAMS {
            let reason = format!(
                "{continuations} of each of {} samples are {streams} streams of draws with the samples' own; \
                 {STREAMS} are the most",
                self.rl.group.max(self.eval.samples)
            );
            return Err(Error::config("env.continuations", reason));
        }
        Ok(())
    }
}

/// Streams of draws that a prompt has.
const STREAMS: usize = 1 << 16;
