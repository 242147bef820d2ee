//! Names that are nearly what somebody typed.

/// The names of `known` that `word` may have been meant for, the nearest first: those with the fewest typing
/// errors, of which a name of three letters may have one, and a longer one a third of its length.
pub(crate) fn near<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let most = word.chars().count().div_ceil(3);
    let distances = known.into_iter().map(|name| (distance(name, word), name));
    let mut found: Vec<(usize, &str)> = distances.filter(|(errors, _)| *errors <= most).collect();
    let least = found.iter().map(|(errors, _)| *errors).min().unwrap_or(0);
    found.retain(|(errors, _)| *errors == least);
    found.into_iter().map(|(_, name)| name).collect()
}

/// What to say behind a list of names: which of `known` were meant, or nothing.
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = near(word, known);
    match near.is_empty() {
        true => String::new(),
        false => format!("; did you mean {}?", near.join(" or ")),
    }
}

/// Typing errors between two words: letters too many, too few, others, or two that are swapped (optimal string
/// alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            let (Some(up), Some(left)) = (i.checked_sub(1), j.checked_sub(1)) else {
                rows[i][j] = i + j;
                continue;
            };
            let other = rows[up][left] + (a[up] != b[left]) as usize;
            let mut least = other.min(rows[up][j] + 1).min(rows[i][left] + 1);
            if up > 0 && left > 0 && a[up] == b[left - 1] && a[up - 1] == b[left] {
                least = least.min(rows[up - 1][left - 1] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_are_found_and_far_ones_are_not() {
        let known = ["keep", "kind", "steps", "store", "stop", "group", "keep_share"];
        for (word, names) in [
            ("kep", &["keep"][..]),
            ("step", &["steps", "stop"]),
            ("gruop", &["group"]),
            ("keep-share", &["keep_share"]),
            ("xy", &[]),
            ("", &[]),
            ("learning", &[]),
        ] {
            assert_eq!(near(word, known), names, "{word}");
        }
        assert_eq!(did_you_mean("kep", known), "; did you mean keep?");
        assert_eq!(did_you_mean("xy", known), "");
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("grop", "grpo"), 1);
    }
}
