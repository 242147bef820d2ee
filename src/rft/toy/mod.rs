//! Toy tasks: data sets that a fresh byte model learns in minutes, for trying recipes and for
//! comparing them. `gradus toy NAME > file.jsonl` writes one.
//!
//! A row has a `prompt`, what its reward compares with, and a demonstration in `completion` where
//! there is one to learn from: a text, or the messages of an episode. Row `n` depends on the seed and `n` alone.

mod bandit;
mod choices;
mod draw;
mod facts;
mod graphs;
mod numbers;
mod places;
mod reasons;
mod sorting;
mod texts;
mod tools;
mod turns;

use serde_json::{Map, Value};

use crate::near::did_you_mean;
use crate::toy::draw::Drawn;
use gradus::error::{Error, Result};
use gradus::rng::{Purpose, Rng};

/// A toy task.
pub struct Toy {
    /// Its name on the command line.
    pub name: &'static str,
    /// Prompt and answer, in words and by an example.
    pub about: &'static str,
    /// The rewards that score it, as `--reward` takes them; none where its environment does.
    pub rewards: &'static [&'static str],
    /// The score of a right answer.
    pub best: f32,
    /// Share of the demonstrations that are wrong, unless `--noise` says otherwise.
    noise: f64,
    draw: fn(&mut Rng) -> Drawn,
}

/// What a data set of a toy is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ToyOptions {
    /// Number of rows.
    pub rows: u32,
    /// Names the data set.
    pub seed: u64,
    /// Share of demonstrations that are replaced by wrong answers of the right form; the toy's own
    /// share without one.
    pub noise: Option<f64>,
}

impl Default for ToyOptions {
    fn default() -> ToyOptions {
        ToyOptions { rows: 2000, seed: 0, noise: None }
    }
}

/// All toys, family by family.
pub fn toys() -> impl Iterator<Item = &'static Toy> {
    let families = [
        numbers::TOYS,
        sorting::TOYS,
        choices::TOYS,
        graphs::TOYS,
        places::TOYS,
        tools::TOYS,
        texts::TOYS,
        bandit::TOYS,
        reasons::TOYS,
        facts::TOYS,
        turns::TOYS,
    ];
    families.into_iter().flatten()
}

/// The toy of this name.
///
/// # Errors
/// `Config` for a name that is none, with those that are.
pub fn toy(name: &str) -> Result<&'static Toy> {
    toys().find(|toy| toy.name == name).ok_or_else(|| {
        let known: Vec<&str> = toys().map(|toy| toy.name).collect();
        let meant = did_you_mean(name, known.iter().copied());
        Error::config("toy", format!("`{name}` is not one of {}{meant}", known.join(", ")))
    })
}

/// What there is, with rewards on a line of their own, for people.
pub fn help() -> String {
    let width = toys().map(|toy| toy.name.len()).max().unwrap_or(0);
    let rewards = |toy: &Toy| {
        let each = toy.rewards.iter().map(|reward| format!("--reward '{reward}'"));
        each.collect::<Vec<_>>().join(" ")
    };
    let lines = toys().map(|toy| {
        let about = format!("{:width$}  {}\n", toy.name, toy.about);
        match toy.rewards.is_empty() {
            true => about,
            false => about + &format!("{:width$}  {}\n", "", rewards(toy)),
        }
    });
    lines.collect()
}

impl Toy {
    /// The rows of a data set.
    ///
    /// # Errors
    /// `Config` for no rows, for a share of noise that is none, and for noise in a toy without
    /// demonstrations.
    pub fn rows(
        &'static self,
        options: ToyOptions,
    ) -> Result<impl Iterator<Item = Map<String, Value>>> {
        let ToyOptions { rows, seed, noise } = options;
        if rows == 0 {
            return Err(Error::config("rows", "got 0, expected at least 1"));
        }
        if let Some(share) = noise.filter(|share| !(0.0..=1.0).contains(share)) {
            return Err(Error::config("noise", format!("got {share}, expected 0 to 1")));
        }
        if noise.is_some_and(|share| share > 0.0) && self.row(seed, 0, 1.0).1.is_none() {
            let reason = format!("`{}` has no demonstrations that could be wrong", self.name);
            return Err(Error::config("noise", reason));
        }
        let noise = noise.unwrap_or(self.noise);
        Ok((0..rows).map(move |index| {
            let (mut row, demo) = self.row(seed, index, noise);
            row.extend(demo.map(|demo| ("completion".to_string(), demo)));
            row
        }))
    }

    /// Row `index` without its demonstration, and the demonstration. What is asked does not depend on
    /// the noise.
    fn row(&self, seed: u64, index: u32, noise: f64) -> (Map<String, Value>, Option<Value>) {
        let Drawn { row, demo, wrong } =
            (self.draw)(&mut Rng::new(seed, Purpose::Data, [index, 0, 0]));
        let spoiled = Rng::new(seed, Purpose::Data, [index, 1, 0]).uniform() < noise;
        (row, if spoiled { wrong } else { demo })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::spec::{SpecOptions, parse_all};
    use crate::reward::{Outcome, RewardInput, RewardOutcome};
    use crate::train::task::last_content;

    fn rows(toy: &'static Toy, options: ToyOptions) -> Vec<Map<String, Value>> {
        toy.rows(options).unwrap().collect()
    }

    fn options(rows: u32, seed: u64, noise: f64) -> ToyOptions {
        ToyOptions { rows, seed, noise: Some(noise) }
    }

    /// The score of each row's demonstration.
    fn scores(toy: &Toy, rows: &[Map<String, Value>]) -> Vec<f32> {
        let reward = parse_all(toy.rewards, &SpecOptions::default()).unwrap();
        let said = |row: &Map<String, Value>| match &row["completion"] {
            Value::Array(messages) => last_content(messages).to_string(),
            text => text.as_str().unwrap().to_string(),
        };
        let completions: Vec<String> = rows.iter().map(said).collect();
        let inputs: Vec<RewardInput<'_>> = rows
            .iter()
            .zip(&completions)
            .map(|(fields, completion)| RewardInput {
                prompt: fields["prompt"].as_str().unwrap(),
                completion,
                finished: true,
                fields,
            })
            .collect();
        rows.iter().for_each(|row| reward.check_row(row).unwrap());
        let outcomes = reward.score(&inputs).into_iter();
        let score = |outcome: Outcome| match outcome.as_ref().map(RewardOutcome::score) {
            Ok(Some(score)) => score,
            Ok(None) | Err(_) => panic!("{}: {outcome:?}", toy.name),
        };
        outcomes.map(score).collect()
    }

    /// Toys with demonstrations that their rewards score.
    fn taught() -> impl Iterator<Item = &'static Toy> {
        toys().filter(|toy| toy.row(0, 0, 1.0).1.is_some())
    }

    #[test]
    fn right_answers_score_best_and_wrong_ones_less() {
        assert!(taught().count() > 10);
        for toy in taught() {
            let right = scores(toy, &rows(toy, options(200, 0, 0.0)));
            assert!(right.iter().all(|&score| score == toy.best), "{}: {right:?}", toy.name);
            let wrong = scores(toy, &rows(toy, options(200, 0, 1.0)));
            assert!(wrong.iter().all(|&score| score < toy.best), "{}: {wrong:?}", toy.name);
            let reward = parse_all(toy.rewards, &SpecOptions::default()).unwrap();
            let (low, high) = reward.bounds().unwrap();
            let within = |score: &f32| (low..=high).contains(&(*score as f64));
            assert!(right.iter().chain(&wrong).all(within), "{}: {low}..{high}", toy.name);
        }
    }

    #[test]
    fn rows_are_those_of_their_seed() {
        for toy in toys() {
            let of = |count, seed| rows(toy, ToyOptions { rows: count, seed, noise: None });
            assert_eq!(of(30, 7)[..20], of(20, 7), "{}", toy.name);
            assert_ne!(of(30, 7), of(30, 8), "{}", toy.name);
        }
    }

    #[test]
    fn noise_is_a_share_and_changes_no_question() {
        for toy in taught() {
            let asked = |noise| {
                let mut all = rows(toy, options(400, 3, noise));
                all.iter_mut().for_each(|row| drop(row.remove("completion")));
                all
            };
            assert_eq!(asked(0.0), asked(0.5), "{}", toy.name);
            let right = scores(toy, &rows(toy, options(400, 3, 0.75)));
            let share = right.iter().filter(|&&score| score == toy.best).count() as f64 / 400.0;
            assert!((share - 0.25).abs() < 0.07, "{}: {share}", toy.name);
        }
        let noisy = toy("noisy-sort").unwrap();
        let right = scores(noisy, &rows(noisy, ToyOptions { rows: 400, ..ToyOptions::default() }));
        let share = right.iter().filter(|&&score| score == 1.0).count() as f64 / 400.0;
        assert!((share - 0.46).abs() < 0.07, "{share}");
    }

    /// Columns for learning without sampling agree with the rewards.
    #[test]
    fn scored_completions_have_their_scores() {
        let noisy = toy("noisy-sort").unwrap();
        for row in rows(noisy, options(50, 1, 0.0)) {
            let of = |name: &str| row[name].as_array().unwrap().clone();
            let said = |completion: Value| {
                let mut row = row.clone();
                row.insert("completion".into(), completion);
                row
            };
            let exact = scores(noisy, &of("completions").into_iter().map(said).collect::<Vec<_>>());
            let graded: Vec<f64> =
                of("scores").iter().map(|score| score.as_f64().unwrap()).collect();
            assert!(exact.iter().zip(&graded).all(|(&e, &g)| (e == 1.0) == (g == 1.0)), "{row:?}");
            assert!(graded.iter().any(|&g| g < 1.0), "{row:?}");
        }
        for row in rows(toy("pairs").unwrap(), options(50, 1, 0.0)) {
            assert_eq!(row["chosen"], row["answer"]);
            assert_ne!(row["rejected"], row["answer"]);
        }
    }

    #[test]
    fn the_bandit_is_pulled_as_its_policies_would() {
        let n = 4000;
        let pulls = rows(toy("bandit3").unwrap(), ToyOptions { rows: n, ..ToyOptions::default() });
        for (at, [a, b, _]) in [[0.1, 0.2, 0.7], [0.05, 0.05, 0.9]].into_iter().enumerate() {
            let share = |arm: &str| {
                let hits = pulls.iter().filter(|row| row["completions"][at] == arm).count();
                hits as f64 / n as f64
            };
            assert!((share("a") - a).abs() < 0.02 && (share("b") - b).abs() < 0.02);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let error = |result: Result<&Toy>| result.err().unwrap().to_string();
        assert!(error(toy("sort4")).contains("`sort4` is not one of make, "));
        let refused =
            |name: &str, options| toy(name).unwrap().rows(options).err().unwrap().to_string();
        assert!(refused("sort3", options(0, 0, 0.0)).contains("`rows`: got 0"));
        for share in [-0.1, 1.5, f64::NAN] {
            assert!(refused("sort3", options(1, 0, share)).contains("`noise`: got"), "{share}");
        }
        assert!(refused("bandit3", options(1, 0, 0.5)).contains("no demonstrations"));
    }
}
