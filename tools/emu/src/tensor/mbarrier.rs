//! The state machine of an mbarrier object, packed into the 64 bits it has in shared memory.
//!
//! A barrier counts down *arrivals* of threads and *bytes* of asynchronous copies. When both reach
//! zero the phase completes: the arrivals start again from the expected count, and the phase
//! number grows by one. A waiter asks whether the phase of a given parity has completed.
//!
//! | bits | field |
//! |---|---|
//! | 0..20 | pending arrivals of the current phase |
//! | 20..40 | expected arrivals of the next phase |
//! | 40..61 | bytes announced and not yet delivered (tx-count), two's complement |
//! | 61..63 | phase number modulo 4 |
//! | 63 | 1: the object is initialized |
//!
//! The device's encoding is opaque; this one is ours. A state token, which `mbarrier.arrive`
//! returns, is the object as it was before the arrival.
//!
//! # Waiting by parity
//!
//! `wait(p)` is true if the current phase number has a parity other than `p`: the phase of parity
//! `p` before it is complete. A fresh barrier is in phase 0, so `wait(1)` is true at once, which
//! is what a producer of empty buffers relies on, and `wait(0)` waits for the first completion.

/// Largest number of arrivals and of outstanding bytes.
pub const MAX_COUNT: u32 = (1 << 20) - 1;

/// An mbarrier object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mbarrier {
    pending: u32,
    expected: u32,
    tx: i32,
    phase: u8,
}

/// The opaque value that an arrival returns.
pub type Token = u64;

impl Mbarrier {
    /// `mbarrier.init`: phase 0, `count` arrivals expected.
    ///
    /// # Errors
    ///
    /// `count` is 0 or above [`MAX_COUNT`].
    pub fn init(count: u32) -> Result<Self, String> {
        if !(1..=MAX_COUNT).contains(&count) {
            return Err(format!(
                "mbarrier.init with a count of {count}, expected 1 to {MAX_COUNT}"
            ));
        }
        Ok(Self { pending: count, expected: count, tx: 0, phase: 0 })
    }

    /// The value that `mbarrier.inval` leaves: not a barrier.
    pub const INVALID: u64 = 0;

    /// Reads the object from shared memory.
    ///
    /// # Errors
    ///
    /// The 64 bits are not an initialized barrier.
    pub fn unpack(bits: u64) -> Result<Self, String> {
        let field = |low: u32, width: u32| (bits >> low & ((1 << width) - 1)) as u32;
        let barrier = Self {
            pending: field(0, 20),
            expected: field(20, 20),
            tx: ((field(40, 21) << 11) as i32) >> 11,
            phase: field(61, 2) as u8,
        };
        if bits >> 63 == 0 {
            return Err("the mbarrier is not initialized, or was invalidated".into());
        }
        Ok(barrier)
    }

    /// The 64 bits that shared memory holds.
    #[must_use]
    pub fn pack(&self) -> u64 {
        1 << 63
            | u64::from(self.phase) << 61
            | u64::from(self.tx as u32 & 0x1f_ffff) << 40
            | u64::from(self.expected) << 20
            | u64::from(self.pending)
    }

    /// Arrivals the current phase still waits for.
    #[must_use]
    pub const fn pending(&self) -> u32 {
        self.pending
    }

    /// Bytes announced and not delivered; negative if delivered before they were announced.
    #[must_use]
    pub const fn outstanding_bytes(&self) -> i32 {
        self.tx
    }

    /// Number of the current phase modulo 4.
    #[must_use]
    pub const fn phase(&self) -> u8 {
        self.phase
    }

    /// `mbarrier.arrive` with a count: the token of the phase arrived at.
    ///
    /// # Errors
    ///
    /// `count` is 0 or more than the pending arrivals; the barrier is unchanged.
    pub fn arrive(&mut self, count: u32) -> Result<Token, String> {
        self.check_arrival("mbarrier.arrive", count)?;
        let token = self.pack();
        self.pending -= count;
        self.settle();
        Ok(token)
    }

    /// `mbarrier.arrive.noComplete`: an arrival that must leave others pending.
    ///
    /// # Errors
    ///
    /// As [`Mbarrier::arrive`], and if the arrival would complete the phase.
    pub fn arrive_no_complete(&mut self, count: u32) -> Result<Token, String> {
        self.check_arrival("mbarrier.arrive.noComplete", count)?;
        self.check_no_completion("mbarrier.arrive.noComplete", count)?;
        self.arrive(count)
    }

    /// `mbarrier.arrive_drop`: arrives and leaves the later phases.
    ///
    /// # Errors
    ///
    /// As [`Mbarrier::arrive`], and if fewer arrivals than `count` are expected.
    pub fn arrive_drop(&mut self, count: u32) -> Result<Token, String> {
        self.check_arrival("mbarrier.arrive_drop", count)?;
        if count > self.expected {
            let expected = self.expected;
            return Err(format!("mbarrier.arrive_drop of {count} of {expected} expected arrivals"));
        }
        let token = self.pack();
        self.expected -= count;
        self.pending -= count;
        self.settle();
        Ok(token)
    }

    /// `mbarrier.arrive_drop.noComplete`.
    ///
    /// # Errors
    ///
    /// As [`Mbarrier::arrive_drop`] and [`Mbarrier::arrive_no_complete`].
    pub fn arrive_drop_no_complete(&mut self, count: u32) -> Result<Token, String> {
        self.check_no_completion("mbarrier.arrive_drop.noComplete", count)?;
        self.arrive_drop(count)
    }

    /// One more arrival in the current phase: `cp.async.mbarrier.arrive` without `.noinc`.
    ///
    /// # Errors
    ///
    /// The pending arrivals would pass [`MAX_COUNT`]; the barrier is unchanged.
    pub fn expect_arrival(&mut self) -> Result<(), String> {
        if self.pending == MAX_COUNT {
            return Err(format!("more than {MAX_COUNT} pending arrivals of an mbarrier"));
        }
        self.pending += 1;
        Ok(())
    }

    /// `mbarrier.expect_tx`: the current phase also waits for `bytes`.
    ///
    /// # Errors
    ///
    /// The outstanding bytes would pass [`MAX_COUNT`]; the barrier is unchanged.
    pub fn expect_tx(&mut self, bytes: u32) -> Result<(), String> {
        self.change_tx("mbarrier.expect_tx", i64::from(bytes))
    }

    /// `mbarrier.complete_tx`, and the end of an asynchronous copy of `bytes`.
    ///
    /// # Errors
    ///
    /// The outstanding bytes would fall below `-MAX_COUNT`; the barrier is unchanged.
    pub fn complete_tx(&mut self, bytes: u32) -> Result<(), String> {
        self.change_tx("complete_tx", -i64::from(bytes))
    }

    /// `mbarrier.arrive.expect_tx`: announces the bytes, then arrives once.
    ///
    /// # Errors
    ///
    /// As [`Mbarrier::expect_tx`] and [`Mbarrier::arrive`]; the barrier is unchanged.
    pub fn arrive_expect_tx(&mut self, bytes: u32) -> Result<Token, String> {
        let mut next = *self;
        // The bytes are added before anything can complete, and the arrival is still pending.
        next.check_arrival("mbarrier.arrive.expect_tx", 1)?;
        next.expect_tx(bytes)?;
        let token = next.arrive(1)?;
        *self = next;
        Ok(token)
    }

    /// `mbarrier.test_wait` and `try_wait` with a token: has the token's phase completed?
    ///
    /// # Errors
    ///
    /// The token is of neither the current phase nor the one before it.
    pub fn test_wait(&self, token: Token) -> Result<bool, String> {
        let phase =
            Self::unpack(token).map_err(|_| "the mbarrier state is no token".to_string())?;
        match self.phase.wrapping_sub(phase.phase) % 4 {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("the mbarrier token is of a phase before the preceding one".into()),
        }
    }

    /// `mbarrier.test_wait.parity` and `try_wait.parity`: has the phase of this parity completed?
    ///
    /// # Errors
    ///
    /// `parity` is neither 0 nor 1.
    pub fn test_wait_parity(&self, parity: u32) -> Result<bool, String> {
        if parity > 1 {
            return Err(format!("mbarrier wait for parity {parity}, expected 0 or 1"));
        }
        Ok(u32::from(self.phase % 2) != parity)
    }

    /// `mbarrier.pending_count` of a token.
    ///
    /// # Errors
    ///
    /// The value is no token.
    pub fn pending_count(token: Token) -> Result<u32, String> {
        Self::unpack(token)
            .map(|barrier| barrier.pending)
            .map_err(|_| "the mbarrier state is no token".into())
    }

    fn check_arrival(&self, name: &str, count: u32) -> Result<(), String> {
        if count == 0 {
            return Err(format!("{name} with a count of 0"));
        }
        if count > self.pending {
            let (pending, phase) = (self.pending, self.phase);
            return Err(format!(
                "{name} of {count} where {pending} arrivals are pending in phase {phase}"
            ));
        }
        Ok(())
    }

    fn check_no_completion(&self, name: &str, count: u32) -> Result<(), String> {
        if count == self.pending && self.tx == 0 {
            return Err(format!("{name} of the last {count} pending arrivals completes the phase"));
        }
        Ok(())
    }

    fn change_tx(&mut self, name: &str, change: i64) -> Result<(), String> {
        let tx = i64::from(self.tx) + change;
        if tx.abs() > i64::from(MAX_COUNT) {
            return Err(format!("{name}: {tx} outstanding bytes, expected at most {MAX_COUNT}"));
        }
        self.tx = tx as i32;
        self.settle();
        Ok(())
    }

    /// Completes the phase if nothing is pending.
    fn settle(&mut self) {
        if self.pending == 0 && self.tx == 0 {
            self.phase = (self.phase + 1) % 4;
            self.pending = self.expected;
        }
    }
}
