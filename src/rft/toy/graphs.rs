//! Small graphs: neighbors and paths.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, some, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[
    Toy {
        name: "neighbors",
        about: "the neighbors of a node, in any order: ab,ce,ad,bf,cd,ef,bd;a: -> bd",
        rewards: &["graph"],
        best: 1.0,
        noise: 0.0,
        draw: neighbors,
    },
    Toy {
        name: "path",
        about: "a path between two nodes, one of many: ab,bc,ad,ce,de,bd;ae: -> abce",
        rewards: &["graph"],
        best: 1.0,
        noise: 0.0,
        draw: path,
    },
];

/// An undirected graph whose nodes are the first letters.
struct Graph {
    nodes: Vec<char>,
    edges: Vec<[char; 2]>,
}

impl Graph {
    fn draw(rng: &mut Rng, nodes: usize, edges: usize) -> Graph {
        let nodes: Vec<char> = ('a'..='z').take(nodes).collect();
        let pair = |(i, &a): (usize, &char)| -> Vec<[char; 2]> {
            nodes[i + 1..].iter().map(|&b| [a, b]).collect()
        };
        let all: Vec<[char; 2]> = nodes.iter().enumerate().flat_map(pair).collect();
        let edges = some(rng, &all, edges);
        Graph { nodes, edges }
    }

    fn joins(&self, a: char, b: char) -> bool {
        self.edges.contains(&[a.min(b), a.max(b)])
    }

    fn neighbors(&self, node: char) -> Vec<char> {
        self.nodes.iter().copied().filter(|&other| self.joins(node, other)).collect()
    }

    /// The first of the shortest paths; none where there is no path.
    fn shortest(&self, from: char, to: char) -> Option<Vec<char>> {
        let mut paths = vec![vec![from]];
        let mut seen = vec![from];
        while !paths.is_empty() {
            let mut longer = Vec::new();
            for path in paths {
                let last = *path.last()?;
                if last == to {
                    return Some(path);
                }
                for next in self.neighbors(last) {
                    if !seen.contains(&next) {
                        seen.push(next);
                        longer.push([&path[..], &[next]].concat());
                    }
                }
            }
            paths = longer;
        }
        None
    }

    fn text(&self) -> String {
        self.edges.iter().map(|edge| text(edge)).collect::<Vec<_>>().join(",")
    }
}

fn text(nodes: &[char]) -> String {
    nodes.iter().collect()
}

fn neighbors(rng: &mut Rng) -> Drawn {
    let graph = Graph::draw(rng, 6, 7);
    let node = until(rng, |rng| some(rng, &graph.nodes, 1)[0], |&n| !graph.neighbors(n).is_empty());
    let right = graph.neighbors(node);
    let others: Vec<char> = graph.nodes.iter().copied().filter(|&other| other != node).collect();
    let subset = |rng: &mut Rng| {
        let count = number(rng, 1, 3) as usize;
        let mut subset = some(rng, &others, count);
        subset.sort_unstable();
        subset
    };
    let wrong = until(rng, subset, |wrong| *wrong != right);
    let prompt = format!("{};{node}:", graph.text());
    let fields = [("edges", json!(graph.text())), ("node", json!(node.to_string()))];
    Drawn::new(prompt, fields, text(&right), text(&wrong))
}

/// The ends have no edge of their own, so that each path leads over another node.
fn path(rng: &mut Rng) -> Drawn {
    let draw = |rng: &mut Rng| {
        let graph = Graph::draw(rng, 5, 6);
        let ends = some(rng, &graph.nodes, 2);
        let path = graph.shortest(ends[0], ends[1]);
        (graph, path.unwrap_or_default())
    };
    let (graph, right) = until(rng, draw, |(_, path)| path.len() > 2);
    let (from, to) = (right[0], right[right.len() - 1]);
    let between: Vec<char> =
        graph.nodes.iter().copied().filter(|n| ![from, to].contains(n)).collect();
    let walk = |rng: &mut Rng| {
        let count = number(rng, 1, between.len() as i64) as usize;
        [&[from], &some(rng, &between, count)[..], &[to]].concat()
    };
    let is_path = |walk: &Vec<char>| walk.windows(2).all(|step| graph.joins(step[0], step[1]));
    let wrong = until(rng, walk, |wrong| !is_path(wrong));
    let prompt = format!("{};{from}{to}:", graph.text());
    let ends = json!([from.to_string(), to.to_string()]);
    Drawn::new(prompt, [("edges", json!(graph.text())), ("path", ends)], text(&right), text(&wrong))
}
