//! What commas in brackets mean.

/// Brackets of one class close each other: an interval may open by `[` and close by `)`.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    Round,
    Curly,
    Angle,
}

/// A bracket that is open.
struct Open {
    class: Class,
    at: usize,
    /// Whether it is an argument of LaTeX, or something that is calculated with, in front.
    bound: bool,
}

/// For each character whether a comma there separates elements for sure: whether the innermost
/// brackets around it make a tuple, an interval or a set. Braces of an argument, as in
/// `\frac{1,000}{3}`, do not, nor do brackets next to an operator, as in `(1,000+500)/2`.
pub fn separating(chars: &[char]) -> Vec<bool> {
    let mut separates = vec![false; chars.len()];
    let (mut open, mut pairs): (Vec<Open>, Vec<(usize, usize, bool)>) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < chars.len() {
        let (length, bracket) = bracket(chars, at);
        match bracket {
            Some((class, true)) => {
                open.push(Open { class, at, bound: bound(chars, at, chars[at] == '{') });
            }
            Some((class, false)) => {
                if open.last().is_some_and(|open| open.class == class)
                    && let Some(Open { at: start, bound, .. }) = open.pop()
                {
                    pairs.push((start, at, !bound && !calculated(&chars[at + length..])));
                }
            }
            None => {}
        }
        at += length;
    }
    // Inner pairs closed before the pairs around them, and have the last word.
    paint(&mut separates, &pairs);
    separates
}

/// Gives every place the meaning of the innermost pair around it.
fn paint(separates: &mut [bool], pairs: &[(usize, usize, bool)]) {
    let mut begins: Vec<_> = pairs.to_vec();
    begins.sort_unstable_by_key(|&(start, ..)| start);
    let (mut around, mut next) = (Vec::new(), begins.into_iter().peekable());
    for (at, separates) in separates.iter_mut().enumerate() {
        while around.last().is_some_and(|&(end, _)| end < at) {
            around.pop();
        }
        while let Some((_, end, lists)) = next.next_if(|&(start, ..)| start <= at) {
            around.push((end, lists));
        }
        *separates = around.last().is_some_and(|&(_, lists)| lists);
    }
}

/// How many characters stand together at `at`, and the bracket that they are, with whether it opens.
fn bracket(chars: &[char], at: usize) -> (usize, Option<(Class, bool)>) {
    if chars[at] != '\\' {
        let bracket = match chars[at] {
            '(' | '[' => Some((Class::Round, true)),
            ')' | ']' => Some((Class::Round, false)),
            '{' => Some((Class::Curly, true)),
            '}' => Some((Class::Curly, false)),
            '⟨' => Some((Class::Angle, true)),
            '⟩' => Some((Class::Angle, false)),
            _ => None,
        };
        return (1, bracket);
    }
    let name: String =
        chars[at + 1..].iter().take(8).take_while(|c| c.is_ascii_alphabetic()).collect();
    let bracket = match name.as_str() {
        // An escaped brace is one; `\(` and `\[` delimit mathematics.
        "" => match chars.get(at + 1) {
            Some('{') => Some((Class::Curly, true)),
            Some('}') => Some((Class::Curly, false)),
            _ => None,
        },
        "lbrace" => Some((Class::Curly, true)),
        "rbrace" => Some((Class::Curly, false)),
        "lbrack" => Some((Class::Round, true)),
        "rbrack" => Some((Class::Round, false)),
        "langle" => Some((Class::Angle, true)),
        "rangle" => Some((Class::Angle, false)),
        _ => None,
    };
    (1 + name.len().max(1), bracket)
}

/// Whether what opens at `at` belongs to what stands in front of it.
fn bound(chars: &[char], at: usize, brace: bool) -> bool {
    let before = &chars[..at];
    let close = before.last().copied();
    if brace {
        let name = before.iter().rev().take_while(|c| c.is_ascii_alphabetic()).count();
        let command = name > 0 && before.iter().rev().nth(name) == Some(&'\\');
        return command || matches!(close, Some('^' | '_' | '}' | ']'));
    }
    let operand = |c: Option<&char>| c.is_some_and(|c| c.is_ascii_digit() || *c == ')');
    match before.iter().rev().find(|c| !c.is_whitespace()) {
        Some('/' | '^' | '+' | '√') => true,
        // A minus with a space behind it may be a dash, and stars may be emphasis.
        Some('-') => close == Some('-'),
        Some('*') => operand(before.iter().rev().find(|c| !c.is_whitespace() && **c != '*')),
        Some('{') => calculates(before),
        Some(_) => close.is_some_and(|c| c.is_ascii_digit()) || operator_ends(before),
        None => false,
    }
}

/// Whether the brace that ends here opens an argument of a fraction or a root.
fn calculates(before: &[char]) -> bool {
    let end = before.iter().rposition(|&c| c == '{').unwrap_or(0);
    let name = before[..end].iter().rev().take(6).take_while(|c| c.is_ascii_alphabetic()).count();
    let name: String = before[end - name..end].iter().collect();
    before[..end].last() == Some(&'}')
        || matches!(name.as_str(), "frac" | "dfrac" | "tfrac" | "sqrt")
}

/// Whether a command that calculates ends here.
fn operator_ends(chars: &[char]) -> bool {
    let end = chars.iter().rposition(|c| !c.is_whitespace()).map_or(0, |last| last + 1);
    let name = chars[..end].iter().rev().take(5).take_while(|c| c.is_ascii_alphabetic()).count();
    let name: String = chars[end - name..end].iter().collect();
    let escaped = chars[..end - name.len()].last() == Some(&'\\');
    escaped && matches!(name.as_str(), "times" | "cdot" | "div")
}

/// Whether what closed before `rest` is calculated with.
fn calculated(rest: &[char]) -> bool {
    let mut behind = rest.iter().copied().filter(|c| !c.is_whitespace());
    match behind.next() {
        Some('/' | '^' | '+') => true,
        Some('*' | '-') => behind.next().is_some_and(|c| c.is_ascii_digit() || c == '('),
        Some('\\') => {
            let name: String = behind.take(5).collect();
            ["times", "cdot", "div"].iter().any(|operator| name.starts_with(operator))
        }
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_between_elements() {
        for (text, separates) in [
            ("(1,100)", true),
            ("[1,100)", true),
            ("\\{1,100\\}", true),
            ("\\left(1,100\\right)", true),
            ("\\langle 1,100\\rangle", true),
            ("{1,100}", true),
            ("x is in [1,100], or so", true),
            ("(\\text{so } 1,100)", true),
            ("1,100", false),
            ("(1) 1,100", false),
            ("(1) 1,100)", false),
            ("(1,100", false),
            ("\\frac{1,100}{3}", false),
            ("(\\frac{1,100}{3}, 2)", false),
            ("2^{1,100}", false),
            ("(1,100+500)/2", false),
            ("2(1,100)", false),
            ("2*(1,100)", false),
            ("\\frac{(1,100+1)}{2}", false),
            ("\\frac{2}{(1,100+1)}", false),
            ("\\text{(1,100)}", true),
            ("\\boxed{(1,100)}", true),
            ("*(1,100)*", true),
            ("here - (1,100) - it is", true),
            ("(1,100)-5", false),
            ("3 \\times (1,100+1)", false),
            ("(1,100) \\cdot 2", false),
            ("\\(1,100\\)", false),
            ("\\[1,100\\]", false),
        ] {
            let chars: Vec<char> = text.chars().collect();
            let comma = chars.iter().position(|&c| c == ',').unwrap();
            assert_eq!(separating(&chars)[comma], separates, "{text}");
        }
    }
}
