//! Addresses of services: what is secret in them, and what is taken from the environment.
//!
//! A user and a password before the host, and the values of parameters such as `api_key`, are
//! secret: they appear in no message and in no file. Where the environment holds them, an address
//! names its variables, `http://$JUDGE_USER:$JUDGE_PASSWORD@host/?token=${JUDGE_TOKEN}`, and can be
//! written down as it is.

use std::env;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What stands for a secret.
const HIDDEN: &str = "***";

/// Words in the names of parameters whose values are secret.
const SECRET_WORDS: [&str; 13] = [
    "apikey",
    "auth",
    "authorization",
    "credential",
    "credentials",
    "key",
    "passwd",
    "password",
    "pwd",
    "secret",
    "sig",
    "signature",
    "token",
];

/// Where a service is, and what it is told of who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// Without user and password.
    pub url: String,
    /// Value of the header `Authorization`.
    pub authorization: Option<String>,
    /// For messages.
    pub shown: String,
}

impl Address {
    /// The address that `text` is, with the environment's values in it.
    ///
    /// # Errors
    /// A variable that is not set, or a secret that was left out, for a message.
    pub fn parse(text: &str) -> Result<Address, String> {
        let shown = redacted(text);
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Address { url: text.into(), authorization: None, shown });
        };
        let (user, rest) = match user_end(rest) {
            Some(end) => (Some(&rest[..end]), &rest[end + 1..]),
            None => (None, rest),
        };
        let authorization = match user {
            None => None,
            Some(HIDDEN) => return Err(left_out()),
            Some(user) => {
                let decode = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
                let (name, password) = user.split_once(':').unwrap_or((user, ""));
                let plain = |value: String| value.into_bytes();
                let name = expanded(name, decode, plain)?;
                let password = expanded(password, decode, plain)?;
                Some(format!("Basic {}", BASE64_STANDARD.encode([name, password].join(&b':'))))
            }
        };
        let mut url = format!("{scheme}://");
        for piece in pieces(rest) {
            match piece {
                Piece::Text(text) => url += text,
                Piece::Value { text: HIDDEN, .. } => return Err(left_out()),
                Piece::Value { text, .. } => {
                    let plain = |text: &str| text.as_bytes().to_vec();
                    let encode = |value: String| {
                        utf8_percent_encode(&value, NON_ALPHANUMERIC).to_string().into_bytes()
                    };
                    url += &String::from_utf8_lossy(&expanded(text, plain, encode)?);
                }
            }
        }
        Ok(Address { url, authorization, shown })
    }
}

fn left_out() -> String {
    "its secret was left out where this was written down: name a variable of the environment \
     instead, as in http://$JUDGE_USER:$JUDGE_PASSWORD@host/"
        .into()
}

/// `text` without the secrets of the addresses in it.
pub(crate) fn redacted(text: &str) -> String {
    let (mut shown, mut rest) = (String::new(), text);
    while let Some(at) = rest.find("://") {
        let (before, address) = rest.split_at(at + 3);
        shown += before;
        let quoted = |c: char| c.is_whitespace() || "\"'`<>".contains(c);
        let (mut address, after) = address.split_at(address.find(quoted).unwrap_or(address.len()));
        if let Some(end) = user_end(address) {
            let user = &address[..end];
            // A name is no secret where a password follows.
            let (_, secret) = user.split_once(':').unwrap_or(("", user));
            shown += if is_variable(secret) { user } else { HIDDEN };
            address = &address[end..];
        }
        for piece in pieces(address) {
            shown += match piece {
                Piece::Value { text, secret: true } if !is_variable(text) && !text.is_empty() => {
                    HIDDEN
                }
                Piece::Text(text) | Piece::Value { text, .. } => text,
            };
        }
        rest = after;
    }
    shown + rest
}

/// Where in an address behind its scheme the user and the password end, at an `@`.
fn user_end(address: &str) -> Option<usize> {
    let authority = &address[..address.find(['/', '?', '#']).unwrap_or(address.len())];
    if let Some(end) = authority.rfind('@') {
        return Some(end);
    }
    // A password with a slash in it: what is before is no host with a port.
    let (_, port) = authority.rsplit_once(':')?;
    let is_port = port.bytes().all(|b| b.is_ascii_digit()) || authority.ends_with(']');
    if is_port { None } else { address.rfind('@') }
}

/// A part of an address.
enum Piece<'a> {
    Text(&'a str),
    /// Of a parameter.
    Value {
        text: &'a str,
        secret: bool,
    },
}

fn pieces(address: &str) -> Vec<Piece<'_>> {
    let query = address.find('?').map_or(address.len(), |at| at + 1);
    let end = address.find('#').filter(|&end| end >= query).unwrap_or(address.len());
    let mut pieces = vec![Piece::Text(&address[..query])];
    for parameter in address[query..end].split_inclusive('&') {
        let (parameter, and) = match parameter.strip_suffix('&') {
            Some(parameter) => (parameter, "&"),
            None => (parameter, ""),
        };
        let equals = parameter.find('=').map_or(parameter.len(), |at| at + 1);
        let (name, text) = parameter.split_at(equals);
        let word = |word: &str| SECRET_WORDS.contains(&word.to_ascii_lowercase().as_str());
        let secret = name.split(|c: char| !c.is_ascii_alphanumeric()).any(word);
        pieces.extend([Piece::Text(name), Piece::Value { text, secret }, Piece::Text(and)]);
    }
    pieces.push(Piece::Text(&address[end..]));
    pieces
}

/// The variable's name at the start of `text`, which is behind a `$`, and what follows it.
fn variable(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = match text.strip_prefix('{') {
        Some(braced) => braced.split_once('}')?,
        None => {
            let end = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
            text.split_at(text.find(end).unwrap_or(text.len()))
        }
    };
    let first = name.bytes().next()?;
    let named = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (named && !first.is_ascii_digit()).then_some((name, rest))
}

/// Whether `text` is the name of a variable and nothing else.
fn is_variable(text: &str) -> bool {
    text.strip_prefix('$').and_then(variable).is_some_and(|(_, rest)| rest.is_empty())
}

/// `text` with the values of its variables through `value`, and all else through `literal`.
fn expanded(
    text: &str,
    literal: impl Fn(&str) -> Vec<u8>,
    value: impl Fn(String) -> Vec<u8>,
) -> Result<Vec<u8>, String> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find('$') {
        let (before, behind) = (&rest[..at], &rest[at + 1..]);
        bytes.extend(literal(before));
        match variable(behind) {
            Some((name, after)) => {
                let found = env::var(name).map_err(|_| {
                    format!("names the variable `{name}`, which the environment does not set")
                })?;
                bytes.extend(value(found));
                rest = after;
            }
            None => {
                bytes.push(b'$');
                rest = behind;
            }
        }
    }
    bytes.extend(literal(rest));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out_and_nothing_else() {
        for (text, shown) in [
            ("http://host/path", "http://host/path"),
            ("http://host:80/@me?a=b@c", "http://host:80/@me?a=b@c"),
            ("http://[::1]:80/x@y", "http://[::1]:80/x@y"),
            ("http://[::1]/x@y", "http://[::1]/x@y"),
            ("http://user:pass@host/x", "http://***@host/x"),
            ("http://token@host", "http://***@host"),
            ("http://user:p@ss@host/", "http://***@host/"),
            ("http://user:p/a?s#s@host/", "http://***@host/"),
            ("http://$USER:$PASS@host/", "http://$USER:$PASS@host/"),
            ("http://judge:$PASS@host/", "http://judge:$PASS@host/"),
            ("http://$USER:pa$$@host/", "http://***@host/"),
            ("http://${A}@host/?key=${K}", "http://${A}@host/?key=${K}"),
            ("https://h/?api_key=s3cr3t&model=m#f", "https://h/?api_key=***&model=m#f"),
            ("https://h/?x=1&X-Amz-Signature=ab", "https://h/?x=1&X-Amz-Signature=***"),
            ("https://h/?token&monkey=1&key=", "https://h/?token&monkey=1&key="),
            ("0.5*https://u:p@h/", "0.5*https://***@h/"),
            ("`htp://u:p@h/` and \"http://a:b@c\"", "`htp://***@h/` and \"http://***@c\""),
            ("cmd:python3 x.py", "cmd:python3 x.py"),
            ("://", "://"),
            ("é://é:é@é", "é://***@é"),
        ] {
            assert_eq!(redacted(text), shown);
            assert_eq!(redacted(shown), shown, "what is written down is written down again");
        }
    }

    #[test]
    fn addresses_are_taken_apart() {
        let parse = |text| Address::parse(text).unwrap();
        let plain = parse("http://host:1/p?q=$5&$filter=a");
        assert_eq!(plain.url, "http://host:1/p?q=$5&$filter=a");
        assert_eq!(plain.authorization, None);
        let known = parse("http://user:pass@host/");
        assert_eq!(known.url, "http://host/");
        assert_eq!(known.authorization.as_deref(), Some("Basic dXNlcjpwYXNz"));
        let encoded = parse("http://us%40er:p%3Ass@host/");
        assert_eq!(encoded.authorization.as_deref(), Some("Basic dXNAZXI6cDpzcw=="));
        // Cargo sets this for every test.
        let taken =
            parse("http://u:$CARGO_PKG_NAME@host/?t=${CARGO_PKG_NAME}/&v=$CARGO_PKG_VERSION");
        assert_eq!(taken.authorization.as_deref(), Some("Basic dTpncmFkdXMtcmZ0"));
        let version = env!("CARGO_PKG_VERSION").replace('.', "%2E");
        assert_eq!(taken.url, format!("http://host/?t=gradus%2Drft/&v={version}"));
        for (text, word) in [
            ("http://$GRADUS_NO_SUCH_VARIABLE@host/", "`GRADUS_NO_SUCH_VARIABLE`"),
            ("http://host/?key=$GRADUS_NO_SUCH_VARIABLE", "not set"),
            ("http://***@host/", "left out"),
            ("http://host/?key=***", "left out"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
