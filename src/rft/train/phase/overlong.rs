//! Soft overlong punishment (DAPO, arXiv:2503.14476, eq. 13): the reward falls in a straight line over
//! the last tokens before the longest completion.

/// What a completion of `length` tokens loses where `longest` are allowed: 0 up to
/// `longest - buffer`, `penalty` at `longest`, and a straight line between them.
pub(super) fn overlong(length: usize, longest: usize, buffer: usize, penalty: f64) -> f32 {
    let over = (length + buffer).saturating_sub(longest);
    (over as f64 / buffer.max(1) as f64 * penalty) as f32
}

#[cfg(test)]
mod tests {
    use super::overlong;

    /// DAPO: 20,480 tokens, of which the last 4,096 cost up to 1.
    #[test]
    fn the_reward_falls_over_the_buffer() {
        let lost = |length| overlong(length, 20_480, 4_096, 1.0);
        assert_eq!([lost(1), lost(16_384), lost(17_408), lost(18_432)], [0.0, 0.0, 0.25, 0.5]);
        assert_eq!(lost(20_480), 1.0);
        assert_eq!(overlong(20_480, 20_480, 4_096, 0.3), 0.3);
        assert_eq!([overlong(8, 10, 4, 2.0), overlong(6, 10, 4, 2.0)], [1.0, 0.0]);
        assert_eq!(overlong(10, 10, 0, 1.0), 0.0, "no buffer");
    }
}
