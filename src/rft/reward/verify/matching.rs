//! Pairing rows with columns for the most weight.

/// Larger side up to which the pairing is the best one; beyond it is greedy, which gives at least
/// half of the best weight.
pub const OPTIMAL: usize = 32;

/// Weight of a one-to-one pairing of the rows of `weight` with its columns. Weights are at least 0.
pub fn best_pairing(weight: &[Vec<f64>]) -> f64 {
    let columns = weight.first().map_or(0, Vec::len);
    if weight.len().max(columns) <= OPTIMAL { optimal(weight, columns) } else { greedy(weight) }
}

/// The heaviest free pair, again and again; of equal pairs the first.
fn greedy(weight: &[Vec<f64>]) -> f64 {
    let mut pairs: Vec<(f64, usize, usize)> = weight
        .iter()
        .enumerate()
        .flat_map(|(i, row)| row.iter().enumerate().map(move |(j, &w)| (w, i, j)))
        .filter(|pair| pair.0 > 0.0)
        .collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let columns = weight.first().map_or(0, Vec::len);
    let (mut rows, mut used, mut total) = (vec![false; weight.len()], vec![false; columns], 0.0);
    for (w, i, j) in pairs {
        if !rows[i] && !used[j] {
            (rows[i], used[j]) = (true, true);
            total += w;
        }
    }
    total
}

/// The Hungarian method on costs -weight, padded to a square: one row after another is added along
/// the cheapest augmenting path, found as in Dijkstra's algorithm with potentials that keep reduced
/// costs from being negative. O(n³).
fn optimal(weight: &[Vec<f64>], columns: usize) -> f64 {
    let n = weight.len().max(columns);
    let at = |i: usize, j: usize| weight.get(i).and_then(|row| row.get(j)).copied().unwrap_or(0.0);
    // Index 0 stands for "none": rows and columns count from 1.
    let (mut row_potential, mut column_potential) = (vec![0.0; n + 1], vec![0.0; n + 1]);
    let mut row_of = vec![0usize; n + 1];
    for row in 1..=n {
        row_of[0] = row;
        let (mut least, mut from) = (vec![f64::INFINITY; n + 1], vec![0usize; n + 1]);
        let (mut done, mut column) = (vec![false; n + 1], 0);
        while row_of[column] != 0 {
            done[column] = true;
            let (i, mut delta, mut next) = (row_of[column], f64::INFINITY, 0);
            for j in (1..=n).filter(|&j| !done[j]) {
                let reduced = -at(i - 1, j - 1) - row_potential[i] - column_potential[j];
                if reduced < least[j] {
                    (least[j], from[j]) = (reduced, column);
                }
                if least[j] < delta {
                    (delta, next) = (least[j], j);
                }
            }
            for j in 0..=n {
                if done[j] {
                    row_potential[row_of[j]] += delta;
                    column_potential[j] -= delta;
                } else {
                    least[j] -= delta;
                }
            }
            column = next;
        }
        while column != 0 {
            row_of[column] = row_of[from[column]];
            column = from[column];
        }
    }
    (1..=n).map(|j| at(row_of[j] - 1, j - 1)).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Best weight by trying everything.
    fn brute(weight: &[Vec<f64>], used: u32) -> f64 {
        let Some((row, rest)) = weight.split_first() else { return 0.0 };
        let free = (0..row.len()).filter(|j| used & 1 << j == 0);
        free.map(|j| row[j] + brute(rest, used | 1 << j)).fold(brute(rest, used), f64::max)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn optimal_is_optimal(
            rows in 0usize..6,
            columns in 0usize..6,
            values in prop::collection::vec(0u8..8, 36),
        ) {
            let weight: Vec<Vec<f64>> = (0..rows)
                .map(|i| (0..columns).map(|j| values[6 * i + j] as f64).collect())
                .collect();
            let best = brute(&weight, 0);
            prop_assert_eq!(optimal(&weight, columns), best);
            prop_assert!(greedy(&weight) <= best && 2.0 * greedy(&weight) >= best);
        }
    }
}
