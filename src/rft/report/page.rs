//! The page: one HTML file that loads nothing and runs no script. All texts of a run are foreign and escaped.

use std::collections::BTreeSet;

use super::chart::{self, COLORS, Line};
use super::read::RunFiles;
use super::{FIGURES, differing};
use crate::train::run::metrics::Metric;
use gradus::error::Result;

const STYLE: &str = include_str!("style.css");

/// What stands at the top, in order, where it was measured. Everything else follows folded.
const FIRST: [&str; 13] = [
    "reward",
    "eval/accuracy",
    "kl",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "loss",
    "grad_norm",
    "learning_rate",
    "ratio_max_abs_dev",
    "time/tokens_per_second",
];

/// Text for HTML. Control characters but for line ends are shown as a box.
pub(super) fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The page of one run, or of several side by side.
///
/// # Errors
/// What the drawing library says.
pub(super) fn page(runs: &[RunFiles]) -> Result<String> {
    let names: Vec<String> = runs.iter().map(|run| text(&run.name)).collect();
    let title = names.join(" and ");
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    figures(&mut out, runs);
    charts(&mut out, runs)?;
    for run in runs {
        samples(&mut out, run);
    }
    settings(&mut out, runs);
    made_with(&mut out, runs);
    out += "</body>\n</html>\n";
    Ok(out)
}

/// A table with a column per run.
fn table(out: &mut String, runs: &[RunFiles], rows: &[(String, Vec<String>)]) {
    *out += "<table>\n<tr><th></th>";
    for (run, color) in runs.iter().zip(COLORS.iter().cycle()) {
        let (r, g, b) = (color.0, color.1, color.2);
        let mark = format!("<span class=\"mark\" style=\"background:rgb({r},{g},{b})\"></span>");
        *out += &format!("<th>{mark}{}</th>", text(&run.name));
    }
    *out += "</tr>\n";
    for (name, values) in rows {
        *out += &format!("<tr><th>{}</th>", text(name));
        for value in values {
            *out += &format!("<td>{}</td>", text(value));
        }
        *out += "</tr>\n";
    }
    *out += "</table>\n";
}

/// What the runs came to.
fn figures(out: &mut String, runs: &[RunFiles]) {
    let row = |(key, name): &(&str, &str)| {
        let values: Vec<String> = runs.iter().map(|run| run.figure(key)).collect();
        (name.to_string(), values)
    };
    let rows: Vec<(String, Vec<String>)> = FIGURES.iter().map(row).collect();
    let known = rows.into_iter().filter(|(_, values)| values.iter().any(|v| !v.is_empty()));
    table(out, runs, &known.collect::<Vec<_>>());
    for run in runs.iter().filter(|run| run.summary.is_none()) {
        let (name, steps) = (text(&run.name), run.rows.len());
        *out += &format!("<p>{name} has not ended: {steps} steps are done.</p>\n");
    }
}

/// A chart per metric that has a value.
fn charts(out: &mut String, runs: &[RunFiles]) -> Result<()> {
    let known = |name: &str| runs.iter().any(|run| !run.series(name).is_empty());
    let (mut first, mut rest) = (String::new(), String::new());
    for name in FIRST.into_iter().filter(|name| known(name)) {
        first += &figure(runs, name)?;
    }
    for name in others(runs).iter().filter(|name| known(name)) {
        rest += &figure(runs, name)?;
    }
    write_charts(out, &first);
    if !rest.is_empty() {
        *out += "<details><summary>More metrics</summary>\n";
        write_charts(out, &rest);
        *out += "</details>\n";
    }
    Ok(())
}

fn write_charts(out: &mut String, figures: &str) {
    *out += &format!("<div class=\"charts\">\n{figures}</div>\n");
}

fn figure(runs: &[RunFiles], name: &str) -> Result<String> {
    let line = |(run, color): (&RunFiles, &_)| (*color, run.series(name));
    let lines: Vec<Line> = runs.iter().zip(COLORS.iter().cycle()).map(line).collect();
    let phases = match runs {
        [one] => one.phases().into_iter().map(|(at, _)| at).collect(),
        _ => Vec::new(),
    };
    let svg = chart::draw(&lines, &phases)?;
    Ok(format!("<figure><figcaption>{}</figcaption>\n{svg}</figure>\n", text(name)))
}

/// Metrics that are not among the first: those of every run in their order, then the parts of rewards.
fn others(runs: &[RunFiles]) -> Vec<String> {
    let mut names: Vec<String> =
        Metric::ALL.iter().map(|metric| metric.name().to_string()).collect();
    let keys = runs.iter().flat_map(|run| &run.rows).flat_map(|row| row.keys());
    let parts: BTreeSet<&String> =
        keys.filter(|key| !is_place(key) && !names.contains(key)).collect();
    names.extend(parts.into_iter().cloned().collect::<Vec<_>>());
    names.retain(|name| !FIRST.contains(&name.as_str()));
    names
}

fn is_place(key: &str) -> bool {
    ["global", "phase", "step"].contains(&key)
}

/// What a run said to the first held-out prompts, evaluation by evaluation.
fn samples(out: &mut String, run: &RunFiles) {
    if run.examples.is_empty() {
        return;
    }
    let name = text(&run.name);
    *out += &format!("<h2>Samples: {name}</h2>\n<table class=\"samples\">\n");
    *out +=
        "<tr><th>steps</th><th>phase</th><th>prompt</th><th>completion</th><th>score</th></tr>\n";
    for row in &run.examples {
        for sample in &row.samples {
            let prompt = sample.question.as_ref().unwrap_or(&sample.prompt);
            let verdict = sample.verdict().unwrap_or_default();
            let (prompt, completion) = (text(prompt), text(&sample.completion));
            let (phase, verdict) = (text(&row.phase), text(&verdict));
            *out += &format!(
                "<tr><td>{}</td><td>{phase}</td><td><pre>{prompt}</pre></td>\
                 <td><pre>{completion}</pre></td><td>{verdict}</td></tr>\n",
                row.global
            );
        }
    }
    *out += "</table>\n";
}

/// All settings of one run; of several those that differ.
fn settings(out: &mut String, runs: &[RunFiles]) {
    match runs {
        [one] => {
            *out += "<details><summary>Settings</summary>\n";
            let row = |(key, value): &(String, String)| (key.clone(), vec![value.clone()]);
            table(out, runs, &one.settings.iter().map(row).collect::<Vec<_>>());
            *out += "</details>\n";
        }
        _ => {
            *out += "<h2>Settings that differ</h2>\n";
            table(out, runs, &differing(runs));
        }
    }
}

/// Version, device and the files that the runs read.
fn made_with(out: &mut String, runs: &[RunFiles]) {
    *out += "<details><summary>Made with</summary>\n";
    for run in runs {
        let row = |(key, value): &(String, String)| (key.clone(), vec![value.clone()]);
        let mut rows: Vec<_> = run.made_with.iter().map(row).collect();
        rows.push(("folder".into(), vec![run.folder.display().to_string()]));
        table(out, std::slice::from_ref(run), &rows);
    }
    *out += "</details>\n";
}
