//! Plain numbers in a text.

/// The numbers in `text`, in order: digits with a decimal point, and times such as `1:02:03.5`, which
/// are seconds. A minus sign belongs to a number unless something that ends like a number or a word
/// stands before it, so that `12-20` and `12s - 20s` are two numbers above 0.
pub fn numbers(text: &str) -> Vec<f64> {
    let bytes = text.as_bytes();
    let (mut found, mut at, mut before) = (Vec::new(), 0, b' ');
    while at < bytes.len() {
        let byte = bytes[at];
        if !byte.is_ascii_digit() {
            before = if byte.is_ascii_whitespace() { before } else { byte };
            at += 1;
            continue;
        }
        let start = at;
        let inside = |at: usize| {
            let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
            digit(at) || matches!(bytes.get(at), Some(b'.' | b':')) && digit(at + 1)
        };
        while inside(at) {
            at += 1;
        }
        let sign = if before == b'-' && signs(&bytes[..start]) { -1.0 } else { 1.0 };
        // What has two points is no number.
        found.extend(seconds(&text[start..at]).map(|value| sign * value));
        before = b'0';
    }
    found
}

/// Whether the minus sign that `text` ends with is a sign and no dash between two things.
fn signs(text: &[u8]) -> bool {
    let Some(minus) = text.iter().rposition(|&byte| byte == b'-') else { return false };
    // Nothing may stand between the sign and its number.
    let close = minus + 1 == text.len();
    let before = text[..minus].iter().rfind(|byte| !byte.is_ascii_whitespace());
    close && before.is_none_or(|&byte| b"[({,;:=<>".contains(&byte))
}

fn seconds(text: &str) -> Option<f64> {
    let mut total = 0.0;
    for part in text.split(':') {
        total = 60.0 * total + part.parse::<f64>().ok()?;
    }
    Some(total).filter(|total| total.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_times_and_signs() {
        for (text, expected) in [
            ("[12.5, 20]", &[12.5, 20.0][..]),
            ("12-20", &[12.0, 20.0]),
            ("from 12s - 20s.", &[12.0, 20.0]),
            ("[-1, -2.5]", &[-1.0, -2.5]),
            ("1 - 2", &[1.0, 2.0]),
            ("1:02 to 1:02:03.5", &[62.0, 3723.5]),
            ("1.2.3 and 4.", &[4.0]),
            ("é7", &[7.0]),
            ("", &[]),
        ] {
            assert_eq!(numbers(text), expected, "{text}");
        }
    }
}
