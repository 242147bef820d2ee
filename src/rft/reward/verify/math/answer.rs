//! Answers: quantities with their units, and lists, sets, tuples, intervals and ratios of them.

use super::super::ratio::Ratio;
use super::expression::Parser;
use super::quantity::Quantity;
use super::token::TokenKind;
use super::unit::Unit;
use super::value::Value;

/// What a text can answer.
#[derive(Clone, Debug)]
pub enum Answer {
    Quantity(Quantity),
    Infinity {
        negative: bool,
    },
    /// In order: tuples, points, intervals, vectors; `:` opens a ratio, `#` a matrix of rows.
    Group {
        open: char,
        close: char,
        items: Vec<Answer>,
    },
    /// In any order: sets in braces, bare lists, unions, `±`.
    Set {
        bare: bool,
        items: Vec<Item>,
    },
}

/// A member, with the name in front of its `=`.
#[derive(Clone, Debug)]
pub struct Item {
    pub label: Option<String>,
    pub answer: Answer,
}

/// Most members of a list or group.
const MEMBERS: usize = 64;
/// Most tokens in front of `=`.
const LABEL: usize = 12;

impl Parser<'_> {
    /// Items with commas, semicolons, `and` or `or` between them; with `commas` off only the words.
    pub fn list(&mut self, commas: bool) -> Option<Answer> {
        let first = self.item()?;
        let mut items = vec![first];
        while let Some(item) = self.attempt(|p| {
            p.separates(commas)?;
            p.item()
        }) {
            items.push(item);
            if items.len() > MEMBERS {
                return None;
            }
        }
        match items.pop() {
            Some(only) if items.is_empty() => Some(only.answer),
            Some(last) => {
                items.push(last);
                Some(Answer::Set { bare: true, items })
            }
            None => None,
        }
    }

    fn separates(&mut self, commas: bool) -> Option<()> {
        let start = self.at;
        if commas || self.conjunction(1) {
            let _ = self.take(',') || self.take(';');
        }
        if self.conjunction(0) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    pub fn conjunction(&self, ahead: usize) -> bool {
        let words = matches!(self.word(ahead), Some("and" | "or" | "和" | "或"));
        words || matches!(self.command(ahead), Some("lor" | "vee" | "land" | "wedge"))
    }

    fn item(&mut self) -> Option<Item> {
        if let Some(answer) = self.attempt(Parser::bound) {
            return Some(Item { label: None, answer });
        }
        let mut label = None;
        while let Some(name) = self.attempt(Parser::label) {
            label = label.or(Some(name));
        }
        let _ = self.take('≈') || self.take('=');
        let mut answer = self.union()?;
        while let Some(next) = self.attempt(|p| p.equated(&answer)) {
            answer = next;
        }
        if let Some(interval) = self.attempt(|p| p.bounds(&answer)) {
            answer = interval;
        }
        Some(Item { label, answer })
    }

    /// A name and `=`: words, letters with indices, functions of something. No arithmetic.
    fn label(&mut self) -> Option<String> {
        let (start, mut named) = (self.at, false);
        loop {
            if self.at - start > LABEL {
                return None;
            }
            match &self.token(0)?.kind {
                TokenKind::Word(_) if self.conjunction(0) => return None,
                TokenKind::Word(_) => named = true,
                TokenKind::Command(name) if greek(name) || function(name) => named = true,
                TokenKind::Command(name) if decorates(name) => {
                    self.at += 1;
                    self.skip_argument()?;
                    named = true;
                    continue;
                }
                // `m + n`, `[ABC]`: no number may be among them.
                TokenKind::Sign('∠' | '\'' | '|' | '°' | '+' | '-' | '*' | '/' | '[' | ']') => {}
                // `f(x)`, and `(x, y)` by itself.
                TokenKind::Sign('(')
                    if !named && self.word(1).is_some() && self.sign(2) == Some(',') =>
                {
                    self.skip_argument()?;
                    named = true;
                    continue;
                }
                TokenKind::Sign('_' | '(') if named => {
                    self.skip_argument()?;
                    continue;
                }
                TokenKind::Sign('=' | '≈' | '∈' | ':') if named => break,
                TokenKind::Number(_) | TokenKind::Command(_) | TokenKind::Sign(_) => return None,
            }
            self.at += 1;
        }
        let label: String = self.tokens[start..self.at].iter().map(spelling).collect();
        // `:=` is one sign.
        if self.take(':') {
            let _ = self.take('=');
        } else {
            self.at += 1;
        }
        Some(label)
    }

    /// Over `_x`, `_{…}` or `(…)`.
    fn skip_argument(&mut self) -> Option<()> {
        if self.take('_') && !matches!(self.sign(0), Some('{')) {
            self.token(0)?;
            self.at += 1;
            return Some(());
        }
        let close = if self.sign(0) == Some('{') { '}' } else { ')' };
        for _ in 0..LABEL {
            self.at += 1;
            self.token(0)?;
            if self.take(close) {
                return Some(());
            }
        }
        None
    }

    /// `x > 3` as an interval.
    fn bound(&mut self) -> Option<Answer> {
        self.variable()?;
        let (less, closed) = self.relation()?;
        let limit = self.union()?;
        let infinite = Answer::Infinity { negative: less };
        Some(match less {
            true => interval(infinite, false, limit, closed),
            false => interval(limit, closed, infinite, false),
        })
    }

    /// The rest of `3 < x ≤ 5` behind `first`.
    fn bounds(&mut self, first: &Answer) -> Option<Answer> {
        let (less, closed) = self.relation()?;
        self.variable()?;
        let second = self.attempt(|p| {
            let (same, closed) = p.relation()?;
            (same == less).then_some(())?;
            Some((p.union()?, closed))
        });
        let (second, end) = second.unwrap_or((Answer::Infinity { negative: !less }, false));
        Some(match less {
            true => interval(first.clone(), closed, second, end),
            false => interval(second, end, first.clone(), closed),
        })
    }

    fn variable(&mut self) -> Option<()> {
        let letter = self.word(0).is_some_and(|word| word.chars().count() == 1)
            || self.command(0).is_some_and(greek);
        letter.then_some(())?;
        self.at += 1;
        if self.sign(0) == Some('_') {
            self.skip_argument()?;
        }
        Some(())
    }

    /// Whether the left side is the smaller, and whether they may be equal.
    fn relation(&mut self) -> Option<(bool, bool)> {
        let relation = match self.sign(0)? {
            '<' => (true, false),
            '≤' => (true, true),
            '>' => (false, false),
            '≥' => (false, true),
            _ => return None,
        };
        self.at += 1;
        Some(relation)
    }

    /// What an equation goes on with. `5 = x` is 5; of `1/3 = 0.333` and `1/3 ≈ 0.333` both sides
    /// count, of any other equation the last.
    fn equated(&mut self, left: &Answer) -> Option<Answer> {
        let about = self.take('≈');
        if !about && !self.take('=') {
            return None;
        }
        if self.attempt(|p| p.variable().filter(|()| p.ends(0))).is_some() {
            return Some(left.clone());
        }
        let right = self.union()?;
        let (Answer::Quantity(left), Answer::Quantity(right)) = (left, &right) else {
            return Some(right);
        };
        let mut right = right.clone();
        if about || right.decimal && near(left, &right) {
            right.also = Some(Box::new(left.clone()));
        }
        Some(Answer::Quantity(right))
    }

    /// Whether the answer ends before the token.
    fn ends(&self, ahead: usize) -> bool {
        self.token(ahead).is_none()
            || matches!(self.sign(ahead), Some('.' | ',' | ';'))
            || self.conjunction(ahead)
    }

    /// Intervals and sets with `∪` between them, or one quantity or group.
    fn union(&mut self) -> Option<Answer> {
        let first = self.deeper(Parser::single)?;
        let mut parts = vec![first];
        while let Some(part) = self.attempt(|p| {
            (p.take('∪')
                || p.word(0) == Some("U") && p.sign(1).is_some_and(|c| "([⦃".contains(c)) && {
                    p.at += 1;
                    true
                })
            .then_some(())?;
            p.deeper(Parser::single)
        }) {
            parts.push(part);
            if parts.len() > MEMBERS {
                return None;
            }
        }
        match parts.pop() {
            Some(only) if parts.is_empty() => Some(only),
            Some(last) => {
                parts.push(last);
                let items = parts.into_iter().flat_map(members).collect();
                Some(Answer::Set { bare: false, items })
            }
            None => None,
        }
    }

    fn single(&mut self) -> Option<Answer> {
        if self.take('∅') {
            return Some(Answer::Set { bare: false, items: Vec::new() });
        }
        if self.command(0) == Some("begin") {
            return self.matrix();
        }
        if let Some(group) = self.attempt(Parser::group) {
            return Some(group);
        }
        if let Some(infinity) = self.attempt(Parser::infinity) {
            return Some(infinity);
        }
        let start = self.at;
        (self.met_both, self.minus) = (false, false);
        let plus = self.compound()?;
        if !self.met_both {
            return Some(plus);
        }
        self.at = start;
        self.minus = true;
        let minus = self.compound();
        self.minus = false;
        let items = [plus, minus?].map(|answer| Item { label: None, answer });
        Some(Answer::Set { bare: false, items: items.into() })
    }

    fn infinity(&mut self) -> Option<Answer> {
        let negative = self.take('-');
        let both = self.take('±');
        let _ = self.take('+');
        self.take('∞').then_some(())?;
        let one = |negative| Answer::Infinity { negative };
        Some(match both {
            true => {
                let items = [one(false), one(true)].map(|answer| Item { label: None, answer });
                Answer::Set { bare: false, items: items.into() }
            }
            false => one(negative),
        })
    }

    /// Brackets around members with commas between them, or braces around any.
    fn group(&mut self) -> Option<Answer> {
        let (open, close, end) = self.brackets()?;
        let mut items = Vec::new();
        self.at += 1;
        while self.at < end {
            items.push(self.item()?);
            if items.len() > MEMBERS || self.at < end && !(self.take(',') || self.take(';')) {
                return None;
            }
        }
        self.at = end + 1;
        if open == '{' {
            return Some(Answer::Set { bare: false, items });
        }
        Some(Answer::Group { open, close, items: items.into_iter().map(|i| i.answer).collect() })
    }

    /// TokenKind and end of the brackets that open here, if they make a group. An interval may be open
    /// by brackets that look away from it, as in `]0, 1[`.
    fn brackets(&self) -> Option<(char, char, usize)> {
        let opening = self.sign(0)?;
        let (mut depth, mut comma, mut ahead) = (0usize, false, 0);
        loop {
            ahead += 1;
            let sign = match self.token(ahead)?.kind {
                TokenKind::Sign(sign) => sign,
                TokenKind::Number(_) | TokenKind::Word(_) | TokenKind::Command(_) => continue,
            };
            let away = comma
                && depth == 0
                && sign == '['
                && "[]".contains(opening)
                && self.sign(ahead - 1) != Some(',');
            match sign {
                ')' | ']' | '}' | '⟩' | '⦄' if depth == 0 => break,
                '[' if away => break,
                '(' | '[' | '{' | '⟨' | '⦃' => depth += 1,
                ')' | ']' | '}' | '⟩' | '⦄' => depth = depth.saturating_sub(1),
                ',' | ';' if depth == 0 => comma = true,
                _ => {}
            }
        }
        let (open, close) = match (opening, self.sign(ahead)?) {
            ('⦃', '⦄') => return Some(('{', '}', self.at + ahead)),
            ('{', '}') => ('{', '}'),
            ('⟨', '⟩') => ('⟨', '⟩'),
            ('(' | ']', ')' | '[') => ('(', ')'),
            ('(' | ']', ']') => ('(', ']'),
            ('[', ')' | '[') => ('[', ')'),
            ('[', ']') => ('[', ']'),
            _ => return None,
        };
        comma.then_some((open, close, self.at + ahead))
    }

    /// `\begin{pmatrix} a & b \\ c & d \end{pmatrix}`.
    fn matrix(&mut self) -> Option<Answer> {
        let environment = |p: &mut Self| {
            p.at += 1;
            let name = p.word(1)?.to_string();
            let braces = p.take('{') && {
                p.at += 1;
                p.take('}')
            };
            (braces && name.ends_with("matrix")).then_some(name)
        };
        let name = environment(self)?;
        let (mut rows, mut row) = (Vec::new(), Vec::new());
        let group = |open, items| Answer::Group { open, close: open, items };
        loop {
            row.push(self.union()?);
            let end = self.command(0) == Some("end");
            if end || self.take('⏎') {
                rows.push(group('&', std::mem::take(&mut row)));
            } else if !self.take('&') {
                return None;
            }
            if rows.len() + row.len() > MEMBERS {
                return None;
            }
            // A row separator may stand before the end.
            if end || self.command(0) == Some("end") {
                return (environment(self)? == name).then(|| group('#', rows));
            }
        }
    }

    /// One quantity, or one in several units: `2 hours and 30 minutes`, `5 feet 3 inches`; or a
    /// ratio `3:4`.
    fn compound(&mut self) -> Option<Answer> {
        let mut whole = self.quantity()?;
        if self.sign(0) == Some(':') && self.number(1).is_some() {
            return self.ratio(whole);
        }
        while let Some(sum) = self.attempt(|p| {
            let _ = p.take(',');
            p.at += (p.word(0) == Some("and")) as usize;
            p.number(0)?;
            let part = p.quantity()?;
            let ratio = part.unit.over(&whole.unit).filter(|_| !whole.unit.is_none())?;
            // Smaller units only: two lengths in feet are two lengths.
            let smaller = ratio.checked_sub(&Ratio::integer(1))?.is_negative();
            let part = part.value.mul(&Value::rational(ratio), p.fuel)?;
            if smaller { whole.value.add(&part, p.fuel) } else { None }
        }) {
            whole.value = sum;
        }
        whole.also = self.attempt(|p| p.out_of(&whole)).or(whole.also);
        Some(Answer::Quantity(whole))
    }

    /// The share in `5 out of 10`, which may mean 5 as well as 1/2.
    fn out_of(&mut self, part: &Quantity) -> Option<Box<Quantity>> {
        (self.word(0) == Some("out") && self.word(1) == Some("of")).then_some(())?;
        self.at += 2;
        self.at += (self.word(0) == Some("the")) as usize;
        let all = self.quantity()?;
        let value = part.value.div(&all.value, self.fuel)?;
        Some(Box::new(Quantity { value, unit: Unit::none(), also: None, ..part.clone() }))
    }

    fn ratio(&mut self, first: Quantity) -> Option<Answer> {
        let mut items = vec![Answer::Quantity(first)];
        while self.sign(0) == Some(':') && self.number(1).is_some() && items.len() < MEMBERS {
            self.at += 1;
            items.push(Answer::Quantity(self.quantity()?));
        }
        Some(Answer::Group { open: ':', close: ':', items })
    }
}

fn interval(low: Answer, low_closed: bool, high: Answer, high_closed: bool) -> Answer {
    Answer::Group {
        open: if low_closed { '[' } else { '(' },
        close: if high_closed { ']' } else { ')' },
        items: vec![low, high],
    }
}

/// The members of a set, or the one that is none.
fn members(answer: Answer) -> Vec<Item> {
    match answer {
        Answer::Set { items, .. } => items,
        other @ (Answer::Quantity(_) | Answer::Infinity { .. } | Answer::Group { .. }) => {
            vec![Item { label: None, answer: other }]
        }
    }
}

/// Whether the decimals may be those of the number.
fn near(number: &Quantity, decimals: &Quantity) -> bool {
    /// Coarser than any rounding that is worth writing, finer than a mistake in calculating.
    const SHARE: f64 = 0.01;
    match (number.value.to_f64(), decimals.value.to_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= SHARE * a.abs(),
        _ => false,
    }
}

/// Commands that put something on the name in braces behind them.
fn decorates(name: &str) -> bool {
    matches!(name, "vec" | "overline" | "overrightarrow" | "hat" | "bar" | "widehat" | "tilde")
}

/// Functions of a variable, whose value an equation can give.
fn function(name: &str) -> bool {
    matches!(
        name,
        "sin"
            | "cos"
            | "tan"
            | "cot"
            | "sec"
            | "csc"
            | "det"
            | "gcd"
            | "max"
            | "min"
            | "dim"
            | "arg"
            | "Pr"
            | "ln"
            | "log"
    )
}

fn greek(name: &str) -> bool {
    matches!(
        name,
        "alpha"
            | "beta"
            | "gamma"
            | "delta"
            | "epsilon"
            | "varepsilon"
            | "zeta"
            | "eta"
            | "theta"
            | "iota"
            | "kappa"
            | "lambda"
            | "mu"
            | "nu"
            | "xi"
            | "rho"
            | "sigma"
            | "tau"
            | "phi"
            | "varphi"
            | "chi"
            | "psi"
            | "omega"
            | "Delta"
            | "Omega"
            | "Gamma"
            | "Theta"
            | "Lambda"
            | "Sigma"
            | "Phi"
            | "Psi"
            | "ell"
    )
}

fn spelling(token: &super::token::Token) -> String {
    match &token.kind {
        TokenKind::Word(word) => word.clone(),
        TokenKind::Command(name) => format!("\\{name}"),
        TokenKind::Sign('{' | '}') => String::new(),
        TokenKind::Sign(sign) => sign.to_string(),
        TokenKind::Number(number) => number.digits.clone().unwrap_or_default(),
    }
}
