//! How long the first reply of a fresh worker may take.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A busy machine starts a command so many times more slowly than it has done before.
const MARGIN: u32 = 10;

/// What the pool knows of its command's start.
pub struct Startup {
    most: Duration,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The first worker's start.
    begun: Option<Instant>,
    /// The longest time from a worker's start to its first reply.
    needed: Option<Duration>,
    /// There has been a reply.
    answered: bool,
}

impl Startup {
    pub fn new(most: Duration) -> Startup {
        Startup { most, seen: Mutex::default() }
    }

    /// A worker is started.
    pub fn begin(&self) {
        self.seen().begun.get_or_insert_with(Instant::now);
    }

    /// A worker has answered; `first` is what it took since its start, if it is its first reply.
    pub fn answered(&self, first: Option<Duration>) {
        let mut seen = self.seen();
        seen.answered = true;
        seen.needed = seen.needed.max(first);
    }

    pub fn has_answered(&self) -> bool {
        self.seen().answered
    }

    /// The extra time of a first reply that is asked for now.
    pub fn grace(&self) -> Duration {
        let seen = self.seen();
        match (seen.needed, seen.begun) {
            (Some(needed), _) => self.most.min(MARGIN * needed),
            (None, Some(begun)) => self.most.saturating_sub(begun.elapsed()),
            (None, None) => self.most,
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For the message about a command that has never answered.
impl fmt::Display for Startup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self.most.as_secs_f64();
        write!(f, "it has never answered: one that starts slowly needs a startup over {most} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_is_the_pools_and_not_each_workers() {
        let most = Duration::from_secs(60);
        let startup = Startup::new(most);
        assert_eq!(startup.grace(), most);
        startup.begin();
        std::thread::sleep(Duration::from_millis(20));
        startup.begin();
        assert!(startup.grace() <= most - Duration::from_millis(20));
        assert!(!startup.has_answered());
        // Once a worker has answered, others get ten times its time, and never more than the whole.
        for (took, grace) in [(3, 30), (2, 30), (40, 60)] {
            startup.answered(Some(Duration::from_secs(took)));
            startup.answered(None);
            assert_eq!(startup.grace(), Duration::from_secs(grace));
        }
        assert!(startup.has_answered());
    }
}
