//! The mathematical answer of a completion.

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::math::Read;
use super::{conclusion, golds, verdict};
use crate::reward::{Outcome, Reward, RewardInput, RewardOutcome, excerpt, guarded};

/// 1 if the completion answers with the gold, else 0, or [`partial`](Numeric::partial) for another
/// answer that can be read.
///
/// The answer is the content of the last answer tag; else of the last box, or of the last boxes in
/// a row; else what stands behind the last `####` or `answer is` or `answer:`, on that line or the
/// next; else the last number. It must be readable to its end: of `5x` nothing is read, not 5.
///
/// Readable are, in LaTeX, in Unicode or plain, with a name and `=` before them: numbers with any
/// separators of thousands (`10,\!000`, `10 000`, `1.234,5`), scientific and repeating decimals,
/// fractions and mixed numbers, `+ - * / ^ !`, roots, logarithms, binomials, π, e, i; a currency, a
/// percent sign, degrees and units around them; `±`; ratios, and lists by `,`, `and`, `or`; sets,
/// tuples, intervals, inequalities with one letter, unions and matrices of all these. Arithmetic is
/// exact up to 4096 bits, with roots and constants in a normal form.
///
/// Within brackets a comma separates: `(1,100)` is a tuple, `(1{,}100)` and `1,100` are numbers. It does
/// not where a group after it begins with 0, as in `(10,000)`, nor in brackets that are calculated with.
/// `5 out of 10` is 5 as well as 1/2. `9:30` is a time and no fraction.
///
/// Two answers are the same if they are equal as numbers: `0.5` is `1/2`, while `0.333` is not
/// `1/3` unless a tolerance says so. Sets and lists have no order, tuples have one. A unit on one
/// side only is passed over, as are words that are no known unit; on both sides units count, and
/// are converted. A percent sign on one side only may mean either of two things, and both are
/// taken: `50%` is 50 and 0.5.
///
/// The gold is the whole of the row's field, or what is marked in it in the same way, so that the
/// worked solutions of GSM8K can stand there as they are. One that cannot be read is a failed call.
#[derive(Clone, Debug, PartialEq)]
pub struct Numeric {
    /// The row's field with the gold: a number, a text, or a list of which any will do.
    pub field: String,
    /// Allowed distance of real numbers from the gold. With this and `relative` at 0 the comparison
    /// is exact.
    pub absolute: f64,
    /// Allowed distance as a share of the gold.
    pub relative: f64,
    /// Whether a completion that was cut off scores 0: its last number is an accident.
    pub finished: bool,
    /// Score of a wrong answer that can be read; 0.1 in ReFT (arXiv:2401.08967). Where advantages
    /// are divided by a group's standard deviation its size says nothing: in a group without a right
    /// answer, being readable earns as much as being right.
    pub partial: f32,
}

impl Default for Numeric {
    fn default() -> Numeric {
        Numeric {
            field: "answer".into(),
            absolute: 0.0,
            relative: 0.0,
            finished: true,
            partial: 0.0,
        }
    }
}

impl Numeric {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let golds = self.golds(input.fields)?;
        if self.finished && !input.finished {
            return verdict(false);
        }
        let Some(said) = conclusion(input.completion).and_then(Read::completion) else {
            return verdict(false);
        };
        match golds.iter().any(|gold| said.is(gold, self.absolute, self.relative)) {
            true => verdict(true),
            false => Ok(RewardOutcome::Score(self.partial)),
        }
    }

    /// Whether a row has golds that can be read.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.golds(fields).map(|_| ())
    }

    fn golds(&self, fields: &Map<String, Value>) -> Result<Vec<Read>, String> {
        let read = |text: &String| {
            Read::gold(text).ok_or_else(|| {
                format!(
                    "row field `{}` is `{}`, expected a number or numbers in a list, set, tuple or \
                     interval; for words use `exact`, for formulas with variables \
                     `cmd:python3 examples/rewards/math_verify.py`",
                    self.field,
                    excerpt(text)
                )
            })
        };
        golds(fields, &self.field)?.iter().map(read).collect()
    }
}

impl Reward for Numeric {
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        inputs.par_iter().map(|input| guarded(|i| self.check(i), input)).collect()
    }

    /// Answers are the same if they are equal as numbers, within the tolerance.
    fn same_answers(&self, inputs: &[RewardInput<'_>]) -> Vec<Option<usize>> {
        let mut known: Vec<Read> = Vec::new();
        let mut number = |input: &RewardInput<'_>| {
            let answers = input.finished || !self.finished;
            let said =
                conclusion(input.completion).filter(|_| answers).and_then(Read::completion)?;
            let same = |other: &Read| said.is(other, self.absolute, self.relative);
            Some(known.iter().position(same).unwrap_or_else(|| {
                known.push(said);
                known.len() - 1
            }))
        };
        inputs.iter().map(&mut number).collect()
    }

    fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        Numeric::check_row(self, fields)
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        Some((0.0f64.min(self.partial.into()), 1.0f64.max(self.partial.into())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    #[test]
    fn gsm8k_rows() {
        let row = json!({"answer": "She sold 48/2 = 24.\n#### 1,072"});
        let verifier = Numeric::default();
        for (completion, score) in [
            ("... so 536 * 2 = 1072.", 1.0),
            ("#### 1072 dollars", 1.0),
            ("The answer is $1,072.00.", 1.0),
            ("<answer>1072</answer> or 5", 1.0),
            ("\\boxed{x = 1072}", 1.0),
            ("1072, no: 1073", 0.0),
            ("", 0.0),
            ("none", 0.0),
        ] {
            assert_eq!(
                ask(|i| verifier.check(i), completion, &row),
                Ok(Score(score)),
                "{completion}"
            );
        }
    }

    #[test]
    fn golds_of_every_kind() {
        let verifier = Numeric::default();
        for gold in [
            json!(0.5),
            json!("1/2"),
            json!("\\frac{1}{2}"),
            json!(["7", 0.5]),
            json!(["7", null, 0.5]),
            json!("50%"),
        ] {
            let row = json!({"answer": gold});
            assert_eq!(ask(|i| verifier.check(i), "It is 0.50", &row), Ok(Score(1.0)), "{gold}");
        }
        for gold in [json!(null), json!("none"), json!("5x"), json!([]), json!({"a": 1})] {
            let row = json!({"answer": gold});
            let error = ask(|i| verifier.check(i), "1", &row).unwrap_err();
            assert!(error.contains("`answer`"), "{error}");
            assert_eq!(verifier.check_row(row.as_object().unwrap()), Err(error));
        }
    }

    #[test]
    fn tolerance_and_ends() {
        let near = Numeric { relative: 0.01, ..Numeric::default() };
        assert_eq!(ask(|i| near.check(i), "2.53", &json!({"answer": 2.51})), Ok(Score(1.0)));
        assert_eq!(ask(|i| near.check(i), "2.54", &json!({"answer": 2.51})), Ok(Score(0.0)));
        assert_eq!(
            ask(|i| near.check(i), "(1.001, 3)", &json!({"answer": "(1, 3)"})),
            Ok(Score(1.0))
        );
        let row = json!({"answer": 4}).as_object().unwrap().clone();
        let cut = RewardInput { prompt: "", completion: "4", finished: false, fields: &row };
        assert_eq!(Numeric::default().check(&cut), Ok(Score(0.0)));
        let lenient = Numeric { finished: false, ..Numeric::default() };
        assert_eq!(lenient.check(&cut), Ok(Score(1.0)));
    }

    #[test]
    fn a_wrong_number_may_be_worth_something() {
        let partial = Numeric { partial: 0.1, ..Numeric::default() };
        let row = json!({"answer": 4});
        for (completion, score) in [("4", 1.0), ("5", 0.1), ("none", 0.0), ("<think>4", 0.0)] {
            assert_eq!(
                ask(|i| partial.check(i), completion, &row),
                Ok(Score(score)),
                "{completion}"
            );
        }
    }

    fn right(said: &str, gold: &str) -> bool {
        let row = json!({"answer": gold});
        ask(|i| Numeric::default().check(i), said, &row) == Ok(Score(1.0))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Brackets hold elements, whatever these look like next to each other.
        #[test]
        fn commas_in_brackets_separate(a in 1u32..1000, b in 100u32..1000, kind in 0usize..4) {
            let (open, close) = [("(", ")"), ("[", "]"), ("\\{", "\\}"), ("[", ")")][kind];
            let (tight, wide) = (format!("{open}{a},{b}{close}"), format!("{open}{a}, {b}{close}"));
            let number = (1000 * a + b).to_string();
            let gold = tight.clone();
            for place in ["\\boxed{…}", "The answer is ….", "<answer>…</answer>", "$x \\in …$"] {
                let put = |answer: &str| place.replace('…', answer);
                prop_assert!(right(&put(&tight), &gold), "{}", put(&tight));
                prop_assert!(right(&put(&wide), &gold), "{}", put(&wide));
                prop_assert!(!right(&put(&tight), &number), "{}", put(&tight));
                prop_assert!(!right(&put(&number), &gold), "{} {}", put(&number), gold);
                let bare = put(&format!("{},{}", a, b));
                prop_assert!(right(&bare, &number), "{}", bare);
            }
        }

        /// A currency leaves a number what it is.
        #[test]
        fn currencies_count_nothing(n in 1u32..2000, sign in 0usize..5, times in 0usize..4) {
            let sign = ["$", "\\$", "€", "£", "¥"][sign];
            let (word, zeros) =
                [("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12)][times];
            let gold = format!("{n}{}", "0".repeat(zeros));
            for place in ["The answer is …", "#### …", "\\boxed{…}", "It costs … in total."] {
                let said = place.replace('…', &format!("{sign}{n} {word}"));
                prop_assert!(right(&said, &gold), "{}", said);
                prop_assert!(!right(&said, &n.to_string()), "{}", said);
            }
        }

        #[test]
        fn any_text_is_judged(text in "([0-9]{1,4}|[(){}\\[\\],.:<>=%$*/^_\\\\ \n-]|boxed|frac|million|out of){0,24}") {
            right(&text, "5");
        }
    }

    #[test]
    fn answers_are_the_same_as_numbers() {
        let fields = crate::reward::no_fields();
        let input = |completion| RewardInput { prompt: "", completion, finished: true, fields };
        let mut all = ["1/2", "it is 0.5", "none", "50%", "0.51"].map(input).to_vec();
        all.push(RewardInput { finished: false, ..input("0.5") });
        let same = Numeric::default().same_answers(&all);
        assert_eq!(same, [Some(0), Some(0), None, Some(0), Some(1), None]);
        let near = Numeric { absolute: 0.02, ..Numeric::default() };
        assert_eq!(near.same_answers(&all[..5]), [Some(0), Some(0), None, Some(0), Some(0)]);
    }
}
