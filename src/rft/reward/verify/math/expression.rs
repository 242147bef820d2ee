//! Arithmetic: from tokens to exact values. `None` says that here is no expression, or one whose
//! value cannot be had; the caller finds the rest of the tokens left over.

use super::super::ratio::Ratio;
use super::sum::{Fuel, Sum};
use super::token::{Number, Token, TokenKind};
use super::value::Value;

/// Deepest nesting of brackets, fractions and roots.
const DEPTH: usize = 48;

/// Recursive descent over tokens.
pub struct Parser<'a> {
    pub tokens: Vec<Token>,
    pub at: usize,
    pub fuel: &'a mut Fuel,
    /// Whether the tokens are a sentence, in which words follow numbers.
    pub prose: bool,
    /// Whether `!` at an end is a mark of exclamation.
    pub exclaims: bool,
    /// Whether `±` means minus, and whether one was met.
    pub minus: bool,
    pub met_both: bool,
    depth: usize,
}

impl<'a> Parser<'a> {
    pub fn new(tokens: Vec<Token>, prose: bool, fuel: &'a mut Fuel) -> Parser<'a> {
        Parser {
            tokens,
            at: 0,
            fuel,
            prose,
            exclaims: prose,
            minus: false,
            met_both: false,
            depth: 0,
        }
    }

    pub fn token(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead)
    }

    pub fn sign(&self, ahead: usize) -> Option<char> {
        match self.token(ahead)?.kind {
            TokenKind::Sign(sign) => Some(sign),
            TokenKind::Number(_) | TokenKind::Word(_) | TokenKind::Command(_) => None,
        }
    }

    pub fn word(&self, ahead: usize) -> Option<&str> {
        match &self.token(ahead)?.kind {
            TokenKind::Word(word) => Some(word),
            TokenKind::Number(_) | TokenKind::Sign(_) | TokenKind::Command(_) => None,
        }
    }

    pub fn command(&self, ahead: usize) -> Option<&str> {
        match &self.token(ahead)?.kind {
            TokenKind::Command(name) => Some(name),
            TokenKind::Number(_) | TokenKind::Sign(_) | TokenKind::Word(_) => None,
        }
    }

    pub fn number(&self, ahead: usize) -> Option<&Number> {
        match &self.token(ahead)?.kind {
            TokenKind::Number(number) => Some(number),
            TokenKind::Command(_) | TokenKind::Sign(_) | TokenKind::Word(_) => None,
        }
    }

    pub fn spaced(&self, ahead: usize) -> bool {
        self.token(ahead).is_some_and(|token| token.spaced)
    }

    pub fn take(&mut self, sign: char) -> bool {
        let here = self.sign(0) == Some(sign);
        self.at += here as usize;
        here
    }

    /// What `read` makes of the tokens here; they stay where it makes nothing.
    pub fn attempt<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let here = self.at;
        let made = read(self);
        if made.is_none() {
            self.at = here;
        }
        made
    }

    /// What `read` makes of the tokens one level of brackets further in.
    pub fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth >= DEPTH {
            return None;
        }
        self.depth += 1;
        let made = read(self);
        self.depth -= 1;
        made
    }

    /// Whether a sign in front of a term makes it negative, if there is one.
    fn signed(&mut self) -> Option<bool> {
        if let Some(word @ ("plus" | "minus")) = self.word(0) {
            let negative = word == "minus";
            self.at += 1;
            return Some(negative);
        }
        let negative = match self.sign(0)? {
            '+' => false,
            '-' => true,
            '±' => self.minus,
            '∓' => !self.minus,
            _ => return None,
        };
        self.met_both |= matches!(self.sign(0), Some('±' | '∓'));
        self.at += 1;
        Some(negative)
    }

    /// Terms with signs between them.
    pub fn expression(&mut self) -> Option<Value> {
        self.deeper(|p| {
            let word = p.word(0) == Some("negative");
            p.at += word as usize;
            let negative = word || p.signed() == Some(true);
            let first = p.term()?;
            let mut total = if negative { first.negated() } else { first };
            while let Some(sum) = p.attempt(|p| {
                let negative = p.signed()?;
                let term = p.term()?;
                total.add(&if negative { term.negated() } else { term }, p.fuel)
            }) {
                total = sum;
            }
            Some(total)
        })
    }

    /// Factors with signs between them, or none.
    fn term(&mut self) -> Option<Value> {
        let mut product = self.factor()?;
        loop {
            let next = match self.sign(0) {
                Some('*') => self.attempt(|p| {
                    p.at += 1;
                    let right = p.operand()?;
                    product.mul(&right, p.fuel)
                }),
                Some('/') => self.attempt(|p| {
                    p.at += 1;
                    let right = p.operand()?;
                    product.div(&right, p.fuel)
                }),
                _ if self.letter_times() => self.attempt(|p| {
                    p.at += 1;
                    let right = p.factor()?;
                    product.mul(&right, p.fuel)
                }),
                _ if self.starts_factor() => self.attempt(|p| {
                    let right = p.factor()?;
                    product.mul(&right, p.fuel)
                }),
                _ => None,
            };
            match next {
                Some(value) => product = value,
                None => return Some(product),
            }
        }
    }

    /// A factor that may have a sign, as in `2*-3`.
    fn operand(&mut self) -> Option<Value> {
        let negative = match self.sign(0) {
            Some('-') => {
                self.at += 1;
                true
            }
            _ => false,
        };
        let factor = self.factor()?;
        Some(if negative { factor.negated() } else { factor })
    }

    /// The `x` of `3 x 10^8`.
    fn letter_times(&self) -> bool {
        matches!(self.word(0), Some("x" | "X"))
            && self.number(1).is_some()
            && matches!(self.sign(2), Some('^'))
    }

    /// Whether what follows multiplies without a sign.
    fn starts_factor(&self) -> bool {
        let Some(token) = self.token(0) else { return false };
        match &token.kind {
            TokenKind::Number(_) => false,
            TokenKind::Sign('π' | '√') => true,
            TokenKind::Sign('(') => !token.spaced || !self.prose,
            TokenKind::Sign('{') => !token.spaced,
            TokenKind::Sign(_) => false,
            TokenKind::Word(_) => {
                self.constant() && !(self.prose && token.spaced && self.sign(1) != Some('^'))
            }
            TokenKind::Command(name) => function(name),
        }
    }

    /// Whether the word here is e or i, standing alone.
    fn constant(&self) -> bool {
        // `\mathrm{e}` is e, the `e` of a text is a letter.
        let text = |ahead: usize| self.token(ahead).is_some_and(|token| token.text);
        let alone = !(text(0) && (text(1) || self.at > 0 && self.tokens[self.at - 1].text))
            && !(self.prose && self.word(1).is_some() && self.spaced(1));
        matches!(self.word(0), Some("e" | "i")) && alone
    }

    fn factor(&mut self) -> Option<Value> {
        let mut value = self.primary()?;
        loop {
            let next = match self.sign(0) {
                Some('^') => self.attempt(|p| {
                    p.at += 1;
                    let exponent = p.exponent()?;
                    value.pow(&exponent, p.fuel)
                }),
                Some('!') if !self.exclaimed() => {
                    self.at += 1;
                    Some(value.factorial(self.fuel)?)
                }
                _ => None,
            };
            match next {
                Some(power) => value = power,
                None => return Some(value),
            }
        }
    }

    /// Whether `!` ends a sentence.
    fn exclaimed(&self) -> bool {
        self.exclaims && (self.token(1).is_none() || self.word(1).is_some())
    }

    fn exponent(&mut self) -> Option<Value> {
        let negative = self.take('-');
        let value = self.primary()?;
        Some(if negative { value.negated() } else { value })
    }

    fn primary(&mut self) -> Option<Value> {
        self.deeper(|p| {
            if p.number(0).is_some() {
                return p.mixed();
            }
            if let Some(sign) = p.sign(0) {
                return p.signed_primary(sign);
            }
            if p.constant() {
                let euler = p.word(0) == Some("e");
                p.at += 1;
                return Some(Value::whole(if euler { Sum::euler() } else { Sum::imaginary() }));
            }
            let name = p.command(0).or(p.word(0).filter(|&word| function(word)))?.to_string();
            p.at += 1;
            p.function(&name)
        })
    }

    fn signed_primary(&mut self, sign: char) -> Option<Value> {
        let close = match sign {
            '(' => ')',
            '[' => ']',
            '{' => '}',
            '|' => '|',
            'π' => {
                self.at += 1;
                return Some(Value::whole(Sum::pi()));
            }
            '√' => {
                self.at += 1;
                let value = self.primary()?;
                return value.root(2, self.fuel);
            }
            _ => return None,
        };
        self.at += 1;
        let mut value = self.expression()?;
        if sign == '{' && matches!(self.command(0), Some("over")) {
            self.at += 1;
            let under = self.expression()?;
            value = value.div(&under, self.fuel)?;
        }
        if !self.take(close) {
            return None;
        }
        if sign == '|' { value.abs() } else { Some(value) }
    }

    /// A number, and the fraction that stands right behind an integer: `3\frac12`, `3 1/2`, `3½`.
    fn mixed(&mut self) -> Option<Value> {
        let number = self.number(0)?.clone();
        let value = number.value?;
        self.at += 1;
        if number.digits.is_none() || !value.is_small_natural() {
            return Some(value);
        }
        let part = self.attempt(|p| {
            if p.number(0).is_some_and(|number| number.vulgar) {
                let part = p.number(0)?.value.clone();
                p.at += 1;
                return part;
            }
            let stacked = matches!(p.command(0), Some("frac" | "dfrac" | "tfrac" | "cfrac"));
            let (up, down) = if stacked {
                p.at += 1;
                (p.argument()?, p.argument()?)
            } else {
                let plain = |n: &Number| n.digits.is_some();
                let slashed = p.spaced(0)
                    && p.number(0).is_some_and(plain)
                    && p.sign(1) == Some('/')
                    && p.number(2).is_some_and(plain);
                if !slashed {
                    return None;
                }
                p.at += 3;
                let at = |ahead: usize| p.tokens.get(p.at - ahead);
                let value = |token: Option<&Token>| match &token?.kind {
                    TokenKind::Number(number) => number.value.clone(),
                    TokenKind::Word(_) | TokenKind::Command(_) | TokenKind::Sign(_) => None,
                };
                (value(at(3))?, value(at(1))?)
            };
            // `2\frac{\pi}{3}` is a product, `2 7/3` nothing.
            let natural = up.is_small_natural() && down.is_small_natural();
            let proper = stacked || up.to_integer() < down.to_integer();
            if natural && proper { up.div(&down, p.fuel) } else { None }
        });
        match part {
            Some(part) => value.add(&part, self.fuel),
            None => Some(value),
        }
    }

    /// An argument in braces, or what LaTeX takes without: one digit or command.
    fn argument(&mut self) -> Option<Value> {
        let Some(digits) = self.number(0).and_then(|number| number.digits.clone()) else {
            return self.primary();
        };
        let mut chars = digits.chars();
        let first = chars.next()?.to_digit(10)?;
        let rest = chars.as_str();
        if rest.is_empty() {
            self.at += 1;
        } else {
            let value = Ratio::decimal(rest, 0).map(Value::rational);
            let digits = Some(rest.to_string());
            let number = Number { value, digits, vulgar: false, decimal: false };
            self.tokens.get_mut(self.at)?.kind = TokenKind::Number(number);
        }
        Some(Value::integer(first.into()))
    }

    fn function(&mut self, name: &str) -> Option<Value> {
        match name {
            "frac" | "dfrac" | "tfrac" | "cfrac" => {
                let (up, down) = (self.argument()?, self.argument()?);
                up.div(&down, self.fuel)
            }
            "binom" | "dbinom" | "tbinom" => {
                let (n, k) = (self.argument()?, self.argument()?);
                Value::binomial(&n, &k, self.fuel)
            }
            "sqrt" => {
                let index = match self.take('[') {
                    true => {
                        let index = self.expression()?.to_integer()?;
                        self.take(']').then_some(index)?
                    }
                    false => 2,
                };
                let value = self.argument()?;
                value.root(index, self.fuel)
            }
            "exp" => {
                let exponent = self.factor()?;
                Value::whole(Sum::euler()).pow(&exponent, self.fuel)
            }
            "ln" | "log" | "lg" => self.logarithm(name),
            "lfloor" | "lceil" => {
                let value = self.expression()?;
                let closes =
                    self.command(0) == Some(if name == "lfloor" { "rfloor" } else { "rceil" });
                self.at += 1;
                if closes { value.rounded(name == "lceil") } else { None }
            }
            _ => None,
        }
    }

    /// `\ln`, `\lg` and `\log` to the base 10 unless another is given.
    fn logarithm(&mut self, name: &str) -> Option<Value> {
        let base = match name {
            "ln" => None,
            _ if self.take('_') => Some(self.argument()?),
            _ => Some(Value::integer(10)),
        };
        let argument = self.factor()?;
        let log = argument.ln(self.fuel)?;
        match base {
            Some(base) => {
                let base = base.ln(self.fuel)?;
                log.div(&base, self.fuel)
            }
            None => Some(log),
        }
    }
}

fn function(name: &str) -> bool {
    matches!(
        name,
        "frac"
            | "dfrac"
            | "tfrac"
            | "cfrac"
            | "binom"
            | "dbinom"
            | "tbinom"
            | "sqrt"
            | "exp"
            | "ln"
            | "log"
            | "lg"
            | "lfloor"
            | "lceil"
    )
}
