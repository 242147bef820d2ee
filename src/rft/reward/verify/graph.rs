//! Questions about graphs.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{field, graded, jaccard, parsed, said, scalar, unfit, verdict};
use crate::reward::{Outcome, RewardInput};

/// Judges answers about a graph by going through its edges, as the verifiers of G1 (arXiv:2505.18499)
/// do. What is asked is in the row:
///
/// * `path`, two nodes: 1 if the answer is a path from the first to the second, else 0. Each step goes
///   along an edge, and no node stands there twice. Any such path is right.
/// * `node`, a node: the Jaccard index of the nodes that are said and the neighbors of that one.
///
/// `edges` is a list of pairs, `[["a", "b"], …]`, or a text such as `ab,cd` or `a-b, c-d`. With
/// `directed` as true an edge goes from its first node to its second alone.
///
/// Nodes in an answer are words of letters and digits, whatever stands between them; where all letters
/// of a word that is no node are nodes, each of them counts. Words that are no node make a path wrong,
/// and are surplus among neighbors.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph;

/// What a row asks.
enum Question {
    Path(String, String),
    Neighbors(String),
}

/// A row's graph with the question about it.
struct Asked {
    edges: BTreeSet<(String, String)>,
    nodes: BTreeSet<String>,
    question: Question,
}

impl Graph {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let asked = Asked::of(input.fields)?;
        let Some(said) = said(input.completion).filter(|_| input.finished) else {
            return verdict(false);
        };
        let said = asked.read(said);
        match &asked.question {
            Question::Path(from, to) => verdict(asked.is_path(&said, from, to)),
            Question::Neighbors(node) => {
                graded(jaccard(&said.into_iter().collect(), &asked.neighbors(node)))
            }
        }
    }

    /// Whether a row has a graph and a question about it.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        Asked::of(fields).map(|_| ())
    }
}

impl Asked {
    fn of(fields: &Map<String, Value>) -> Result<Asked, String> {
        let mut edges = pairs(field(fields, "edges")?)?;
        if !fields.get("directed").is_some_and(|value| value == true) {
            let back: Vec<_> = edges.iter().map(|(a, b)| (b.clone(), a.clone())).collect();
            edges.extend(back);
        }
        let mut nodes: BTreeSet<String> = edges.iter().map(|(a, _)| a.clone()).collect();
        nodes.extend(edges.iter().map(|(_, b)| b.clone()));
        let given = |key: &str| fields.get(key).filter(|value| !value.is_null());
        let question = match (given("path"), given("node")) {
            (Some(path), None) => match pair(path) {
                Some((from, to)) => Question::Path(from, to),
                None => return Err(unfit("path", path, "two nodes")),
            },
            (None, Some(node)) => match scalar(node).map(|node| words(&node)).as_deref() {
                Some([node]) => Question::Neighbors(node.clone()),
                Some(_) | None => return Err(unfit("node", node, "a node")),
            },
            (Some(_), Some(_)) => return Err("the row has both `path` and `node`".into()),
            (None, None) => return Err("the row has neither `path` nor `node`".into()),
        };
        match &question {
            Question::Path(from, to) => nodes.extend([from.clone(), to.clone()]),
            Question::Neighbors(node) => drop(nodes.insert(node.clone())),
        }
        Ok(Asked { edges, nodes, question })
    }

    /// The nodes of an answer, and the words that are none.
    fn read(&self, answer: &str) -> Vec<String> {
        let letters = |word: &String| -> Vec<String> { word.chars().map(String::from).collect() };
        let mut found = Vec::new();
        for word in words(answer) {
            let split = letters(&word);
            let apart = !self.nodes.contains(&word) && split.iter().all(|c| self.nodes.contains(c));
            found.extend(if apart { split } else { vec![word] });
        }
        found
    }

    fn is_path(&self, said: &[String], from: &String, to: &String) -> bool {
        let distinct: BTreeSet<&String> = said.iter().collect();
        let steps = |step: &[String]| self.edges.contains(&(step[0].clone(), step[1].clone()));
        said.first() == Some(from)
            && said.last() == Some(to)
            && distinct.len() == said.len()
            && said.windows(2).all(steps)
    }

    fn neighbors(&self, node: &String) -> BTreeSet<String> {
        self.edges.iter().filter(|(from, _)| from == node).map(|(_, to)| to.clone()).collect()
    }
}

/// Letters and digits that stand together.
fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| !word.is_empty()).map(String::from).collect()
}

/// Two nodes: a list of two, two words, or a word of two letters.
fn pair(value: &Value) -> Option<(String, String)> {
    let value = parsed(value);
    let nodes: Vec<String> = match value.as_ref() {
        Value::Array(items) => items
            .iter()
            .map(|item| scalar(item).map(|text| words(&text)))
            .collect::<Option<Vec<_>>>()?
            .concat(),
        one => words(&scalar(one)?),
    };
    match nodes.as_slice() {
        [from, to] => Some((from.clone(), to.clone())),
        [both] => match *both.chars().collect::<Vec<char>>() {
            [from, to] => Some((from.to_string(), to.to_string())),
            _ => None,
        },
        _ => None,
    }
}

fn pairs(value: &Value) -> Result<BTreeSet<(String, String)>, String> {
    let value = parsed(value);
    let pairs: Option<BTreeSet<_>> = match value.as_ref() {
        Value::Array(items) => items.iter().map(pair).collect(),
        Value::String(text) => text
            .split([',', ';', '\n'])
            .filter(|edge| !edge.trim().is_empty())
            .map(|edge| pair(&Value::from(edge)))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    };
    pairs.ok_or_else(|| unfit("edges", &value, "a list of pairs of nodes, or a text as `ab,cd`"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    fn score(completion: &str, row: &Value) -> f32 {
        match ask(|i| Graph.check(i), completion, row) {
            Ok(Score(score)) => score,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn paths_go_along_edges() {
        let row = json!({"edges": "ab,bc,cd,ad", "path": ["a", "c"]});
        for (completion, expected) in [
            ("abc", 1.0),
            ("<answer>a -> d -> c</answer>", 1.0),
            ("[a, b, c]", 1.0),
            ("ac", 0.0),
            ("ab", 0.0),
            ("abadc", 0.0),
            ("a, x, c", 0.0),
            ("", 0.0),
            ("<think>abc", 0.0),
        ] {
            assert_eq!(score(completion, &row), expected, "{completion}");
        }
        let directed =
            json!({"edges": [["x1", "x2"], ["x3", "x2"]], "path": "x1 x3", "directed": true});
        assert_eq!(score("x1, x2, x3", &directed), 0.0);
        let both = json!({"edges": [[1, 2], [3, 2]], "path": [1, 3]});
        assert_eq!(score("1 2 3", &both), 1.0);
    }

    #[test]
    fn neighbors_are_a_set() {
        let row = json!({"edges": "ab,bc,cd,ad", "node": "a"});
        for (completion, expected) in
            [("db", 1.0), ("b, d", 1.0), ("b", 0.5), ("b d c", 2.0 / 3.0), ("xyz", 0.0), ("", 0.0)]
        {
            assert_eq!(score(completion, &row), expected, "{completion}");
        }
        let row = json!({"edges": "ab,ca", "node": "a", "directed": true});
        assert_eq!(score("b", &row), 1.0);
    }

    #[test]
    fn rows_without_a_question_are_refused() {
        for (row, word) in [
            (json!({"path": "ab"}), "`edges`"),
            (json!({"edges": "abc", "node": "a"}), "`edges`"),
            (json!({"edges": "ab"}), "neither `path` nor `node`"),
            (json!({"edges": "ab", "path": "ab", "node": "a"}), "both"),
            (json!({"edges": "ab", "path": "a"}), "`path`"),
            (json!({"edges": "ab", "node": [1, 2]}), "`node`"),
        ] {
            let error = Graph.check_row(row.as_object().unwrap()).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// A walk over distinct nodes makes its own edges, and is a path as it stands and turned around.
        #[test]
        fn a_walk_is_a_path(walk in Just(('a'..='h').collect::<Vec<char>>()).prop_shuffle(), length in 2usize..8) {
            let walk = &walk[..length];
            let edges: Vec<String> = walk.windows(2).map(|w| w.iter().collect()).collect();
            let ends = |walk: &[char]| json!([walk[0].to_string(), walk[length - 1].to_string()]);
            let said: String = walk.iter().collect();
            prop_assert_eq!(score(&said, &json!({"edges": edges, "path": ends(walk)})), 1.0);
            let back: String = walk.iter().rev().collect();
            let turned = json!([walk[length - 1].to_string(), walk[0].to_string()]);
            prop_assert_eq!(score(&back, &json!({"edges": edges, "path": turned})), 1.0);
            prop_assert_eq!(score(&said, &json!({"edges": edges, "path": turned})), 0.0);
        }
    }
}
