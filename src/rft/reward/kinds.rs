//! The rewards that have a name: a row each.

use std::sync::Arc;

use super::Reward;
use super::command::CommandReward;
use super::http::HttpReward;
use super::spec::SpecOptions;
use super::url::redacted;
use super::verify::{
    ChartCode, Checklist, Code, Countdown, Detect, Diversity, Exact, Format, Graph, Interval, Iou,
    Json, Length, Numeric, Options, Placed, Point, Relative, Set, Similar, ToolCall, ToolGraded,
    XmlCount,
};
use gradus::error::{Error, Result};

pub(super) type ParsedReward = Result<Arc<dyn Reward>>;

/// A name, what may follow it, and what it does.
pub(super) struct RewardKind {
    pub name: &'static str,
    pub usage: &'static str,
    pub help: &'static str,
    /// The row's field it compares with, if there is one that it cannot do without.
    pub gold: Option<&'static str>,
    /// Makes the reward of the argument, the whole part and the options.
    pub make: fn(Option<&str>, &str, &SpecOptions) -> ParsedReward,
}

pub(super) const KINDS: &[RewardKind] = &[
    RewardKind {
        name: "numeric",
        usage: "numeric[:TOLERANCE[,PARTIAL]]",
        help: "the answer is the row's `answer`: numbers, fractions, roots, constants, units, percent, \
               sets, tuples, intervals, compared exactly; tolerance 0.01 (absolute) or 1% (relative); \
               partial: score of another number",
        gold: Some("answer"),
        make: |argument, part, _| {
            let wrong = || wrong(part, "a number or a percentage, and a comma and a number");
            Ok(Arc::new(numeric(argument).ok_or_else(wrong)?))
        },
    },
    RewardKind {
        name: "exact",
        usage: "exact",
        help: "the answer is the row's `answer`, case and spacing aside",
        gold: Some("answer"),
        make: |argument, part, _| plain(argument, part, Exact::default()),
    },
    RewardKind {
        name: "relative",
        usage: "relative",
        help: "1/(1+e) for the relative error e of a number, or the row's text exactly",
        gold: Some("answer"),
        make: |argument, part, _| plain(argument, part, Relative::default()),
    },
    RewardKind {
        name: "placed",
        usage: "placed[:A,B,C]",
        help: "A if the answer is right in a box in <answer>, B if in another box, else C; 2,1,0",
        gold: Some("answer"),
        make: |argument, part, _| {
            Ok(Arc::new(placed(argument).ok_or_else(|| wrong(part, "three numbers as in 2,1,0"))?))
        },
    },
    RewardKind {
        name: "similar",
        usage: "similar[:THRESHOLD]",
        help: "F1 of the words that answer and row's `answer` share, or 1 from a threshold on",
        gold: Some("answer"),
        make: |argument, part, _| {
            let threshold = share(argument).ok_or_else(|| wrong(part, SHARE))?;
            Ok(Arc::new(Similar { threshold, ..Similar::default() }))
        },
    },
    RewardKind {
        name: "set",
        usage: "set[:chars]",
        help: "Jaccard index of the items that are said and those of the row's `answer`; `chars`: \
               each letter and digit is an item",
        gold: Some("answer"),
        make: |argument, part, _| {
            let chars = flag(argument, "chars").ok_or_else(|| wrong(part, "`chars` or nothing"))?;
            Ok(Arc::new(Set { chars, ..Set::default() }))
        },
    },
    RewardKind {
        name: "options",
        usage: "options",
        help: "the letters of the row's `answer` are chosen, and no others",
        gold: Some("answer"),
        make: |argument, part, _| plain(argument, part, Options::default()),
    },
    RewardKind {
        name: "format",
        usage: "format[:REGEX]",
        help: "the shape <think>…</think><answer>…</answer>, without <think> where the prompt ends \
               in it; or the shape of a regular expression",
        gold: None,
        make: |argument, _, _| Ok(Arc::new(format(argument, false)?)),
    },
    RewardKind {
        name: "signed-format",
        usage: "signed-format[:REGEX]",
        help: "1 for the shape that `format` wants, -1 for any other; with reward.combine = min",
        gold: None,
        make: |argument, _, _| Ok(Arc::new(format(argument, true)?)),
    },
    RewardKind {
        name: "xml-count",
        usage: "xml-count[:TAG,TAG…]",
        help: "share of the tags' marks that stand there once, less 0.001 for each character behind \
               the last; think,answer by default",
        gold: None,
        make: |argument, part, _| {
            let wrong = || wrong(part, "names of tags as in think,answer");
            Ok(Arc::new(
                argument
                    .map_or_else(|| Some(XmlCount::default()), XmlCount::of)
                    .ok_or_else(wrong)?,
            ))
        },
    },
    RewardKind {
        name: "json",
        usage: "json[:KEY,KEY…]",
        help: "JSON with these keys that satisfies the row's `schema`, if there is one",
        gold: None,
        make: |argument, _, _| Ok(Arc::new(json(argument))),
    },
    RewardKind {
        name: "tool-call",
        usage: "tool-call",
        help: "share of the row's `tool_calls` that are made, and no others; null arguments are \
               absent ones",
        gold: Some("tool_calls"),
        make: |argument, part, _| plain(argument, part, ToolCall::default()),
    },
    RewardKind {
        name: "tool-graded",
        usage: "tool-graded",
        help: "from -3 to 3: names, keys and values of calls against the row's `tool_calls`, -3 for \
               what cannot be read; null arguments are absent ones",
        gold: Some("tool_calls"),
        make: |argument, part, _| plain(argument, part, ToolGraded::default()),
    },
    RewardKind {
        name: "iou",
        usage: "iou[:THRESHOLD]",
        help: "overlap with the row's `boxes` of [x1,y1,x2,y2], [x1,y1,x2,y2,score] or \
               (x1,y1),(x2,y2), or the share of boxes with so much overlap",
        gold: Some("boxes"),
        make: |argument, part, _| {
            let threshold = share(argument).ok_or_else(|| wrong(part, SHARE))?;
            Ok(Arc::new(Iou { threshold, ..Iou::default() }))
        },
    },
    RewardKind {
        name: "detect",
        usage: "detect[:THRESHOLD]",
        help: "from 0 to 2: overlap of boxes with the row's `boxes`, the surest first, from 0.5 on, \
               and how well their confidences say which are right",
        gold: Some("boxes"),
        make: |argument, part, _| {
            let threshold = share(argument).ok_or_else(|| wrong(part, SHARE))?;
            let own = Detect::default();
            Ok(Arc::new(Detect { threshold: threshold.unwrap_or(own.threshold), ..own }))
        },
    },
    RewardKind {
        name: "point",
        usage: "point",
        help: "the point, or the center of the box, lies in one of the row's `boxes`",
        gold: Some("boxes"),
        make: |argument, part, _| plain(argument, part, Point::default()),
    },
    RewardKind {
        name: "interval",
        usage: "interval[:THRESHOLD]",
        help: "overlap of two times with the row's `interval` of [start, end], or 1 from a \
               threshold on",
        gold: Some("interval"),
        make: |argument, part, _| {
            let threshold = share(argument).ok_or_else(|| wrong(part, SHARE))?;
            Ok(Arc::new(Interval { threshold, ..Interval::default() }))
        },
    },
    RewardKind {
        name: "graph",
        usage: "graph",
        help: "a path along the row's `edges` between the two nodes of its `path`, or the Jaccard \
               index with the neighbors of its `node`; `directed` if they are",
        gold: Some("edges"),
        make: |argument, part, _| plain(argument, part, Graph),
    },
    RewardKind {
        name: "checklist",
        usage: "checklist",
        help: "share of the row's `checklist` that holds: texts to contain, or {contains}, {lacks}, \
               {matches}",
        gold: Some("checklist"),
        make: |argument, part, _| plain(argument, part, Checklist::default()),
    },
    RewardKind {
        name: "length",
        usage: "length[:chars]",
        help: "the smaller over the larger of the words that are there and the row's `length`, or 1 \
               within [least, most]",
        gold: Some("length"),
        make: |argument, part, _| {
            let chars = flag(argument, "chars").ok_or_else(|| wrong(part, "`chars` or nothing"))?;
            Ok(Arc::new(Length { chars, ..Length::default() }))
        },
    },
    RewardKind {
        name: "diversity",
        usage: "diversity[:N]",
        help: "1 - the mean similarity (Jaccard index of N characters in a row, 3 by default) to \
               the prompt's other samples",
        gold: None,
        make: |argument, part, _| {
            let own = Diversity::default();
            let chars = argument.map_or(Some(own.chars), |n| n.parse().ok().filter(|n| *n > 0));
            let chars = chars.ok_or_else(|| wrong(part, "a number of characters"))?;
            Ok(Arc::new(Diversity { chars }))
        },
    },
    RewardKind {
        name: "countdown",
        usage: "countdown[:all][,PARTIAL]",
        help: "an expression over the row's `numbers` makes its `target`; `all`: uses all of them; \
               partial: score of a wrong value",
        gold: Some("target"),
        make: |argument, part, _| {
            Ok(Arc::new(
                countdown(argument)
                    .ok_or_else(|| wrong(part, "`all`, a number, or `all,` and a number"))?,
            ))
        },
    },
    RewardKind {
        name: "code",
        usage: "code[:INTERPRETER]",
        help: "share of the row's `tests` that the last code block passes; python3 by default; \
               limits on time and memory, NOT a security sandbox",
        gold: Some("tests"),
        make: |argument, part, options| code(argument, part, options),
    },
    RewardKind {
        name: "chart-code",
        usage: "chart-code",
        help: "how near the last code block comes to the row's `code`: mean of data, kinds of chart, \
               layout and texts; nothing is run",
        gold: Some("code"),
        make: |argument, part, _| plain(argument, part, ChartCode::default()),
    },
    RewardKind {
        name: "cmd",
        usage: "cmd:PROGRAM ARGUMENTS",
        help: "a command that reads a JSON line per sample and answers {\"id\": its id, \"score\": number or null}; \
               no shell, but its quotes",
        gold: None,
        make: |argument, part, options| command(argument, part, options),
    },
    RewardKind {
        name: "http",
        usage: "http://HOST/PATH",
        help: "a service that samples are posted to; secrets as variables: http://$USER:$PASS@HOST/",
        gold: None,
        make: |_, part, options| Ok(Arc::new(HttpReward::new(part, options.http.clone())?)),
    },
    RewardKind {
        name: "https",
        usage: "https://HOST/PATH",
        help: "the same; needs the cargo feature `tls`",
        gold: None,
        make: |_, part, options| Ok(Arc::new(HttpReward::new(part, options.http.clone())?)),
    },
];

fn wrong(part: &str, expected: &str) -> Error {
    let part = redacted(part);
    Error::config("reward", format!("`{part}`, expected {expected} after the colon"))
}

fn plain(argument: Option<&str>, part: &str, reward: impl Reward + 'static) -> ParsedReward {
    match argument {
        None => Ok(Arc::new(reward)),
        Some(_) => Err(wrong(part, "nothing")),
    }
}

/// A number that is finite and not negative.
fn size(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0)
}

fn numeric(argument: Option<&str>) -> Option<Numeric> {
    let numeric = Numeric::default();
    let Some(text) = argument else { return Some(numeric) };
    let (tolerance, partial) = text.split_once(',').map_or((text, None), |(t, p)| (t, Some(p)));
    let partial = partial.map_or(Some(numeric.partial), |p| size(p).map(|p| p as f32))?;
    Some(match tolerance.trim().strip_suffix('%') {
        Some(percent) => Numeric { relative: size(percent)? / 100.0, partial, ..numeric },
        None => Numeric { absolute: size(tolerance)?, partial, ..numeric },
    })
}

fn format(argument: Option<&str>, signed: bool) -> Result<Format> {
    let mut format = argument.map_or_else(|| Ok(Format::think_answer()), Format::new)?;
    format.signed = signed;
    Ok(format)
}

fn placed(argument: Option<&str>) -> Option<Placed> {
    let own = Placed::default();
    let Some(text) = argument else { return Some(own) };
    let number = |text: &str| text.trim().parse().ok().filter(|x: &f32| x.is_finite());
    let scores: Vec<f32> = text.split(',').map(number).collect::<Option<_>>()?;
    Some(Placed { scores: scores.try_into().ok()?, ..own })
}

/// What [`share`] takes.
const SHARE: &str = "a threshold above 0, up to 1";

/// A threshold above 0 and up to 1, if one is given.
fn share(argument: Option<&str>) -> Option<Option<f64>> {
    let share = |text: &str| size(text).filter(|&t| t > 0.0 && t <= 1.0);
    argument.map_or(Some(None), |text| share(text).map(Some))
}

/// Whether the only word that is allowed is given.
fn flag(argument: Option<&str>, word: &str) -> Option<bool> {
    argument.map_or(Some(false), |text| (text == word).then_some(true))
}

fn json(argument: Option<&str>) -> Json {
    let keys = argument.into_iter().flat_map(|keys| keys.split(','));
    let keys = keys.map(|key| key.trim().to_string()).filter(|key| !key.is_empty());
    Json { keys: keys.collect(), ..Json::default() }
}

fn countdown(argument: Option<&str>) -> Option<Countdown> {
    let mut countdown = Countdown::default();
    for word in argument.into_iter().flat_map(|words| words.split(',')) {
        match word.trim() {
            "all" => countdown.all = true,
            number => countdown.partial = size(number)? as f32,
        }
    }
    Some(countdown)
}

fn words(argument: &str, part: &str) -> Result<Vec<String>> {
    shell_words::split(argument)
        .map_err(|error| Error::config("reward", format!("`{}`: {error}", redacted(part))))
}

fn code(argument: Option<&str>, part: &str, options: &SpecOptions) -> ParsedReward {
    let mut code = Code::default();
    if let Some(interpreter) = argument {
        code.interpreter = words(interpreter, part)?;
    }
    code.time = options.code_time.unwrap_or(code.time);
    let program = &code.interpreter[0];
    if super::process::find_program(program).is_none() {
        let part = redacted(part);
        let reason = format!("`{part}` needs `{program}`, and there is no such program");
        return Err(Error::config("reward", reason));
    }
    Ok(Arc::new(code))
}

fn command(argument: Option<&str>, part: &str, options: &SpecOptions) -> ParsedReward {
    let argv = words(argument.unwrap_or(""), part)?;
    Ok(Arc::new(CommandReward::new(argv, options.command.clone())?))
}
