//! Inputs and outputs of an op by name, and where a NaN among the inputs may show.

use gradus::View;

pub const NAN: f64 = f64::NAN;

/// Three sequences; the poisoned token is in the second, its fourth token is masked.
pub const OFFSETS: [i64; 4] = [0, 3, 8, 10];
pub const TOKENS: usize = 10;
pub const POISONED: usize = 4;
pub const MASKED: usize = 6;
pub const SECOND: std::ops::Range<usize> = 3..8;

/// Inputs by name.
#[derive(Clone)]
pub struct Columns(pub Vec<(&'static str, Vec<f64>)>);

impl Columns {
    pub fn get(&self, name: &str) -> &[f64] {
        &self.0.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no {name}")).1
    }
    pub fn view(&self, name: &str) -> View<'_, f64> {
        self.get(name).into()
    }
    pub fn poisoned(&self, name: &str, at: usize) -> Columns {
        let mut all = self.clone();
        all.0.iter_mut().find(|(n, _)| *n == name).unwrap().1[at] = NAN;
        all
    }
}

/// `n` numbers around `center`, none of them twice.
pub fn around(center: f64, n: usize, seed: u64) -> Vec<f64> {
    crate::common::normals(seed, n, 0.15).into_iter().map(|x| center + x.clamp(-0.5, 0.5)).collect()
}

pub fn mask() -> Vec<u8> {
    (0..TOKENS).map(|t| (t != MASKED) as u8).collect()
}

/// Outputs by name.
pub type Outputs = Vec<(&'static str, Vec<f64>)>;

pub fn out<'o>(outputs: &'o Outputs, name: &str) -> &'o [f64] {
    &outputs.iter().find(|(n, _)| *n == name).unwrap().1
}

/// Every element is NaN where `reached` says so, and elsewhere what it is without NaN.
pub fn check(
    what: &str,
    clean: &[(&'static str, Vec<f64>)],
    dirty: &[(&'static str, Vec<f64>)],
    reached: impl Fn(&str, usize) -> bool,
) {
    for ((name, before), (_, after)) in clean.iter().zip(dirty) {
        for (i, (b, a)) in before.iter().zip(after).enumerate() {
            assert!(!b.is_nan(), "{what}: {name}[{i}] is NaN without a NaN");
            let fits = if reached(name, i) { a.is_nan() } else { a == b };
            assert!(fits, "{what}: {name}[{i}] was {b} and is {a}");
        }
    }
}

pub fn policy_columns(sign: f64) -> Columns {
    let logp = around(-1.0, TOKENS, 1);
    let near = |seed| logp.iter().zip(around(0.0, TOKENS, seed)).map(|(l, e)| l + e).collect();
    Columns(vec![
        ("old_logp", near(2)),
        ("sampler_logp", near(3)),
        ("ref_logp", near(4)),
        ("ref2_logp", near(5)),
        ("token_weight", around(1.0, TOKENS, 6)),
        ("is_weight", around(1.0, TOKENS, 7)),
        ("entropy", around(1.5, TOKENS, 8)),
        ("advantage", around(1.0, TOKENS, 9).into_iter().map(|a| a * sign).collect()),
        ("seq_weight", around(0.5, 3, 10)),
        ("logp", logp),
    ])
}
