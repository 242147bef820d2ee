//! What a part of a reward weighs.

/// A weight that may move in a straight line over the steps of a phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weight {
    /// In the first step.
    pub first: f32,
    /// In the last step, and wherever there are no steps: in evaluations.
    pub last: f32,
}

impl Weight {
    /// One that stays.
    pub fn fixed(weight: f32) -> Weight {
        Weight { first: weight, last: weight }
    }

    /// `0.2`, or `0.2..1`; none for what is neither, or not finite.
    pub fn of(text: &str) -> Option<Weight> {
        let number = |text: &str| text.trim().parse().ok().filter(|x: &f32| x.is_finite());
        match text.split_once("..") {
            Some((first, last)) => Some(Weight { first: number(first)?, last: number(last)? }),
            None => number(text).map(Weight::fixed),
        }
    }

    /// Whether it is another at the end of a phase than at its begin.
    pub fn moves(self) -> bool {
        self.first != self.last
    }

    /// The weight when `progress` of a phase is done, 0 to 1. Both ends are exact, and one that stays is
    /// exact everywhere.
    pub fn at(self, progress: f64) -> f64 {
        let (first, last) = (self.first as f64, self.last as f64);
        match self.moves() {
            true => first * (1.0 - progress) + last * progress,
            false => last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_and_move_in_a_straight_line() {
        let moving = Weight::of("0.25..1.5").unwrap();
        assert_eq!([0.0, 0.5, 1.0].map(|t| moving.at(t)), [0.25, 0.875, 1.5]);
        assert!(moving.moves() && !Weight::fixed(0.1).moves());
        assert_eq!(Weight::fixed(0.1).at(0.3), 0.1f32 as f64);
        assert_eq!(Weight::of(" -1 .. .5 "), Some(Weight { first: -1.0, last: 0.5 }));
        for wrong in ["", "..", "1..", "..1", "1..2..3", "1..inf", "nan", "a"] {
            assert_eq!(Weight::of(wrong), None, "{wrong}");
        }
    }
}
