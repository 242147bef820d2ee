//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
//! as 1, 2, 3", SC'11). A draw is a pure function of (key, counter), so there is no hidden
//! position to save: resuming a run needs only the seed and the step.

/// One Philox4x32-10 block: four independent 32-bit words for one (counter, key) pair.
#[inline]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p0 = 0xD251_1F53u64 * c0 as u64;
        let p1 = 0xCD9E_8D57u64 * c2 as u64;
        (c0, c1, c2, c3) =
            ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// What a stream of draws is for; part of the key, so that streams never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Parameter initialization.
    Init = 1,
    /// Task and data generation.
    Data = 2,
    /// Order of prompts and demonstrations.
    Shuffle = 3,
    /// Token sampling.
    Sample = 4,
    /// Evaluation sampling.
    Eval = 5,
    /// Controls such as shuffled rewards.
    Control = 6,
    /// Free for callers and tests.
    User = 7,
    /// Masks of dropout.
    Dropout = 8,
}

/// A number that `words` make of `key`, one Philox block a word: other words, another number.
pub fn fold(key: u64, words: &[u64]) -> u64 {
    words.iter().enumerate().fold(key, |key, (i, &word)| {
        let key = [key as u32, (key >> 32) as u32];
        let [low, high, ..] = philox([word as u32, (word >> 32) as u32, i as u32, 1], key);
        low as u64 | (high as u64) << 32
    })
}

/// A keyed stream: (seed, purpose, a, b, c) names it, the draw index is its only state. The
/// trainer keys token draws by (step, prompt, sample) and indexes them by token position.
#[derive(Clone, Debug)]
pub struct Rng {
    key: [u32; 2],
    words: [u32; 3],
    index: u32,
    block: [u32; 4],
    used: usize,
}

impl Rng {
    /// What the streams of `seed` and `purpose` have in common.
    pub fn key(seed: u64, purpose: Purpose) -> u64 {
        let mix = philox([seed as u32, (seed >> 32) as u32, purpose as u32, 0], [0x6772_6164, 0]);
        mix[0] as u64 | (mix[1] as u64) << 32
    }

    /// The stream named by `seed`, `purpose` and up to three coordinates.
    pub fn new(seed: u64, purpose: Purpose, coordinates: [u32; 3]) -> Rng {
        let key = Rng::key(seed, purpose);
        Rng {
            key: [key as u32, (key >> 32) as u32],
            words: coordinates,
            index: 0,
            block: [0; 4],
            used: 4,
        }
    }

    /// The uniform draw number `index` of this stream, without moving it.
    pub fn uniform_at(&self, index: u32) -> f64 {
        let w = philox([index, self.words[0], self.words[1], self.words[2]], self.key);
        unit(w[0], w[1])
    }

    /// Next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            let [a, b, c] = self.words;
            // The top bit keeps sequential draws apart from `uniform_at` draws.
            self.block = philox([self.index | 0x8000_0000, a, b, c], self.key);
            self.index += 1;
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// Uniform in [0, 1) with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        let (a, b) = (self.next_u32(), self.next_u32());
        unit(a, b)
    }

    /// Uniform integer below `n` (n > 0) without modulo bias that matters (n < 2^32, 53 bits).
    pub fn below(&mut self, n: usize) -> usize {
        ((self.uniform() * n as f64) as usize).min(n - 1)
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Fisher-Yates shuffle.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

fn unit(a: u32, b: u32) -> f64 {
    let bits = ((a as u64) << 21) ^ (b as u64 >> 11);
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution.
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn uniform_and_normal_have_the_right_moments() {
        let mut rng = Rng::new(7, Purpose::User, [1, 2, 3]);
        let n = 40_000;
        let (mut mean, mut mean_n, mut var_n) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            mean += rng.uniform() / n as f64;
            let z = rng.normal();
            mean_n += z / n as f64;
            var_n += z * z / n as f64;
        }
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!(mean_n.abs() < 0.02 && (var_n - 1.0).abs() < 0.03, "{mean_n} {var_n}");
    }
}
