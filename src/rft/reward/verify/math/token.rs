//! Mathematics in LaTeX, in Unicode and on a plain keyboard, as one list of tokens.

use num_traits::One;

use super::super::ratio::{BITS, Ratio};
use super::comma::separating;
use super::value::Value;

/// A word, number or sign.
#[derive(Clone, Debug)]
pub struct Token {
    pub kind: TokenKind,
    /// Whether white space stands before it.
    pub spaced: bool,
    /// Whether it is prose within LaTeX: the content of `\text{…}`.
    pub text: bool,
}

#[derive(Clone, Debug)]
pub enum TokenKind {
    Number(Number),
    /// Letters in a row.
    Word(String),
    /// A LaTeX command without a sign of its own.
    Command(String),
    /// A sign. Spellings of one sign are one character: `\le` and `<=` are `≤`, `\{` is `⦃`.
    Sign(char),
}

/// A number without a sign. `None` if it is longer than can be computed with.
#[derive(Clone, Debug)]
pub struct Number {
    pub value: Option<Value>,
    /// The digits of an integer that is written without separators and exponent.
    pub digits: Option<String>,
    /// Whether it is a fraction in one character.
    pub vulgar: bool,
    /// Whether it has decimal places.
    pub decimal: bool,
}

/// Tokens of a text.
pub struct Tokens {
    pub all: Vec<Token>,
    /// Whether a comma within digits could as well separate two numbers.
    pub ambiguous: bool,
}

/// Stands for `{,}` and `,\!`: separators of thousands or decimal commas, but separators of no list.
const SOFT_COMMA: char = '\u{1}';

/// Reads `text`. With `grouped` commas between groups of digits make one number of them wherever
/// they can, else nowhere. Within brackets that list something a comma separates.
pub fn tokens(text: &str, grouped: bool) -> Tokens {
    let chars = normal(text);
    let mut lexer = Lexer {
        chars: &chars,
        separates: separating(&chars),
        at: 0,
        out: Tokens { all: Vec::new(), ambiguous: false },
        grouped,
        text_depths: Vec::new(),
        spaced: false,
        currency: false,
    };
    let escaped = |i: usize| i > 0 && chars[i - 1] == '\\';
    let dollars = (0..chars.len()).filter(|&i| chars[i] == '$' && !escaped(i)).count();
    lexer.currency = dollars % 2 == 1;
    while lexer.at < chars.len() {
        lexer.step();
    }
    lexer.out
}

/// One character for what has many: spaces, dashes, full-width forms, `{,}` and thin spaces.
fn normal(text: &str) -> Vec<char> {
    let mut out: Vec<char> = Vec::with_capacity(text.len());
    let mut rest = text;
    const SEQUENCES: [(&str, &str); 14] = [
        ("\\\\", "\\\\"),
        (",\\!", "\u{1}"),
        ("\\!", ""),
        ("{,}", "\u{1}"),
        ("{\\,}", " "),
        ("\\,", " "),
        ("\\;", " "),
        ("\\:", " "),
        ("\\ ", " "),
        ("\\>", " "),
        ("\\thinspace ", " "),
        ("\\thinspace", " "),
        ("~", " "),
        ("**", "\u{2}"),
    ];
    while let Some(c) = rest.chars().next() {
        if let Some((from, to)) = SEQUENCES.iter().find(|(from, _)| rest.starts_with(from)) {
            out.extend(to.chars());
            rest = &rest[from.len()..];
            continue;
        }
        rest = &rest[c.len_utf8()..];
        out.push(match c {
            '\u{ff01}'..='\u{ff5e}' => char::from_u32(c as u32 - 0xfee0).unwrap_or(c),
            '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe63}' | '\u{fe58}' => '-',
            '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => ' ',
            '×' | '·' | '⋅' | '∙' | '•' | '∗' | '✕' => '*',
            '÷' | '∕' | '⁄' => '/',
            '、' => ',',
            '。' => '.',
            'º' | '˚' => '°',
            '\u{2019}' | '\u{2018}' | '′' => '\'',
            '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' => continue,
            c => ascii_digit(c).unwrap_or(c),
        });
    }
    out
}

/// Arabic and Indian digits.
fn ascii_digit(c: char) -> Option<char> {
    const ZEROS: [u32; 4] = [0x660, 0x6f0, 0x966, 0x9e6];
    let zero = ZEROS.iter().find(|&&zero| (zero..zero + 10).contains(&(c as u32)))?;
    char::from_digit(c as u32 - zero, 10)
}

struct Lexer<'a> {
    chars: &'a [char],
    /// Where a comma separates the elements of brackets.
    separates: Vec<bool>,
    at: usize,
    out: Tokens,
    grouped: bool,
    /// Braces that are open in each text that is open here. They are no tokens.
    text_depths: Vec<usize>,
    spaced: bool,
    /// Whether a `$` is left over that stands for dollars.
    currency: bool,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn digit(&self, ahead: usize) -> bool {
        self.peek(ahead).is_ascii_digit()
    }

    fn push(&mut self, kind: TokenKind) {
        let text = !self.text_depths.is_empty();
        self.out.all.push(Token { kind, spaced: self.spaced, text });
        self.spaced = false;
    }

    fn sign(&mut self, sign: char) {
        self.push(TokenKind::Sign(sign));
    }

    /// Whether the sequence is here; if so it is taken.
    fn take(&mut self, sequence: &str) -> bool {
        let here = sequence.chars().enumerate().all(|(i, c)| self.peek(i) == c);
        self.at += if here { sequence.chars().count() } else { 0 };
        here
    }

    fn step(&mut self) {
        let c = self.peek(0);
        if c.is_whitespace() {
            self.at += 1;
            self.spaced = true;
        } else if c.is_ascii_digit() || c == '.' && self.digit(1) {
            self.number();
        } else if c == '\\' {
            self.at += 1;
            self.command();
        } else if c.is_alphabetic() {
            self.word();
        } else if let Some(value) = vulgar(c) {
            self.at += 1;
            let value = Some(Value::rational(value));
            self.push(TokenKind::Number(Number {
                value,
                digits: None,
                vulgar: true,
                decimal: false,
            }));
        } else if let Some((sign, digit)) = raised(c) {
            self.raised(sign, digit);
        } else {
            self.other(c);
        }
    }

    fn word(&mut self) {
        let start = self.at;
        // Letters of scripts without spaces stand alone, so that numbers among them are seen.
        while self.peek(0).is_alphabetic() && raised(self.peek(0)).is_none() {
            self.at += 1;
        }
        let word: String = self.chars[start..self.at].iter().collect();
        match word.as_str() {
            "π" => self.sign('π'),
            "pi" | "Pi" if self.text_depths.is_empty() => self.sign('π'),
            "infinity" | "inf" => self.sign('∞'),
            _ => self.push(TokenKind::Word(word)),
        }
    }

    /// Digits above or below the line, as a group.
    fn raised(&mut self, sign: char, first: char) {
        self.sign(sign);
        self.sign('{');
        let mut digits = String::new();
        let mut c = first;
        loop {
            self.at += 1;
            match c {
                '-' if digits.is_empty() => self.sign('-'),
                '-' => break,
                c => digits.push(c),
            }
            match raised(self.peek(0)) {
                Some((same, next)) if same == sign => c = next,
                _ => break,
            }
        }
        let value = Ratio::decimal(&digits, 0).map(Value::rational);
        let value = value.filter(|_| !digits.is_empty());
        let digits = Some(digits);
        self.push(TokenKind::Number(Number { value, digits, vulgar: false, decimal: false }));
        self.sign('}');
    }

    fn other(&mut self, c: char) {
        for (spelling, sign) in [
            ("<=", '≤'),
            (">=", '≥'),
            ("!=", '≠'),
            ("+/-", '±'),
            ("+-", '±'),
            ("->", '→'),
            ("=>", '→'),
        ] {
            if self.take(spelling) {
                return self.sign(sign);
            }
        }
        self.at += 1;
        match c {
            // Bold print, or a power between two operands.
            '\u{2}' => {
                let before = self.at.checked_sub(2).map_or(' ', |before| self.chars[before]);
                let power = (before.is_ascii_digit() || before == ')')
                    && (self.digit(0) || "(-".contains(self.peek(0)));
                if power { self.sign('^') } else { self.spaced = true }
            }
            SOFT_COMMA => self.sign(','),
            // Delimits mathematics, unless one has no other.
            '$' if self.currency && self.digit(0) => {
                self.currency = false;
                self.sign('$');
            }
            '$' => {}
            '`' | '"' | '“' | '”' => {}
            '⩽' => self.sign('≤'),
            '⩾' => self.sign('≥'),
            '≃' | '≅' | '∼' => self.sign('≈'),
            '{' => match self.text_depths.last_mut() {
                Some(depth) => *depth += 1,
                None => self.sign('{'),
            },
            '}' => match self.text_depths.last_mut() {
                Some(depth) => {
                    *depth -= 1;
                    if *depth == 0 {
                        self.text_depths.pop();
                    }
                }
                None => self.sign('}'),
            },
            c => self.sign(c),
        }
    }

    fn command(&mut self) {
        let start = self.at;
        while self.peek(0).is_ascii_alphabetic() {
            self.at += 1;
        }
        let name: String = self.chars[start..self.at].iter().collect();
        let sign = match name.as_str() {
            "" => return self.escaped(),
            "times" | "cdot" | "ast" | "cdotp" => '*',
            "div" => '/',
            "pi" => 'π',
            "infty" => '∞',
            "pm" => '±',
            "mp" => '∓',
            "le" | "leq" | "leqslant" => '≤',
            "ge" | "geq" | "geqslant" => '≥',
            "lt" => '<',
            "gt" => '>',
            "ne" | "neq" => '≠',
            "approx" | "simeq" | "sim" | "cong" | "doteq" => '≈',
            "cup" => '∪',
            "in" => '∈',
            "circ" | "degree" | "degrees" => '°',
            "percent" => '%',
            "langle" => '⟨',
            "rangle" => '⟩',
            "lbrace" => '⦃',
            "rbrace" => '⦄',
            "lbrack" => '[',
            "rbrack" => ']',
            "vert" | "lvert" | "rvert" | "mid" => '|',
            "emptyset" | "varnothing" => '∅',
            "to" | "rightarrow" | "implies" | "Rightarrow" | "Longrightarrow" => '→',
            "ldots" | "dots" | "cdots" => '…',
            "angle" | "measuredangle" | "triangle" => '∠',
            "euro" => '€',
            "pounds" => '£',
            "quad" | "qquad" | "space" | "thinspace" | "enspace" => {
                self.spaced = true;
                return;
            }
            // What changes only the looks.
            "left" | "right" | "big" | "Big" | "bigg" | "Bigg" | "bigl" | "bigr" | "Bigl"
            | "Bigr" | "displaystyle" | "textstyle" | "limits" | "boxed" | "fbox" | "bf" | "rm"
            | "it" | "middle" | "boldsymbol" | "bm" | "mathstrut" | "hfill" | "large" | "Large"
            | "LARGE" | "huge" | "Huge" | "normalsize" | "bold" => return self.skip_dot(&name),
            "text" | "textbf" | "textit" | "textrm" | "textsf" | "texttt" | "mbox" | "hbox"
            | "mathrm" | "mathbf" | "mathsf" | "mathit" | "mathtt" | "operatorname"
            | "textnormal" | "emph" | "underline" | "mathnormal" => return self.text_starts(),
            _ => return self.push(TokenKind::Command(name)),
        };
        self.sign(sign);
    }

    /// `\left.` stands for no bracket.
    fn skip_dot(&mut self, name: &str) {
        if matches!(name, "left" | "right") && self.peek(0) == '.' {
            self.at += 1;
        }
    }

    fn text_starts(&mut self) {
        while self.peek(0) == ' ' {
            self.at += 1;
        }
        if self.peek(0) == '{' {
            self.at += 1;
            self.text_depths.push(1);
        }
    }

    fn escaped(&mut self) {
        let c = self.peek(0);
        self.at += 1;
        match c {
            '{' => self.sign('⦃'),
            '}' => self.sign('⦄'),
            '$' => self.sign('$'),
            '%' => self.sign('%'),
            '\\' => self.sign('⏎'),
            // Delimiters of mathematics, and brackets that someone escaped.
            '(' | ')' | '[' | ']' => self.spaced = true,
            '_' | '*' | '#' | '&' => {}
            '|' => self.sign('‖'),
            '\0' => {}
            c => self.push(TokenKind::Command(c.to_string())),
        }
    }

    fn number(&mut self) {
        let start = self.at;
        let mut digits = self.digits();
        let plain = digits.clone();
        if (1..=3).contains(&digits.len()) {
            self.groups(&mut digits);
        }
        let separated = digits.len() > plain.len();
        let whole = digits.len();
        let decimal_comma = self.decimal_comma();
        if decimal_comma || self.peek(0) == '.' && self.digit(1) {
            self.at += 1;
            let places = self.digits();
            digits.push_str(&places);
        }
        let decimals = digits.len() - whole;
        let repeated = self.repeated(decimals > 0);
        let exponent = self.exponent();
        let end = self.at;
        let value = match repeated {
            None => Ratio::decimal(&digits, exponent.saturating_sub(decimals as i64)),
            Some(period) => repeating(&digits, decimals, &period)
                .and_then(|r| r.checked_mul(&Ratio::decimal("1", exponent)?)),
        };
        let is_plain = !separated && decimals == 0 && end - start == plain.len();
        self.push(TokenKind::Number(Number {
            value: value.map(Value::rational),
            digits: is_plain.then_some(plain),
            vulgar: false,
            decimal: decimals > 0,
        }));
    }

    fn digits(&mut self) -> String {
        let start = self.at;
        while self.digit(0) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    /// How many digits stand `ahead`, up to 4.
    fn run(&self, ahead: usize) -> usize {
        (0..4).take_while(|&i| self.digit(ahead + i)).count()
    }

    /// Groups of digits after the first, behind separators of one kind.
    fn groups(&mut self, digits: &mut String) {
        let separator = self.peek(0);
        let indian = separator == ',' && digits.len() <= 2 && self.run(1) == 2;
        let (mut lengths, mut ahead) = (Vec::new(), 0);
        while self.peek(ahead) == separator && matches!(self.run(ahead + 1), 2 | 3) {
            let length = self.run(ahead + 1);
            if length == 2 && !indian {
                break;
            }
            lengths.push(length);
            ahead += 1 + length;
            if indian && length == 3 {
                break;
            }
        }
        let complete = lengths.last() == Some(&3) && !self.digit(ahead);
        // A leading 0 begins no number in groups.
        let taken = complete
            && !digits.starts_with('0')
            && match separator {
                // No element begins with a 0 and goes on, but a group of thousands does.
                ',' if self.separates[self.at] => {
                    (0..ahead).any(|i| self.peek(i) == ',' && self.peek(i + 1) == '0')
                }
                ',' => {
                    self.out.ambiguous = true;
                    self.grouped
                }
                SOFT_COMMA | '\'' | '_' => true,
                ' ' => self.peek(ahead) != '/',
                '.' => lengths.len() > 1 && self.peek(ahead) != '.' || self.comma_decimals(ahead),
                _ => false,
            };
        if taken {
            let group = &self.chars[self.at..self.at + ahead];
            digits.extend(group.iter().filter(|c| c.is_ascii_digit()));
            self.at += ahead;
        }
    }

    /// Whether digits behind points go on with a decimal comma, as in `1.234,56`.
    fn comma_decimals(&mut self, ahead: usize) -> bool {
        let separates = self.separates.get(self.at + ahead) == Some(&true);
        let point = self.peek(ahead) == SOFT_COMMA || self.peek(ahead) == ',' && !separates;
        let follows = point && self.digit(ahead + 1);
        self.out.ambiguous |= follows && self.peek(ahead) == ',';
        follows && self.grouped
    }

    /// Whether a comma for a point is next.
    fn decimal_comma(&self) -> bool {
        if !self.digit(1) {
            return false;
        }
        let pointed = self.chars[..self.at].iter().rev().take(4).any(|&c| c == '.');
        match self.peek(0) {
            SOFT_COMMA => true,
            // After groups behind points only; they are taken if a comma follows.
            ',' if self.separates[self.at] => false,
            ',' => self.grouped && pointed && self.at >= 4 && self.chars[self.at - 4] == '.',
            _ => false,
        }
    }

    /// The period of a repeating decimal: `0.1\overline{6}`, `0.(3)`.
    fn repeated(&mut self, places: bool) -> Option<String> {
        let start = self.at;
        let dot = !places && self.peek(0) == '.';
        self.at += dot as usize;
        if places || dot {
            for (open, close) in [("\\overline{", "}"), ("\\bar{", "}"), ("(", ")")] {
                let here = self.at;
                // `0.5(3)` may be a product.
                if (dot || open != "(") && self.take(open) {
                    let period = self.digits();
                    if !period.is_empty() && self.take(close) {
                        return Some(period);
                    }
                }
                self.at = here;
            }
        }
        self.at = start;
        None
    }

    /// `e` and an integer; 0 where there is none.
    fn exponent(&mut self) -> i64 {
        let start = self.at;
        if matches!(self.peek(0), 'e' | 'E') {
            self.at += 1;
            let negative = self.peek(0) == '-';
            self.at += matches!(self.peek(0), '-' | '+') as usize;
            let digits = self.digits();
            if !digits.is_empty() && !self.peek(0).is_alphabetic() {
                let size = digits.parse::<i32>().unwrap_or(i32::MAX) as i64;
                return if negative { -size } else { size };
            }
        }
        self.at = start;
        0
    }
}

/// `digits`, of which `decimals` stand behind the point, and then `period` for ever.
fn repeating(digits: &str, decimals: usize, period: &str) -> Option<Ratio> {
    if period.len() as u64 > BITS / 4 {
        return None;
    }
    let head = Ratio::decimal(digits, -(decimals as i64))?;
    let nines = num_bigint::BigInt::from(10).pow(period.len() as u32) - 1;
    let tail = Ratio::decimal(period, -(decimals as i64))?;
    head.checked_add(&tail.checked_div(&Ratio::of(nines, One::one())?)?)
}

fn vulgar(c: char) -> Option<Ratio> {
    let (up, down) = match c {
        '½' => (1, 2),
        '⅓' => (1, 3),
        '⅔' => (2, 3),
        '¼' => (1, 4),
        '¾' => (3, 4),
        '⅕' => (1, 5),
        '⅖' => (2, 5),
        '⅗' => (3, 5),
        '⅘' => (4, 5),
        '⅙' => (1, 6),
        '⅚' => (5, 6),
        '⅐' => (1, 7),
        '⅛' => (1, 8),
        '⅜' => (3, 8),
        '⅝' => (5, 8),
        '⅞' => (7, 8),
        '⅑' => (1, 9),
        '⅒' => (1, 10),
        _ => return None,
    };
    Ratio::new(up, down)
}

/// Digits above and below the line, with the sign for it.
fn raised(c: char) -> Option<(char, char)> {
    let digit = |at: u32| char::from_digit(at, 10);
    Some(match c {
        '⁰' => ('^', '0'),
        '¹' => ('^', '1'),
        '²' => ('^', '2'),
        '³' => ('^', '3'),
        '⁴'..='⁹' => ('^', digit(c as u32 - '⁰' as u32)?),
        '⁻' => ('^', '-'),
        '₀'..='₉' => ('_', digit(c as u32 - '₀' as u32)?),
        _ => return None,
    })
}
