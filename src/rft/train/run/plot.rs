//! `curve.svg`: reward of the rollouts and accuracy on held-out prompts over the run's time.

use std::path::Path;

use plotters::prelude::*;

use gradus::error::{Error, Result};

/// What is drawn. Times are seconds of training.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    /// Heading.
    pub title: String,
    /// (time, mean reward) of each RL step.
    pub reward: Vec<(f64, f64)>,
    /// (time, accuracy) of each evaluation, SFT and RL.
    pub accuracy: Vec<(f64, f64)>,
    /// Time at which RL began.
    pub rl_start: f64,
    /// Held-out accuracy before RL, if it was measured.
    pub before_rl: Option<f64>,
}

const REWARD: RGBColor = RGBColor(160, 196, 226);
const ACCURACY: RGBColor = RGBColor(31, 90, 150);
const GRAY: RGBColor = RGBColor(120, 120, 120);
const FONT: &str = "sans-serif";

/// Draws `curve` into the file `path`.
pub fn draw(path: &Path, curve: &Curve) -> Result<()> {
    let mut svg = String::new();
    draw_into(&mut svg, curve).map_err(|e| Error::format(path, format!("plot: {e}")))?;
    crate::io::atomic::write(path, svg.as_bytes())
}

fn draw_into(
    svg: &mut String,
    curve: &Curve,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (end, low, high) = extents(curve);
    let root = SVGBackend::with_string(svg, (860, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(&curve.title, (FONT, 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..end, low..high)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(230, 230, 230))
        .x_desc("seconds of training")
        .y_desc("reward, held-out score")
        .label_style((FONT, 14))
        .draw()?;
    let warm_up =
        Rectangle::new([(0.0, low), (curve.rl_start, high)], RGBColor(246, 243, 236).filled());
    chart.draw_series([warm_up])?;
    let smooth = smoothed(&curve.reward);
    chart
        .draw_series(LineSeries::new(smooth, REWARD.stroke_width(2)))?
        .label("reward of rollouts (moving mean)")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], REWARD.stroke_width(3)));
    if let Some(score) = curve.before_rl {
        let before = [(curve.rl_start, score), (end, score)];
        chart
            .draw_series(DashedLineSeries::new(before, 5, 5, GRAY.stroke_width(1)))?
            .label("held-out score before RL")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], GRAY.stroke_width(1)));
    }
    chart
        .draw_series(LineSeries::new(curve.accuracy.iter().copied(), ACCURACY.stroke_width(2)))?
        .label("held-out score")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], ACCURACY.stroke_width(3)));
    chart.draw_series(curve.accuracy.iter().map(|&p| Circle::new(p, 3, ACCURACY.filled())))?;
    for (text, x) in [("SFT", curve.rl_start / 2.0), ("RL", (curve.rl_start + end) / 2.0)] {
        chart.draw_series([Text::new(
            text,
            (x, low + 0.98 * (high - low)),
            (FONT, 15).into_font().color(&GRAY),
        )])?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(WHITE)
        .label_font((FONT, 14))
        .draw()?;
    root.present()?;
    Ok(())
}

/// The last time, and the lowest and highest value: from 0 to 1, and as far as rewards go beyond.
fn extents(curve: &Curve) -> (f64, f64, f64) {
    let points = || curve.reward.iter().chain(&curve.accuracy);
    let end = points().map(|p| p.0).fold(1.0, f64::max);
    let (low, high) = points().fold((0.0, 1.0), |(l, h): (f64, f64), p| (l.min(p.1), h.max(p.1)));
    (end, low, high)
}

/// Mean over the 21 points around each.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let around = |i: usize| {
        let window = &points[i.saturating_sub(10)..points.len().min(i + 11)];
        window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64
    };
    (0..points.len()).map(|i| (points[i].0, around(i))).collect()
}
