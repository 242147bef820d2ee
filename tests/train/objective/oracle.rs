//! One step in f64, from hidden states, a head, log-probs of sampler and reference, and rewards. What
//! is differentiated is `logp`; what a loss holds constant is `held`, and both have the same values at
//! the point of interest, so that central differences give the gradient of the paper.

/// A completion.
pub struct Sequence {
    pub group: usize,
    pub reward: f64,
    /// Target, hidden state before it, sampler's and reference's log-probs of each token.
    pub tokens: Vec<Token>,
}

pub struct Token {
    pub target: usize,
    pub hidden: Vec<f64>,
    pub old: f64,
    pub reference: f64,
    /// What it is paid before the sequence's reward, of which that is a part.
    pub turn: f64,
}

/// Log-prob of each target and entropy of each row under a head `[vocab, hidden]`.
pub fn scores(sequence: &Sequence, head: &[f64], temperature: f64) -> Vec<(f64, f64)> {
    let row = |token: &Token| {
        let z: Vec<f64> = head
            .chunks(token.hidden.len())
            .map(|w| w.iter().zip(&token.hidden).map(|(w, h)| w * h).sum::<f64>() / temperature)
            .collect();
        let top = z.iter().cloned().fold(f64::MIN, f64::max);
        let lse = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
        let entropy = z.iter().map(|z| -(z - lse).exp() * (z - lse)).sum();
        (z[token.target] - lse, entropy)
    };
    sequence.tokens.iter().map(row).collect()
}

fn mean(x: impl Iterator<Item = f64> + Clone) -> f64 {
    x.clone().sum::<f64>() / x.count() as f64
}

/// Standard deviation with Bessel's correction.
fn std(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let m = mean(x.clone());
    (x.clone().map(|x| (x - m).powi(2)).sum::<f64>() / (x.count() - 1) as f64).sqrt()
}

/// What rewards become.
#[derive(Clone, Copy)]
pub enum Advantage {
    /// (R − mean) / (σ + eps), or R − mean without eps.
    Group(Option<f64>),
    /// R − mean of the others.
    Others,
    /// λ-returns of a critic that says 0 everywhere, whitened over all tokens.
    Gae(f64),
    /// The same with γ, not whitened.
    Walk(f64, f64),
    /// R.
    Raw,
    /// 1.
    One,
}

/// Advantages of all tokens; `beta` of the log-ratio to the reference is taken off the rewards. A
/// sequence whose reward is NaN has no part in it.
pub fn advantages(kind: Advantage, beta: f64, batch: &[Sequence]) -> Vec<Vec<f64>> {
    let paid = |t: &Token| t.turn - beta * (t.old - t.reference);
    let total = |s: &Sequence| s.reward + s.tokens.iter().map(paid).sum::<f64>();
    let discount = match kind {
        Advantage::Gae(lambda) => Some(lambda),
        Advantage::Walk(gamma, lambda) => Some(gamma * lambda),
        Advantage::Group(_) | Advantage::Others | Advantage::Raw | Advantage::One => None,
    };
    if let Some(discount) = discount {
        let known = |s: &&Sequence| !s.reward.is_nan();
        let raw = |s: &Sequence| {
            let mut a = vec![0.0; s.tokens.len()];
            let mut next = 0.0;
            for t in (0..a.len()).rev() {
                let turns: f64 = s.tokens.iter().map(|t| t.turn).sum();
                let last = if t + 1 == a.len() { s.reward - turns } else { 0.0 };
                next = paid(&s.tokens[t]) + last + discount * next;
                a[t] = next;
            }
            a
        };
        let all: Vec<f64> = batch.iter().filter(known).flat_map(raw).collect();
        let (m, v) = match kind {
            Advantage::Walk(..) => (0.0, 1.0 - 1e-8),
            _ => (mean(all.iter().cloned()), std(all.iter().cloned()).powi(2)),
        };
        let white = |s: &Sequence| match s.reward.is_nan() {
            true => vec![0.0; s.tokens.len()],
            false => raw(s).into_iter().map(|a| (a - m) / (v + 1e-8).sqrt()).collect(),
        };
        return batch.iter().map(white).collect();
    }
    let of = |s: &Sequence| {
        if s.reward.is_nan() {
            return vec![0.0; s.tokens.len()];
        }
        let peers = batch.iter().filter(|p| p.group == s.group && !p.reward.is_nan());
        let (r, all) = (total(s), peers.map(total).collect::<Vec<_>>());
        let (n, sum) = (all.len() as f64, all.iter().sum::<f64>());
        let a = match kind {
            Advantage::Group(None) => r - sum / n,
            Advantage::Group(Some(eps)) => (r - sum / n) / (std(all.iter().cloned()) + eps),
            Advantage::Others => r - (sum - r) / (n - 1.0),
            Advantage::Raw => r,
            Advantage::One => 1.0,
            Advantage::Gae(_) | Advantage::Walk(..) => unreachable!(),
        };
        vec![a; s.tokens.len()]
    };
    batch.iter().map(of).collect()
}

/// −min(min(r, dual)·A, clip(r, lo, hi)·A).
fn ppo(r: f64, a: f64, (lo, hi, dual): (f64, f64, f64)) -> f64 {
    let free = if a < 0.0 { r.min(dual) } else { r };
    -(free * a).min(r.clamp(lo, hi) * a)
}

fn sapo(r: f64, a: f64, neg: f64) -> f64 {
    let tau = if a > 0.0 { 1.0 } else { neg };
    -a * 4.0 / tau / (1.0 + (-tau * (r - 1.0)).exp())
}

const NONE: f64 = f64::INFINITY;

/// The surrogate of each token of a sequence under the loss that `name` stands for.
pub fn surrogate(name: &str, logp: &[f64], held: &[f64], s: &Sequence, a: &[f64]) -> Vec<f64> {
    let old: Vec<f64> = s.tokens.iter().map(|t| t.old).collect();
    let n = old.len() as f64;
    let d: Vec<f64> = logp.iter().zip(&old).map(|(l, o)| l - o).collect();
    let fixed: Vec<f64> = held.iter().zip(&old).map(|(l, o)| l - o).collect();
    let (sum, fixed_sum) = (d.iter().sum::<f64>(), fixed.iter().sum::<f64>());
    let each = |f: &dyn Fn(usize) -> f64| (0..old.len()).map(f).collect::<Vec<f64>>();
    let plain = (0.8, 1.2, NONE);
    match name {
        "grpo" | "deepseekmath_grpo" | "dr_grpo" | "reft" | "remix" | "trl/grpo" | "trl/bnpo"
        | "trl/dr_grpo" | "trl/dapo" | "verl/clip_cov" => each(&|t| ppo(d[t].exp(), a[t], plain)),
        // Around the policy before the updates, which is where constants are held.
        "remix/stale" => each(&|t| {
            let center = fixed[t].exp();
            ppo(d[t].exp(), a[t], (center - 0.2, center + 0.2, NONE))
        }),
        "verl/vanilla" | "prefix_rft" => each(&|t| ppo(d[t].exp(), a[t], (0.8, 1.2, 3.0))),
        "dapo" => each(&|t| ppo(d[t].exp(), a[t], (0.8, 1.28, NONE))),
        "gspo" => each(&|t| ppo((sum / n).exp(), a[t], (1.0 - 3e-4, 1.0 + 4e-4, NONE))),
        "trl/luspo" => each(&|t| ppo((sum / n).exp(), a[t], plain)),
        "trl/rloo" => each(&|t| ppo(sum.exp(), a[t], plain)),
        "verl/gspo" => each(&|t| ppo((logp[t] - held[t] + fixed_sum / n).exp(), a[t], plain)),
        "relift" | "verl/kl_cov" => each(&|t| -d[t].exp() * a[t]),
        "cispo" => each(&|t| -fixed[t].exp().min(5.0) * a[t] * logp[t]),
        "trl/cispo" => each(&|t| -fixed[t].exp().min(0.2) * a[t] * logp[t]),
        "verl/cispo" => each(&|t| -fixed[t].exp().clamp(0.8, 1.2) * a[t] * logp[t]),
        "trl/sapo" | "verl/sapo" => each(&|t| sapo(d[t].exp(), a[t], 1.05)),
        "trl/vespo" => each(&|t| {
            let (k, l) = if a[t] >= 0.0 { (2.0, 3.0) } else { (3.0, 2.0) };
            let log_w = fixed_sum.clamp(1e-8f64.ln(), 20.0);
            -(l + k * log_w - l * log_w.exp()).exp() * a[t] * logp[t]
        }),
        "verl/gpg" => each(&|t| -a[t] * logp[t]),
        "ce" => each(&|t| -logp[t]),
        "verl/geo_mean" => {
            let cut = |t: usize| if a[t] > 0.0 { d[t].min(0.2) } else { d[t].max(-0.2) };
            let ratio = ((0..old.len()).map(cut).sum::<f64>() / n).exp();
            each(&|t| -ratio * a[t])
        }
        "verl/dppo_tv" => each(&|t| {
            let rise = held[t].exp() - old[t].exp();
            let keeps = if a[t] > 0.0 { rise <= 0.2 } else { rise >= -0.2 };
            if keeps { -a[t] * fixed[t].exp().min(3.0) * logp[t] } else { 0.0 }
        }),
        "verl/dppo_kl" => each(&|t| {
            let (p, q) = (held[t].exp(), old[t].exp());
            let kl =
                q * (old[t] - held[t]) + (1.0 - q) * ((1.0 - q + 1e-8) / (1.0 - p + 1e-8)).ln();
            let keeps = kl <= 0.2 || if a[t] > 0.0 { p <= q } else { p >= q };
            if keeps { -a[t] * fixed[t].exp().min(3.0) * logp[t] } else { 0.0 }
        }),
        "verl/dro" => each(&|t| -(a[t] * logp[t] - 0.05 * d[t] * d[t])),
        other => panic!("no oracle for {other}"),
    }
}

/// The KL term of a token: k3, as a paper, TRL or verl has it.
pub fn kl(name: &str, logp: f64, ratio: f64, reference: f64) -> f64 {
    let k = reference - logp;
    match name.split('/').next() {
        Some("trl") => ratio * (k.exp() - k - 1.0),
        Some("verl") => {
            let k = k.clamp(-20.0, 20.0);
            (k.exp() - k - 1.0).clamp(-10.0, 10.0)
        }
        _ => k.exp() - k - 1.0,
    }
}

/// Weight of each sequence: the mean over tokens, or over sequences, that `name` takes. `longest` is
/// Dr. GRPO's constant.
pub fn weights(name: &str, lengths: &[usize], longest: f64) -> Vec<f64> {
    let (b, tokens) = (lengths.len() as f64, lengths.iter().sum::<usize>() as f64);
    let of = |&n: &usize| match name {
        "dr_grpo" | "relift" | "prefix_rft" | "trl/dr_grpo" => 1.0 / (b * longest),
        "trl/luspo" => 1.0 / b,
        "grpo" | "deepseekmath_grpo" | "gspo" | "reft" | "remix" | "remix/stale" | "trl/grpo"
        | "trl/sapo" | "trl/rloo" | "verl/geo_mean" | "verl/sapo" => 1.0 / (b * n as f64),
        _ => 1.0 / tokens,
    };
    lengths.iter().map(of).collect()
}

/// A batch of completions that a sequence objective compares; `kl` is KTO's zero point.
pub struct Compared<'a> {
    pub batch: &'a [Sequence],
    /// Log-probs of their tokens.
    pub logp: Vec<Vec<f64>>,
    pub beta: f64,
    pub kl: f64,
}

fn average(x: Vec<f64>) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

fn sigma(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// −log σ(−x).
fn softplus(x: f64) -> f64 {
    (1.0 + x.exp()).ln()
}

/// All (i, j) of a group with i ≠ j.
fn ordered(group: &[usize]) -> Vec<(usize, usize)> {
    let pairs = group.iter().flat_map(|&i| group.iter().map(move |&j| (i, j)));
    pairs.filter(|(i, j)| i != j).collect()
}

impl Compared<'_> {
    fn reward(&self, i: usize) -> f64 {
        self.batch[i].reward
    }

    /// log π of a completion.
    fn sum(&self, i: usize) -> f64 {
        self.logp[i].iter().sum()
    }

    /// log π − log π_ref.
    fn against(&self, i: usize) -> f64 {
        self.sum(i) - self.batch[i].tokens.iter().map(|t| t.reference).sum::<f64>()
    }

    fn groups(&self) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (i, s) in self.batch.iter().enumerate().filter(|(_, s)| !s.reward.is_nan()) {
            match groups.last_mut() {
                Some(group) if self.batch[group[0]].group == s.group => group.push(i),
                _ => groups.push(vec![i]),
            }
        }
        groups
    }

    /// The objective of that name, from its paper.
    pub fn loss(&self, name: &str) -> f64 {
        let groups = self.groups();
        average(match name {
            "copg" => groups.iter().map(|group| self.copg(group)).collect(),
            "prdp" => groups.iter().flat_map(|group| self.prdp(group)).collect(),
            "mml" => groups.iter().filter_map(|group| self.mml(group)).collect(),
            "kto" => groups.concat().into_iter().map(|i| self.kto(i)).collect(),
            name => groups.iter().map(|group| self.preference(name, group)).collect(),
        })
    }

    fn copg(&self, group: &[usize]) -> f64 {
        let held = |i: usize| self.reward(i) - self.beta * self.against(i);
        let term = |(i, j): (usize, usize)| (held(i) - held(j)).powi(2) / (2.0 * self.beta);
        average(ordered(group).into_iter().map(term).collect())
    }

    fn prdp(&self, group: &[usize]) -> Vec<f64> {
        let near = |i: usize| {
            let tokens = self.batch[i].tokens.iter().zip(&self.logp[i]);
            tokens.map(|(t, l)| l.clamp(t.old - 0.2, t.old + 0.2) - t.reference).sum::<f64>()
        };
        let pairs = ordered(group).into_iter().filter(|&(i, j)| self.reward(i) > self.reward(j));
        let term = |(i, j): (usize, usize)| {
            let wanted = (self.reward(i) - self.reward(j)) / self.beta;
            let free = (self.against(i) - self.against(j) - wanted).powi(2);
            free.max((near(i) - near(j) - wanted).powi(2))
        };
        pairs.map(term).collect()
    }

    fn mml(&self, group: &[usize]) -> Option<f64> {
        let right = group.iter().filter(|&&i| self.reward(i) >= 0.5);
        let sum: f64 = right.map(|&i| (self.beta * self.sum(i)).exp()).sum();
        (sum > 0.0).then(|| -sum.ln() / self.beta)
    }

    fn kto(&self, i: usize) -> f64 {
        let gain = self.beta * (self.against(i) - self.kl);
        1.0 - sigma(if self.reward(i) >= 0.5 { gain } else { -gain })
    }

    /// The best of a group against its worst.
    fn preference(&self, name: &str, group: &[usize]) -> f64 {
        let by_reward = |i: &&usize, j: &&usize| self.reward(**i).total_cmp(&self.reward(**j));
        let best = *group.iter().max_by(by_reward).unwrap();
        let worst = *group.iter().min_by(by_reward).unwrap();
        let (w, l, beta) = (self.against(best), self.against(worst), self.beta);
        let delta = beta * (w - l);
        let mean = |i: usize| self.sum(i) / self.logp[i].len() as f64;
        let odds = |i: usize| mean(i) - (1.0 - mean(i).exp()).ln();
        match name {
            "dpo" => softplus(-delta),
            "ipo" => (w - l - 0.5 / beta).powi(2),
            "hinge" => (1.0 - delta).max(0.0),
            "robust" => (0.9 * softplus(-delta) - 0.1 * softplus(delta)) / 0.8,
            "exo" => {
                let p = sigma(delta);
                p * (p / 0.999).ln() + (1.0 - p) * ((1.0 - p) / 1e-3).ln()
            }
            "nca" => softplus(-beta * w) + 0.5 * softplus(beta * w) + 0.5 * softplus(beta * l),
            "sppo" => (w - 0.5 / beta).powi(2) + (l + 0.5 / beta).powi(2),
            "apo_zero" => 1.0 - sigma(beta * w) + sigma(beta * l),
            "apo_down" => sigma(beta * w) + 1.0 - sigma(delta),
            "discopop" => {
                let m = sigma(delta / 0.05);
                (1.0 - m) * softplus(-delta) + m * (-delta).exp()
            }
            "simpo" => softplus(0.5 - beta * (mean(best) - mean(worst))),
            "cpo" => softplus(-beta * (self.sum(best) - self.sum(worst))) - self.sum(best),
            "orpo" => beta * softplus(odds(worst) - odds(best)) - mean(best),
            other => panic!("no oracle for {other}"),
        }
    }
}

/// Slope of `f` at `at` along every coordinate, by central differences.
pub fn gradient(at: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = at.to_vec();
    let mut slope = |i: usize| {
        const STEP: f64 = 1e-5;
        x[i] += STEP;
        let above = f(&x);
        x[i] = at[i] - STEP;
        let below = f(&x);
        x[i] = at[i];
        (above - below) / (2.0 * STEP)
    };
    (0..at.len()).map(&mut slope).collect()
}
