//! Words, numbers and signs of a header, with the comments beside them.

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// `#pragma once`.
    Pragma,
    /// `#include "name"`.
    Include(String),
    Word(String),
    Number(String),
    Sign(char),
}

/// A comment that runs to the end of a line.
struct Comment {
    line: usize,
    text: String,
    /// Nothing else is on the line.
    alone: bool,
}

pub struct Tokens {
    tokens: Vec<(Token, usize)>,
    comments: Vec<Comment>,
    at: usize,
}

impl Tokens {
    pub fn of(text: &str) -> Result<Tokens, String> {
        let (mut tokens, mut comments) = (Vec::new(), Vec::new());
        for (i, whole) in text.lines().enumerate() {
            let line = i + 1;
            let (code, comment) = whole.split_once("//").unwrap_or((whole, ""));
            if code.len() < whole.len() {
                let (text, alone) = (comment.trim().to_string(), code.trim().is_empty());
                comments.push(Comment { line, text, alone });
            }
            match code.trim().strip_prefix('#').map(str::trim) {
                Some("pragma once") => tokens.push((Token::Pragma, line)),
                Some(rest) => {
                    let name = rest.strip_prefix("include \"").and_then(|r| r.strip_suffix('"'));
                    let name =
                        name.ok_or(format!("line {line}: `#{rest}`, expected an include"))?;
                    tokens.push((Token::Include(name.to_string()), line));
                }
                None => split(code, |token| tokens.push((token, line))),
            }
        }
        Ok(Tokens { tokens, comments, at: 0 })
    }

    /// The line of the next token, or the last one.
    pub fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    pub fn peek(&self) -> Option<Token> {
        self.tokens.get(self.at).map(|(token, _)| token.clone())
    }

    pub fn next(&mut self) -> Option<Token> {
        let token = self.peek();
        self.at += 1;
        token
    }

    /// Passes over a token.
    pub fn pass(&mut self) {
        self.at += 1;
    }

    /// Passes over what ends with the next `;`.
    pub fn skip_statement(&mut self) {
        while !matches!(self.next(), Some(Token::Sign(';')) | None) {}
    }

    /// The lines of comment right above the next token's line.
    pub fn comment_above(&self) -> Vec<String> {
        let mut line = self.line();
        let mut found = Vec::new();
        for c in self.comments.iter().rev().filter(|c| c.alone) {
            if c.line + 1 == line {
                found.insert(0, c.text.clone());
                line = c.line;
            }
        }
        found
    }

    /// The comment that ends the line of the token before, with the lines that continue it.
    pub fn comment_behind(&self) -> Vec<String> {
        let Some((_, line)) = self.at.checked_sub(1).and_then(|i| self.tokens.get(i)) else {
            return Vec::new();
        };
        let found = self.comments.iter().find(|c| c.line == *line && !c.alone);
        found.map(|c| vec![c.text.clone()]).unwrap_or_default()
    }

    pub fn name(&mut self) -> Result<String, String> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            other => Err(format!("{}, expected a name", shown(other))),
        }
    }

    pub fn word(&mut self, wanted: &str) -> Result<(), String> {
        if self.skip_word(wanted) {
            return Ok(());
        }
        Err(format!("{}, expected `{wanted}`", shown(self.peek())))
    }

    pub fn sign(&mut self, wanted: char) -> Result<(), String> {
        if self.skip(wanted) {
            return Ok(());
        }
        Err(format!("{}, expected `{wanted}`", shown(self.peek())))
    }

    pub fn at_word(&self, wanted: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(word)) if word == wanted)
    }

    pub fn skip_word(&mut self, wanted: &str) -> bool {
        let is = self.at_word(wanted);
        self.at += is as usize;
        is
    }

    pub fn skip(&mut self, wanted: char) -> bool {
        let is = self.peek() == Some(Token::Sign(wanted));
        self.at += is as usize;
        is
    }

    /// Passes over a function, up to the brace that ends its body.
    pub fn skip_function(&mut self) -> Result<(), String> {
        let mut depth = 0;
        while let Some(token) = self.next() {
            match token {
                Token::Sign('{') => depth += 1,
                Token::Sign('}') if depth == 1 => return Ok(()),
                Token::Sign('}') => depth -= 1,
                Token::Sign(';') if depth == 0 => return Err("a function without a body".into()),
                Token::Sign(_) | Token::Word(_) | Token::Number(_) => {}
                Token::Pragma | Token::Include(_) => return Err("a directive inside".into()),
            }
        }
        Err("the end of the file inside a function".into())
    }
}

fn shown(token: Option<Token>) -> String {
    match token {
        None => "the end of the file".to_string(),
        Some(Token::Pragma) => "`#pragma once`".to_string(),
        Some(Token::Include(name)) => format!("`#include \"{name}\"`"),
        Some(Token::Word(text) | Token::Number(text)) => format!("`{text}`"),
        Some(Token::Sign(sign)) => format!("`{sign}`"),
    }
}

fn split(code: &str, mut push: impl FnMut(Token)) {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if in_word(first) {
            rest.find(|c| !in_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (text, behind) = rest.split_at(length);
        push(if first.is_ascii_digit() {
            Token::Number(text.to_string())
        } else if in_word(first) {
            Token::Word(text.to_string())
        } else {
            Token::Sign(first)
        });
        rest = behind.trim_start();
    }
}
