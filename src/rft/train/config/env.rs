//! Episodes: their limits, and what cannot be had with them.

use crate::reward::command::CommandOptions;
use crate::train::config::{EnvConfig, RunConfig};
use crate::train::env::{self, Limits};
use crate::train::phase::scored::crosses;
use gradus::error::{Error, Result};

impl EnvConfig {
    /// The limits of episodes whose answers have at most `answer` tokens.
    pub(crate) fn limits(&self, answer: usize) -> Limits {
        let twice = answer.saturating_mul(2).saturating_mul(self.max_turns);
        let tokens = if self.max_tokens == 0 { twice } else { self.max_tokens };
        Limits { turns: self.max_turns, tokens, answer }
    }
}

impl RunConfig {
    /// Refuses a name that is no environment's, and keys that are about a completion of one turn.
    pub(super) fn validate_env(&self) -> Result<()> {
        if self.env.kind.is_empty() {
            return Ok(());
        }
        env::made(&self.env.kind, CommandOptions::default())?;
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
}
