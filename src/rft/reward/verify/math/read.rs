//! Where a text answers, and what.

use super::super::answer::{answer_phrases, hashes, last_boxes, tagged};
use super::super::ratio::Ratio;
use super::answer::Answer;
use super::compare::{Tolerance, same};
use super::expression::Parser;
use super::quantity::operates;
use super::sum::Fuel;
use super::token::{Token, TokenKind, tokens};

/// An answer as it was read; of an ambiguous spelling (`1,234`) each reading.
#[derive(Clone, Debug)]
pub struct Read {
    readings: Vec<Answer>,
}

/// What one place of a text says.
enum Place {
    Answer(Read),
    /// It begins like an answer and goes on with something that is none.
    Unreadable,
    /// No answer.
    Nothing,
    /// It says what the answer is not.
    Denial,
}

/// Most bytes of an answer, and of the end of a text in which an unmarked one is looked for.
const LENGTH: usize = 4096;
/// Most tokens before the answer in a sentence.
const BEFORE: usize = 40;

impl Read {
    /// A gold answer: the whole of `text`, or what it marks as its answer.
    pub fn gold(text: &str) -> Option<Read> {
        match whole(text, true) {
            Some(read) => Some(read),
            None => match marked(text) {
                Place::Answer(read) => Some(read),
                Place::Unreadable | Place::Nothing | Place::Denial => None,
            },
        }
    }

    /// What a completion answers: what it marks, or else its last number.
    pub fn completion(text: &str) -> Option<Read> {
        match marked(text) {
            Place::Answer(read) => Some(read),
            Place::Unreadable | Place::Denial => None,
            Place::Nothing => unmarked(text),
        }
    }

    /// Whether this is the answer `gold`.
    pub fn is(&self, gold: &Read, absolute: f64, relative: f64) -> bool {
        let (tolerance, mut fuel) = (Tolerance { absolute, relative }, Fuel::new());
        self.readings
            .iter()
            .any(|said| gold.readings.iter().any(|gold| same(said, gold, tolerance, &mut fuel)))
    }
}

/// A real number as it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Real {
    pub value: f64,
    /// Whether a percent sign follows.
    pub percent: bool,
}

impl Read {
    /// The answer as one real number in double precision, its unit aside; `None` for anything else.
    pub fn real(&self) -> Option<Real> {
        match self.readings.first()? {
            Answer::Quantity(quantity) if quantity.base.is_none() => {
                let value = quantity.value.to_f64().filter(|value| value.is_finite())?;
                Some(Real { value, percent: quantity.percent })
            }
            Answer::Quantity(_)
            | Answer::Infinity { .. }
            | Answer::Group { .. }
            | Answer::Set { .. } => None,
        }
    }
}

/// The fraction that `text` is as a whole, without units.
pub fn rational(text: &str) -> Option<Ratio> {
    match whole(text, true)?.readings.first()? {
        Answer::Quantity(quantity) => quantity.value.to_rational(),
        Answer::Infinity { .. } | Answer::Group { .. } | Answer::Set { .. } => None,
    }
}

/// `text` as an answer and nothing else. A gold number in groups of digits is no list.
fn whole(text: &str, gold: bool) -> Option<Read> {
    whole_or_said(text, gold, false)
}

/// `text` as an answer and nothing else; if it was `said` in a sentence, a `!` may end it.
fn whole_or_said(text: &str, gold: bool, said: bool) -> Option<Read> {
    let mut readings = Vec::new();
    for grouped in [true, false] {
        let (answer, ambiguous) = whole_as(text, grouped, said)?;
        let number = matches!(answer, Some(Answer::Quantity(_)));
        readings.extend(answer);
        if !ambiguous || gold && grouped && number {
            break;
        }
    }
    (!readings.is_empty()).then_some(Read { readings })
}

/// One reading, if it is one, and whether there may be another. `None` beyond the bounds.
fn whole_as(text: &str, grouped: bool, said: bool) -> Option<(Option<Answer>, bool)> {
    let text = text.trim();
    if text.is_empty() || text.len() > LENGTH {
        return None;
    }
    let (tokens, mut fuel) = (tokens(text, grouped), Fuel::new());
    let ambiguous = tokens.ambiguous;
    let mut parser = Parser::new(tokens.all, false, &mut fuel);
    parser.exclaims = said;
    skip_decoration(&mut parser);
    let answer = parser.list(true);
    while parser
        .sign(0)
        .is_some_and(|sign| ".,;*'⏎_:#".contains(sign) || said && "!?".contains(sign))
    {
        parser.at += 1;
    }
    let ended = parser.token(0).is_none();
    Some((answer.filter(|_| ended), ambiguous))
}

/// Over a multiple-choice letter and marks of emphasis in front: `\textbf{(C)}\ 42`.
fn skip_decoration(parser: &mut Parser<'_>) {
    while matches!(parser.sign(0), Some('*' | '_' | '#' | ':')) {
        parser.at += 1;
    }
    let letter = |word: &str| matches!(word, "A" | "B" | "C" | "D" | "E");
    if parser.sign(0) == Some('(')
        && parser.word(1).is_some_and(letter)
        && parser.sign(2) == Some(')')
    {
        parser.at += 3;
    } else if parser.word(0).is_some_and(letter) && matches!(parser.sign(1), Some(')' | '.')) {
        parser.at += 2;
    }
}

/// What a tag, a box, `####` or a phrase marks, in this order.
fn marked(text: &str) -> Place {
    if let Some(inside) = tagged(text, "answer") {
        let inner = last_boxes(inside).unwrap_or_else(|| inside.to_string());
        return content(&inner);
    }
    if let Some(inside) = last_boxes(text) {
        return content(&inside);
    }
    let mut denied = false;
    let marks = hashes(text).map(|(_, line)| (line, false));
    for (line, words) in marks.chain(answer_phrases(text).map(|(_, line)| (line, true))) {
        match sentence(line, words) {
            Place::Nothing => {}
            Place::Denial => denied = true,
            found => return found,
        }
    }
    if denied { Place::Unreadable } else { Place::Nothing }
}

/// The content of a tag or box: an answer, or a sentence with one.
fn content(inside: &str) -> Place {
    if let Some(read) = whole(inside, false) {
        return Place::Answer(read);
    }
    let phrase = answer_phrases(inside).next().map_or(inside, |(_, phrase)| phrase);
    match sentence(phrase, true) {
        Place::Answer(read) if has_prose(inside) => Place::Answer(read),
        Place::Answer(_) | Place::Unreadable | Place::Nothing | Place::Denial => Place::Unreadable,
    }
}

/// Whether there are words, as opposed to variables.
fn has_prose(text: &str) -> bool {
    let word = |token: &Token| match &token.kind {
        TokenKind::Word(word) => word.chars().count() > 3 || token.text && word.len() > 1,
        TokenKind::Number(_) | TokenKind::Command(_) | TokenKind::Sign(_) => false,
    };
    text.len() <= LENGTH && tokens(text, true).all.iter().any(word)
}

/// The answer at the start of a sentence; with `words` some may stand before it.
fn sentence(line: &str, words: bool) -> Place {
    let line = line.trim();
    if line.len() > LENGTH {
        return Place::Nothing;
    }
    // `42.` alone, and `1,234` with both its readings.
    if let Some(read) = whole_or_said(line, false, true) {
        return Place::Answer(read);
    }
    let mut fuel = Fuel::new();
    let mut parser = Parser::new(uncited(tokens(line, true).all), true, &mut fuel);
    skip_decoration(&mut parser);
    let first = parser.at;
    if !words && parser.word(0).is_some_and(|word| word.chars().count() > 1) {
        return Place::Nothing;
    }
    while parser.at <= BEFORE && parser.token(0).is_some() {
        let start = parser.at;
        if let Some(answer) = parser.attempt(|p| p.list(true)) {
            let skipped = start > first;
            if !words && heading(&parser) {
                return Place::Nothing;
            }
            let clean = clean_end(&parser) && attached(&parser, start).is_none();
            // With words before it one of several numbers is not the answer for sure.
            if !clean || skipped && more_numbers(&parser) {
                return if skipped { Place::Nothing } else { Place::Unreadable };
            }
            return Place::Answer(Read { readings: vec![answer] });
        }
        let skip = match &parser.tokens[start].kind {
            TokenKind::Sign(sign) if relates(*sign) => return Place::Unreadable,
            TokenKind::Word(word) if words && negates(word) => return Place::Denial,
            TokenKind::Word(word) if words && calculates(word) => return Place::Unreadable,
            TokenKind::Word(_) => words,
            TokenKind::Sign(sign) => words && ":*,'_-".contains(*sign),
            TokenKind::Number(_) => return Place::Unreadable,
            TokenKind::Command(_) => false,
        };
        if !skip {
            return Place::Nothing;
        }
        parser.at = start + 1;
    }
    Place::Nothing
}

fn negates(word: &str) -> bool {
    matches!(word, "not" | "isn" | "neither" | "nor" | "never" | "unlikely")
}

/// Whether a word does something to the number behind it.
fn calculates(word: &str) -> bool {
    matches!(
        word,
        "half"
            | "twice"
            | "double"
            | "triple"
            | "thrice"
            | "third"
            | "quarter"
            | "sqrt"
            | "root"
            | "square"
            | "cube"
            | "squared"
            | "between"
            | "from"
            | "than"
    )
}

/// Whether a sign gives a bound of something, or says what it is not.
fn relates(sign: char) -> bool {
    matches!(sign, '<' | '>' | '≤' | '≥' | '≠')
}

/// Whether the number just read counts a heading: `2. Check`, `1) Add`.
fn heading(parser: &Parser<'_>) -> bool {
    parser.at == 1
        && matches!(parser.sign(0), Some('.' | ')'))
        && parser.word(1).is_some()
        && parser.tokens[0].kind.short_integer()
}

impl TokenKind {
    fn short_integer(&self) -> bool {
        match self {
            TokenKind::Number(number) => {
                number.digits.as_ref().is_some_and(|digits| digits.len() <= 2)
            }
            TokenKind::Word(_) | TokenKind::Command(_) | TokenKind::Sign(_) => false,
        }
    }
}

/// Whether what follows an answer in a sentence leaves it as it is.
fn clean_end(parser: &Parser<'_>) -> bool {
    let Some(token) = parser.token(0) else { return true };
    let pause = |ahead: usize| {
        parser
            .token(ahead)
            .is_none_or(|token| token.spaced || !matches!(token.kind, TokenKind::Number(_)))
    };
    match &token.kind {
        TokenKind::Sign('.' | ',' | ';' | ':' | '?' | '!') => pause(1),
        TokenKind::Sign(')' | ']' | '}' | '\'' | '→' | '⏎') => true,
        TokenKind::Sign('(') => token.spaced,
        // Emphasis ends, or a dash begins an aside.
        TokenKind::Sign('*' | '_') => {
            !token.spaced
                && parser
                    .token(1)
                    .is_none_or(|next| next.spaced || matches!(next.kind, TokenKind::Sign(_)))
        }
        TokenKind::Sign('-') => {
            token.spaced && parser.spaced(1) && parser.word(1).is_some_and(|w| w.len() > 1)
        }
        TokenKind::Word(word) if !word.is_ascii() => true,
        TokenKind::Word(word) => {
            let letters = word.len() > 1 || matches!(word.as_str(), "a" | "A" | "I");
            let calculates = operates(word) && operand_follows(parser);
            (token.spaced || token.text) && letters && !calculates
        }
        TokenKind::Sign(_) | TokenKind::Command(_) | TokenKind::Number(_) => false,
    }
}

/// Whether a number or a variable follows the word here.
fn operand_follows(parser: &Parser<'_>) -> bool {
    let one = |word: &str| word.len() == 1 && !matches!(word, "a" | "I");
    (1..4).any(|ahead| parser.number(ahead).is_some() || parser.word(ahead).is_some_and(one))
}

/// A sentence without marks of citation, as in `10 [1].` and `10 km [1, 2]`.
fn uncited(tokens: Vec<Token>) -> Vec<Token> {
    let sign = |i: usize, sign: char| matches!(&tokens[i].kind, TokenKind::Sign(s) if *s == sign);
    let number = |i: usize| matches!(tokens[i].kind, TokenKind::Number(_));
    let cites = |i: usize| tokens[i].kind.short_integer() || sign(i, ',');
    let (mut keep, mut at) = (vec![true; tokens.len()], 1);
    while at < tokens.len() {
        // The number itself, or a unit or percent sign behind one.
        let unit = match &tokens[at - 1].kind {
            TokenKind::Word(word) => !operates(word),
            TokenKind::Sign(sign) => matches!(sign, '%' | '°' | '$' | '€'),
            TokenKind::Number(_) | TokenKind::Command(_) => false,
        };
        let behind = number(at - 1) || at > 1 && number(at - 2) && unit;
        if sign(at, '[') && tokens[at].spaced && behind {
            let end = (at + 1..tokens.len()).find(|&i| !cites(i)).unwrap_or(tokens.len());
            if end > at + 1 && end < tokens.len() && sign(end, ']') {
                keep[at..=end].fill(false);
                at = end;
            }
        }
        at += 1;
    }
    tokens.into_iter().zip(keep).filter_map(|(token, keep)| keep.then_some(token)).collect()
}

/// Whether there are numbers in the rest of the sentence.
fn more_numbers(parser: &Parser<'_>) -> bool {
    let rest = &parser.tokens[parser.at..];
    let stop = |i: &usize| {
        matches!(rest[*i].kind, TokenKind::Sign('.' | '?' | '!'))
            && rest.get(i + 1).is_none_or(|t| t.spaced)
    };
    let end = (0..rest.len()).find(stop).unwrap_or(rest.len());
    rest[..end].iter().any(|token| matches!(token.kind, TokenKind::Number(_)))
}

/// What an answer that starts at `start` hangs on, if it does on something.
fn attached(parser: &Parser<'_>, start: usize) -> Option<()> {
    let before = &parser.tokens.get(start.checked_sub(1)?)?.kind;
    let spaced = parser.tokens[start].spaced;
    let signed = matches!(parser.tokens[start].kind, TokenKind::Sign('+' | '-'));
    match before {
        TokenKind::Sign('+' | '/' | '^' | '_') => Some(()),
        TokenKind::Sign(sign) if relates(*sign) => Some(()),
        TokenKind::Sign('-' | '*') if !spaced => Some(()),
        TokenKind::Sign(')') if signed => Some(()),
        TokenKind::Word(word) if word.is_ascii() && (!spaced || signed && word.len() == 1) => {
            Some(())
        }
        TokenKind::Sign(_) | TokenKind::Word(_) | TokenKind::Command(_) | TokenKind::Number(_) => {
            None
        }
    }
}

/// The answer of a text that marks none: all of it, its last line with a number, the mathematics
/// that its last number stands in, or that number.
fn unmarked(text: &str) -> Option<Read> {
    if let Some(read) = whole_or_said(text, false, true) {
        return Some(read);
    }
    let mut from = text.len().saturating_sub(LENGTH);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let line = text[from..].lines().rev().find(|line| line.chars().any(numeric))?;
    whole_or_said(line, false, true)
        .or_else(|| whole(last_formula(line)?, false))
        .or_else(|| last_number(line))
}

fn numeric(c: char) -> bool {
    c.is_numeric() || c == 'π' || c == '∞'
}

/// Content of the last `$…$`, `\(…\)` or `\[…\]` of a line, if no number follows it.
fn last_formula(line: &str) -> Option<&str> {
    let found =
        [("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")].into_iter().filter_map(|(open, close)| {
            let end = line.rfind(close)?;
            let start = line[..end].trim_end_matches('$').rfind(open)? + open.len();
            let (inside, rest) = (&line[start..end], &line[end..]);
            (!rest.chars().any(numeric)).then_some(inside)
        });
    found.min_by_key(|inside| inside.len()).map(|inside| inside.trim_matches('$'))
}

/// The last number of a line, unless it is a part of something that cannot be read.
fn last_number(line: &str) -> Option<Read> {
    let mut fuel = Fuel::new();
    let mut parser = Parser::new(uncited(tokens(line, true).all), true, &mut fuel);
    let mut last = None;
    while let Some(token) = parser.token(0) {
        let (start, word) = (parser.at, matches!(token.kind, TokenKind::Word(_)));
        // A dash between a word and a number is no sign.
        let dash = matches!(token.kind, TokenKind::Sign('-')) && token.spaced && parser.spaced(1);
        let dash = dash && start > 0 && matches!(parser.tokens[start - 1].kind, TokenKind::Word(_));
        let answer = match word || dash {
            true => None,
            false => parser.attempt(|p| p.list(false)),
        };
        match answer {
            Some(answer) => {
                let whole = clean_end(&parser) && attached(&parser, start).is_none();
                last = Some((answer, whole));
            }
            None => {
                if matches!(parser.tokens[start].kind, TokenKind::Number(_)) {
                    last = None;
                }
                parser.at = start + 1;
            }
        }
    }
    let (answer, whole) = last?;
    whole.then(|| Read { readings: vec![answer] })
}
