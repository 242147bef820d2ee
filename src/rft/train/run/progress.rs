//! One live line on a terminal, one plain line now and then anywhere else.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use gradus::escape::escaped;

/// Seconds between plain lines.
const PLAIN_EVERY: f64 = 5.0;

/// Progress of one phase.
pub struct Progress {
    bar: Option<ProgressBar>,
    phase: String,
    total: u64,
    begun: Instant,
    first: u64,
    last_line: Option<Instant>,
}

impl Progress {
    /// A phase of `total` steps that starts at step `first`.
    pub fn new(phase: &str, first: u64, total: u64) -> Progress {
        let plain = std::env::var_os("NO_COLOR").is_some()
            || std::env::var("TERM").is_ok_and(|term| term == "dumb")
            || !std::io::stderr().is_terminal();
        let bar = (!plain).then(|| {
            let bar =
                ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            let template = "{prefix:>8} {pos:>5}/{len} {bar:24.green} {msg} eta {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("━━╌"));
            }
            bar.set_prefix(phase.to_string());
            bar.set_position(first);
            bar.reset_eta();
            bar
        });
        let phase = phase.to_string();
        Progress { bar, phase, total, begun: Instant::now(), first, last_line: None }
    }

    /// Shows that `done` steps are done; `message` makes the text, and is called only when a line
    /// is shown.
    pub fn update(&mut self, done: u64, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message());
            return;
        }
        let due = self.last_line.is_none_or(|t| t.elapsed().as_secs_f64() >= PLAIN_EVERY);
        if !(due || done == self.total) {
            return;
        }
        self.last_line = Some(Instant::now());
        let rate = self.begun.elapsed().as_secs_f64() / (done - self.first).max(1) as f64;
        let eta = rate * (self.total - done) as f64;
        let (phase, total, message) = (&self.phase, self.total, message());
        line(&format!("{phase:>8} {done:>5}/{total} {message} eta {eta:.0}s"));
    }

    /// Ends the live line.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish();
        }
    }
}

/// A line on stderr, its control characters escaped; a closed pipe is not an error.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", escaped(text));
}
