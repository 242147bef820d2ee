//! One metric over the steps of some runs, as SVG.

use plotters::prelude::*;

use gradus::error::{Error, Result};

/// Colors of runs, told apart also by people who confuse red and green (Okabe and Ito).
pub(super) const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
];

const SIZE: (u32, u32) = (400, 230);
const FONT: (&str, i32) = ("sans-serif", 12);
/// Most points that are joined without a mark of their own on each.
const FEW: usize = 40;

/// A run's line: its color, and (steps done, value) in order.
pub(super) type Line = (RGBColor, Vec<(f64, f64)>);

/// Draws `lines`; `phases` are steps at which a phase began.
///
/// # Errors
/// `Training` with what the drawing library says.
pub(super) fn draw(lines: &[Line], phases: &[f64]) -> Result<String> {
    let mut svg = String::new();
    match draw_into(&mut svg, lines, phases) {
        Ok(()) => Ok(svg),
        Err(error) => Err(Error::Training { reason: format!("a chart: {error}") }),
    }
}

fn draw_into(
    svg: &mut String,
    lines: &[Line],
    phases: &[f64],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let ((begin, end), (low, high)) = extents(lines);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(6)
        .margin_right(14)
        .x_label_area_size(24)
        .y_label_area_size(58)
        .build_cartesian_2d(begin..end, low..high)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(230, 230, 230))
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|&y| short(y, high - low))
        .label_style(FONT)
        .draw()?;
    let gray = RGBColor(200, 200, 200);
    let marks = phases.iter().filter(|&&at| begin < at && at < end);
    let mark = |&at: &f64| PathElement::new([(at, low), (at, high)], gray.stroke_width(1));
    chart.draw_series(marks.map(mark))?;
    for (color, points) in lines {
        chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
        if points.len() <= FEW {
            chart.draw_series(points.iter().map(|&at| Circle::new(at, 2, color.filled())))?;
        }
    }
    root.present()?;
    Ok(())
}

/// The first and last step, and the lowest and highest value with some room around them.
fn extents(lines: &[Line]) -> ((f64, f64), (f64, f64)) {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(None, |ends: Option<(f64, f64)>, x| match ends {
            None => Some((x, x)),
            Some((low, high)) => Some((low.min(x), high.max(x))),
        })
    };
    let (begin, end) = ends(&mut points().map(|at| at.0)).unwrap_or((1.0, 1.0));
    let (low, high) = ends(&mut points().map(|at| at.1)).unwrap_or((0.0, 1.0));
    let room = match high - low {
        0.0 if high == 0.0 => 1.0,
        0.0 => 0.5 * high.abs(),
        range => 0.05 * range,
    };
    // One step alone is no range.
    ((begin - 1.0, end), (low - room, high + room))
}

/// A number in few characters, on an axis of this length.
fn short(value: f64, length: f64) -> String {
    match value.abs() {
        size if size < 1e-9 * length => "0".into(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.1e}"),
        size if size < 0.1 => format!("{value:.4}"),
        size if size < 10.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_data_is_drawn() {
        let line = |points: &[(f64, f64)]| (COLORS[0], points.to_vec());
        for points in [
            &[][..],
            &[(1.0, 0.0)],
            &[(1.0, 3.0), (2.0, 3.0)],
            &[(1.0, -1e300), (2.0, 1e300)],
            &[(1.0, 1e-9), (2.0, 2e-9)],
        ] {
            let svg = draw(&[line(points), line(&[])], &[0.0, 1.0]).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
        }
        for (value, length, want) in [
            (0.0, 1.0, "0"),
            (-1e-19, 1e-3, "0"),
            (0.01234, 1.0, "0.0123"),
            (1.5, 3.0, "1.50"),
            (123.4, 1e3, "123"),
            (2e-5, 1e-4, "2.0e-5"),
        ] {
            assert_eq!(short(value, length), want);
        }
    }
}
