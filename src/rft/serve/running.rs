//! A choice that is being decoded.

use std::sync::Arc;

use super::engine::{Event, Finish, Job};
use super::text::{Piece, Spoken};
use crate::text::Codec;
use gradus::error::Result;
use gradus::rng::Rng;

/// A token that was drawn for a choice.
pub(super) struct Drawn {
    pub id: i32,
    pub logp: f32,
    /// Likeliest tokens of its place, the likeliest first, at least as many as the job asks for.
    pub top: Vec<(i32, f32)>,
}

/// A choice with its slot of the cache.
pub(super) struct Running {
    pub job: Arc<Job>,
    /// Its number in the request.
    choice: usize,
    pub slot: usize,
    rng: Rng,
    /// The last token.
    pub last: i32,
    drawn: usize,
    text: Spoken,
    pub done: bool,
}

impl Running {
    /// Choice `choice` of `job`, before its first token.
    pub fn new(job: Arc<Job>, choice: usize, slot: usize, rng: Rng) -> Running {
        let (choice, text) = (job.first + choice, Spoken::default());
        Running { job, choice, slot, rng, last: 0, drawn: 0, text, done: false }
    }

    /// The draw for its next token.
    pub fn uniform(&self) -> f64 {
        self.rng.uniform_at(self.drawn as u32)
    }

    /// Appends a token and tells whoever asked.
    pub fn take(&mut self, codec: &dyn Codec, drawn: Drawn) {
        let job = self.job.clone();
        let Drawn { id, logp, mut top } = drawn;
        (self.last, self.drawn) = (id, self.drawn + 1);
        top.truncate(job.top);
        let event = match self.piece(codec, &job, id) {
            Ok((piece, finish)) => {
                self.done = finish.is_some();
                let choice = self.choice;
                // A closed channel frees the slot in the next turn.
                let _ = job.events.send(Event::Token { choice, id, logp, top, text: piece.text });
                finish.map(|finish| Event::End { choice, finish })
            }
            Err(error) => {
                self.done = true;
                Some(Event::Failed { status: 500, reason: error.to_string() })
            }
        };
        event.into_iter().for_each(|event| drop(job.events.send(event)));
    }

    /// The text that token `id` completes, and why the choice ends with it, if it does.
    fn piece(&mut self, codec: &dyn Codec, job: &Job, id: i32) -> Result<(Piece, Option<Finish>)> {
        if job.stops.contains(&id) {
            return Ok((self.text.finish(codec, &job.stop, job.spelled)?, Some(Finish::Stop)));
        }
        let mut piece = self.text.push(codec, id, &job.stop, job.spelled)?;
        if !piece.ends && self.drawn >= job.allowed {
            let rest = self.text.finish(codec, &job.stop, job.spelled)?;
            piece = Piece { text: piece.text + &rest.text, ends: rest.ends };
        }
        let finish = match (piece.ends, self.drawn >= job.allowed) {
            (true, _) => Some(Finish::Stop),
            (false, true) => Some(Finish::Length),
            (false, false) => None,
        };
        Ok((piece, finish))
    }
}
