//! PTX text to tokens.

/// A token; `Word` keeps its dots, percent and dollar signs.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// `.reg`, `%r1`, `add.s32`, `$L__BB0_3`, `foo`.
    Word(String),
    Int(u64),
    F32(u32),
    F64(u64),
    Text(String),
    /// One of `{}()[],;:+-|!@=<>`.
    Sign(char),
}

/// A token and its line.
pub type Placed = (Token, u32);

/// Splits a file. Errors say the line.
pub fn tokens(text: &str) -> Result<Vec<Placed>, String> {
    let bytes = text.as_bytes();
    let (mut at, mut line, mut out) = (0, 1u32, Vec::new());
    while at < bytes.len() {
        let c = bytes[at];
        match c {
            b'\n' => (at, line) = (at + 1, line + 1),
            b' ' | b'\t' | b'\r' => at += 1,
            b'/' if bytes[at..].starts_with(b"//") => at = end_of(bytes, at, |c| c != b'\n'),
            b'/' if bytes[at..].starts_with(b"/*") => {
                let end =
                    text[at..].find("*/").ok_or(format!("line {line}: comment without end"))?;
                line += text[at..at + end].matches('\n').count() as u32;
                at += end + 2;
            }
            b'"' => {
                let end = end_of(bytes, at + 1, |c| c != b'"');
                out.push((Token::Text(text[at + 1..end].to_string()), line));
                at = end + 1;
            }
            b'0'..=b'9' => {
                let end = end_of(bytes, at, |c| c.is_ascii_alphanumeric());
                out.push((number(&text[at..end]).map_err(|e| format!("line {line}: {e}"))?, line));
                at = end;
            }
            b'.' | b'%' | b'$' | b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                let end = word_end(bytes, at);
                out.push((Token::Word(text[at..end].to_string()), line));
                at = end;
            }
            _ if b"{}()[],;:+-|!@=<>".contains(&c) => {
                out.push((Token::Sign(c as char), line));
                at += 1;
            }
            _ => return Err(format!("line {line}: unexpected character `{}`", c as char)),
        }
    }
    Ok(out)
}

fn end_of(bytes: &[u8], from: usize, inside: impl Fn(u8) -> bool) -> usize {
    bytes[from..].iter().position(|&c| !inside(c)).map_or(bytes.len(), |n| from + n)
}

/// A word runs over `::` (as in `shared::cta`) but not over a label's single colon.
fn word_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < bytes.len() {
        let c = bytes[at];
        let plain = c.is_ascii_alphanumeric() || matches!(c, b'.' | b'%' | b'$' | b'_');
        if plain {
            at += 1;
        } else if bytes[at..].starts_with(b"::") {
            at += 2;
        } else {
            break;
        }
    }
    at
}

fn number(text: &str) -> Result<Token, String> {
    let bad = || format!("bad number `{text}`");
    let hex = |t: &str| u64::from_str_radix(t, 16).map_err(|_| bad());
    if let Some(bits) = text.strip_prefix("0f").or(text.strip_prefix("0F")) {
        return Ok(Token::F32(hex(bits)? as u32));
    }
    if let Some(bits) = text.strip_prefix("0d").or(text.strip_prefix("0D")) {
        return Ok(Token::F64(hex(bits)?));
    }
    let text = text.trim_end_matches('U');
    if let Some(digits) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        return Ok(Token::Int(hex(digits)?));
    }
    if let Some(digits) = text.strip_prefix("0b") {
        return u64::from_str_radix(digits, 2).map(Token::Int).map_err(|_| bad());
    }
    text.parse().map(Token::Int).map_err(|_| bad())
}
