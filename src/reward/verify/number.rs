//! Numbers as people and models write them: `1,234.5`, `-3`, `3/4`, `\frac{3}{4}`, `50%`, `$12`,
//! `6.02e23`, with `-` or the minus sign of typesetting.

use super::ratio::Ratio;

/// A number out of a text.
///
/// It is compared exactly: as a fraction where numerator and denominator fit in 128 bits, else as
/// written, after normalisation of signs, zeros and exponents. Two long decimals are therefore
/// equal only if they are; a fraction with parts beyond 128 bits equals only its own spelling.
#[derive(Clone, Debug)]
pub struct Number {
    exact: Exact,
    approximate: f64,
    percent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Exact {
    Ratio(Ratio),
    Spelling(String),
}

impl Number {
    /// The number that `text` is, spaces, `$…$`, `\(…\)` and a full stop around it aside.
    pub fn parse(text: &str) -> Option<Number> {
        let text = unwrapped(text);
        let (number, end) = Scanner { bytes: text.as_bytes(), at: 0 }.number()?;
        (end == text.len()).then_some(number)
    }

    /// The same number. A percent sign on one side only may mean either of two things, and both
    /// are taken: `50%` is 50 and 0.5.
    pub fn equals(&self, other: &Number) -> bool {
        self.any_reading(other, |a, b| a.exact == b.exact)
    }

    /// Within `absolute + relative·|gold|` of `gold`, in doubles.
    pub fn is_near(&self, gold: &Number, absolute: f64, relative: f64) -> bool {
        self.any_reading(gold, |a, b| {
            let (a, b) = (a.approximate, b.approximate);
            (a - b).abs() <= absolute + relative * b.abs()
        })
    }

    /// Nearest double, infinite beyond their range.
    pub fn to_f64(&self) -> f64 {
        self.approximate
    }

    /// The number as a fraction, a percent sign aside, if it fits.
    pub fn ratio(&self) -> Option<Ratio> {
        match self.exact {
            Exact::Ratio(ratio) => Some(ratio),
            Exact::Spelling(_) => None,
        }
    }

    fn any_reading(&self, other: &Number, same: impl Fn(&Number, &Number) -> bool) -> bool {
        same(self, other)
            || self.percent && !other.percent && same(&self.hundredth(), other)
            || other.percent && !self.percent && same(self, &other.hundredth())
    }

    fn hundredth(&self) -> Number {
        let exact = match &self.exact {
            Exact::Ratio(ratio) => {
                let part = Ratio::new(1, 100).and_then(|percent| ratio.checked_mul(percent));
                part.map_or_else(|| Exact::Spelling("out of range".into()), Exact::Ratio)
            }
            Exact::Spelling(text) => Exact::Spelling(format!("{text}%")),
        };
        Number { exact, approximate: self.approximate / 100.0, percent: false }
    }

    fn negated(mut self) -> Number {
        self.approximate = -self.approximate;
        self.exact = match self.exact {
            Exact::Ratio(ratio) => Exact::Ratio(ratio.negated()),
            Exact::Spelling(text) => Exact::Spelling(format!("-{text}")),
        };
        self
    }

    /// `digits` with a point before the last `decimals` of them, times ten to the `exponent`.
    fn decimal(digits: &str, decimals: usize, exponent: i64) -> Number {
        let exponent = exponent.saturating_sub(decimals as i64);
        let significant = digits.trim_start_matches('0');
        let short = significant.trim_end_matches('0');
        let power = exponent.saturating_add((significant.len() - short.len()) as i64);
        let power = if short.is_empty() { 0 } else { power };
        let short = if short.is_empty() { "0" } else { short };
        let ratio = short.parse().ok().and_then(|digits| Ratio::decimal(digits, power));
        let spelling = format!("{short}e{power}");
        let approximate = spelling.parse().unwrap_or(f64::NAN);
        let exact = ratio.map_or(Exact::Spelling(spelling), Exact::Ratio);
        Number { exact, approximate, percent: false }
    }

    /// `None` for a division by 0.
    fn fraction(up: Number, down: Number) -> Option<Number> {
        if down.exact == Exact::Ratio(Ratio::new(0, 1)?) {
            return None;
        }
        let approximate = up.approximate / down.approximate;
        let exact = match (&up.exact, &down.exact) {
            (Exact::Ratio(a), Exact::Ratio(b)) => a.checked_div(*b).map(Exact::Ratio),
            _ => None,
        };
        let exact =
            exact.unwrap_or_else(|| Exact::Spelling(format!("{:?}/{:?}", up.exact, down.exact)));
        Some(Number { exact, approximate, percent: false })
    }
}

/// The numbers in `text`, in order. Digits within a word (`H2O`) are none; a minus sign counts
/// where it is not a subtraction (`3-4` holds 3 and 4). Takes time linear in the text: what a failed
/// attempt has read is read at most once more.
pub fn numbers(text: &str) -> Vec<Number> {
    let bytes = text.as_bytes();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if bytes[at].is_ascii_alphabetic() || bytes[at] == b'_' {
            while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'_') {
                at += 1;
            }
            continue;
        }
        let scanner = Scanner { bytes, at };
        let number = if scanner.subtracts() { None } else { scanner.number() };
        match number {
            Some((number, end)) => {
                found.push(number);
                at = end;
            }
            None => at += 1,
        }
    }
    found
}

/// `text` without spaces, mathematics delimiters and a closing full stop.
fn unwrapped(text: &str) -> &str {
    let mut text = text.trim();
    for (open, close) in [("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")] {
        let stripped = text.trim_end_matches('.').trim_end();
        if let Some(inside) = stripped.strip_prefix(open).and_then(|t| t.strip_suffix(close)) {
            text = inside.trim();
        }
    }
    let stop = text.strip_suffix('.').unwrap_or(text);
    stop.trim_end()
}

/// Reads numbers off the front of a text; `at` moves past what was taken.
#[derive(Clone, Copy)]
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn take(&mut self, token: &str) -> bool {
        let here = self.bytes[self.at.min(self.bytes.len())..].starts_with(token.as_bytes());
        self.at += if here { token.len() } else { 0 };
        here
    }

    fn take_any(&mut self, tokens: &[&str]) -> bool {
        tokens.iter().any(|token| self.take(token))
    }

    /// Whether here is a sign between two operands.
    fn subtracts(mut self) -> bool {
        let before = self.at.checked_sub(1).map_or(b' ', |before| self.bytes[before]);
        self.sign().is_some() && (before.is_ascii_alphanumeric() || b")]}%".contains(&before))
    }

    /// A number, and where it ends.
    fn number(mut self) -> Option<(Number, usize)> {
        let mut negative = self.sign();
        self.take_any(&["\\$", "$", "€", "£"]);
        negative = negative.or_else(|| self.sign());
        let number = if self.take_any(&["\\frac", "\\dfrac", "\\tfrac"]) {
            self.stacked()?
        } else {
            self.plain()?
        };
        let mut number = if negative == Some(true) { number.negated() } else { number };
        let before = self.at;
        self.take(" ");
        number.percent = self.take_any(&["\\%", "%"]);
        self.at = if number.percent { self.at } else { before };
        Some((number, self.at))
    }

    /// Whether a sign is negative, if there is one.
    fn sign(&mut self) -> Option<bool> {
        if self.take_any(&["-", "\u{2212}"]) {
            return Some(true);
        }
        self.take("+").then_some(false)
    }

    /// `{a}{b}` or two digits, after `\frac`.
    fn stacked(&mut self) -> Option<Number> {
        let up = self.argument()?;
        let down = self.argument()?;
        Number::fraction(up, down)
    }

    fn argument(&mut self) -> Option<Number> {
        if !self.take("{") {
            let digit =
                self.peek(0).is_ascii_digit().then(|| (self.peek(0) as char).to_string())?;
            self.at += 1;
            return Some(Number::decimal(&digit, 0, 0));
        }
        let negative = self.sign() == Some(true);
        let number = self.decimal()?;
        let number = if negative { number.negated() } else { number };
        self.take("}").then_some(number)
    }

    /// A decimal, or one over another.
    fn plain(&mut self) -> Option<Number> {
        let up = self.decimal()?;
        let mut ahead = *self;
        if ahead.take("/")
            && let Some(down) = ahead.decimal()
            && let Some(fraction) = Number::fraction(up.clone(), down)
        {
            self.at = ahead.at;
            return Some(fraction);
        }
        Some(up)
    }

    fn decimal(&mut self) -> Option<Number> {
        let mut digits = String::new();
        self.integer(&mut digits);
        let whole = digits.len();
        if self.peek(0) == b'.' && self.peek(1).is_ascii_digit() {
            self.at += 1;
            self.digits(&mut digits);
        }
        if digits.is_empty() {
            return None;
        }
        let exponent = self.exponent();
        Some(Number::decimal(&digits, digits.len() - whole, exponent))
    }

    fn digits(&mut self, into: &mut String) {
        while self.peek(0).is_ascii_digit() {
            into.push(self.peek(0) as char);
            self.at += 1;
        }
    }

    /// Digits, or groups of three after one to three; `{,}` is a comma of typesetting.
    fn integer(&mut self, into: &mut String) {
        self.digits(into);
        if !(1..=3).contains(&into.len()) {
            return;
        }
        loop {
            let mut ahead = *self;
            let comma = ahead.take_any(&[",", "{,}"]);
            let group = (0..3).all(|i| ahead.peek(i).is_ascii_digit());
            if !comma || !group || ahead.peek(3).is_ascii_digit() {
                return;
            }
            ahead.digits(into);
            self.at = ahead.at;
        }
    }

    /// `e` and an integer; 0 where there is none. Beyond the range of i32 it stays at its end.
    fn exponent(&mut self) -> i64 {
        let mut ahead = *self;
        if !ahead.take_any(&["e", "E"]) {
            return 0;
        }
        let negative = ahead.sign() == Some(true);
        let mut digits = String::new();
        ahead.digits(&mut digits);
        if digits.is_empty() {
            return 0;
        }
        self.at = ahead.at;
        let size = digits.parse::<i32>().unwrap_or(i32::MAX) as i64;
        if negative { -size } else { size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        Number::parse(a).unwrap().equals(&Number::parse(b).unwrap())
    }

    #[test]
    fn spellings_of_one_number() {
        for (a, b) in [
            ("1,234.5", "1234.50"),
            ("-3", "\u{2212}3.0"),
            ("3/4", "\\frac{3}{4}"),
            ("\\dfrac34", "0.75"),
            ("-\\frac{1}{2}", "\\frac{-1}{2}"),
            ("$12", "12"),
            ("-$12.50", "$-12.5"),
            ("\\$1{,}000", "1e3"),
            ("50%", "50"),
            ("50\\%", "0.5"),
            ("0.5", "50 %"),
            ("$ 7 $", "7."),
            ("+5", "5"),
            ("000", "-0"),
            ("1.5E-3", "0.0015"),
            ("\\( 1/3 \\)", "2/6"),
            (
                "123456789012345678901234567890123456789012",
                "123456789012345678901234567890123456789012.0",
            ),
        ] {
            assert!(same(a, b), "{a} and {b}");
        }
    }

    #[test]
    fn different_numbers_differ() {
        for (a, b) in [
            ("3", "-3"),
            ("0.333", "1/3"),
            ("50%", "5"),
            ("50%", "51%"),
            ("1e300", "1e301"),
            (
                "123456789012345678901234567890123456789012",
                "123456789012345678901234567890123456789013",
            ),
            ("9007199254740993", "9007199254740992"),
        ] {
            assert!(!same(a, b), "{a} and {b}");
        }
    }

    #[test]
    fn not_numbers() {
        for text in [
            "",
            "-",
            "x",
            "1 2",
            "1,23",
            "1/0",
            "\\frac{1}{0}",
            "\\frac{1}",
            "1.2.3",
            "$",
            "%",
            "\\frac",
        ] {
            assert!(Number::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn numbers_in_prose() {
        let found = |text: &str| numbers(text).iter().map(Number::to_f64).collect::<Vec<_>>();
        assert_eq!(found("From 3-4 apples, -2 left; H2O x_1 is 5km."), [3.0, 4.0, -2.0, 5.0]);
        assert_eq!(
            found("Total: $1,200, i.e. 1/2 of \\frac{4}{2} (10%)."),
            [1200.0, 0.5, 2.0, 10.0]
        );
        assert_eq!(found("是5。"), [5.0]);
        assert_eq!(found("1.2.3"), [1.2, 0.3]);
        assert_eq!(found("no numbers"), [0.0; 0]);
    }

    #[test]
    fn tolerance() {
        let near = |a, b, abs, rel| {
            Number::parse(a).unwrap().is_near(&Number::parse(b).unwrap(), abs, rel)
        };
        assert!(near("3.14", "3.14159", 0.01, 0.0));
        assert!(!near("3.2", "3.14159", 0.01, 0.0));
        assert!(near("101", "100", 0.0, 0.01));
        assert!(!near("1e999", "1e999", 0.0, 0.0), "infinities are not near");
    }
}
