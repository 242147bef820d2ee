//! What all toys draw with.

use serde_json::{Map, Value, json};

use gradus::rng::Rng;

/// A problem with its answers.
pub(super) struct Drawn {
    /// The prompt, and what the reward compares with.
    pub row: Map<String, Value>,
    /// A right answer: a text, or the [`messages`] of an episode.
    pub demo: Option<Value>,
    /// A wrong answer of the right form.
    pub wrong: Option<Value>,
}

impl Drawn {
    /// A problem to learn from a right answer, or from a wrong one.
    pub fn new<const N: usize>(
        prompt: String,
        fields: [(&str, Value); N],
        demo: impl Into<Value>,
        wrong: impl Into<Value>,
    ) -> Drawn {
        let mut row = Map::from_iter([("prompt".to_string(), prompt.into())]);
        row.extend(fields.map(|(name, value)| (name.to_string(), value)));
        Drawn { row, demo: Some(demo.into()), wrong: Some(wrong.into()) }
    }
}

/// An episode: what the assistant says and what is said to it, in turn.
pub(super) fn messages<T: AsRef<str>>(said: &[T]) -> Value {
    let message = |(i, text): (usize, &T)| {
        let role = if i.is_multiple_of(2) { "assistant" } else { "user" };
        json!({ "role": role, "content": text.as_ref() })
    };
    said.iter().enumerate().map(message).collect()
}

/// One of `items`.
pub(super) fn pick<'a, T>(rng: &mut Rng, items: &'a [T]) -> &'a T {
    &items[rng.below(items.len())]
}

/// `count` of `items` in a random order, each at most once.
pub(super) fn some<T: Copy>(rng: &mut Rng, items: &[T], count: usize) -> Vec<T> {
    let mut all = items.to_vec();
    rng.shuffle(&mut all);
    all.truncate(count);
    all
}

/// A number from `low` to `high`, both included.
pub(super) fn number(rng: &mut Rng, low: i64, high: i64) -> i64 {
    low + rng.below((high - low + 1) as usize) as i64
}

/// The first value that `draw` makes and `fits` takes.
pub(super) fn until<T>(
    rng: &mut Rng,
    mut draw: impl FnMut(&mut Rng) -> T,
    fits: impl Fn(&T) -> bool,
) -> T {
    loop {
        let value = draw(rng);
        if fits(&value) {
            return value;
        }
    }
}

/// Digits, one beside the other.
pub(super) fn text(digits: &[u8]) -> String {
    digits.iter().map(u8::to_string).collect()
}
