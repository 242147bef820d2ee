//! Lists of what the header declares, read from what bindgen wrote: `ffi/src/registry.rs`.

use std::fmt::Write;

/// What the lists need of the declarations, in the order of the header.
#[derive(Default)]
struct Declarations {
    /// (name, (field, type)).
    structs: Vec<(String, Vec<(String, String)>)>,
    /// (name, enumerators).
    enums: Vec<(String, Vec<String>)>,
    /// (name, number of arguments).
    functions: Vec<(String, usize)>,
}

/// Lines of a body up to the closing brace.
fn body<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    lines.take_while(|line| *line != "}").map(|line| line.trim().trim_end_matches(',')).collect()
}

fn read(bindings: &str) -> Result<Declarations, String> {
    let mut found = Declarations::default();
    let mut lines = bindings.lines();
    while let Some(line) = lines.next() {
        let opened = |start: &str| line.strip_prefix(start)?.strip_suffix(" {");
        if let Some(name) = opened("pub struct ") {
            let fields = body(&mut lines).into_iter().map(|field| {
                let (name, kind) = field.strip_prefix("pub ")?.split_once(": ")?;
                Some((name.to_string(), kind.to_string()))
            });
            let fields = fields.collect::<Option<_>>().ok_or(format!("the fields of {name}"))?;
            found.structs.push((name.to_string(), fields));
        } else if let Some(name) = opened("pub enum ") {
            let numbered = body(&mut lines).into_iter().enumerate().map(|(i, line)| {
                let (name, number) = line.split_once(" = ")?;
                (number == i.to_string()).then(|| name.to_string())
            });
            let names = numbered.collect::<Option<_>>();
            let names = names.ok_or(format!("{name} is not numbered 0, 1, 2, ..."))?;
            found.enums.push((name.to_string(), names));
        } else if let Some(function) = line.trim().strip_prefix("pub fn ") {
            let mut text = function.to_string();
            while !text.ends_with(';') {
                text.push_str(lines.next().ok_or(format!("the end of {function}"))?);
            }
            let (name, rest) = text.split_once('(').ok_or(format!("the name of {function}"))?;
            let (arguments, _) = rest.rsplit_once(')').ok_or(format!("arguments of {name}"))?;
            let count = arguments.split(',').filter(|a| !a.trim().is_empty()).count();
            found.functions.push((name.to_string(), count));
        }
    }
    Ok(found)
}

fn bare(name: &str) -> &str {
    name.strip_prefix("gradus_").unwrap_or(name)
}

/// A macro that hands a list to the macro whose name it is given.
fn list(doc: &str, name: &str, items: impl Iterator<Item = String>) -> String {
    let items: String = items.map(|item| format!("            {item};\n")).collect();
    format!(
        "\n/// {doc}\n#[doc(hidden)]\n#[macro_export]\nmacro_rules! {name} {{\n    \
         ($then:ident) => {{\n        $then! {{\n{items}        }}\n    }};\n}}\n"
    )
}

/// The file's text.
pub fn render(bindings: &str) -> Result<String, String> {
    let found = read(bindings)?;
    let args_of = |function: &str| format!("{function}_args");
    let is_op = |name: &str| found.structs.iter().any(|(s, _)| *s == args_of(name));
    let (ops, others): (Vec<_>, Vec<_>) = found.functions.iter().partition(|(name, _)| is_op(name));
    let args = found.structs.iter().filter(|(name, _)| name.ends_with("_args")).count();
    if ops.len() != args || ops.iter().any(|(_, arguments)| *arguments != 3) {
        return Err(format!("{} ops, but {args} structs of arguments", ops.len()));
    }
    let mut text = String::from("//! What the header declares, as lists. See `ffi/bindings`.\n\n");
    text.push_str("use crate::sys::*;\n");
    text += &list(
        "Every op: its name, its export and its argument struct.",
        "each_op",
        ops.iter().map(|(name, _)| format!("{} {name} {}", bare(name), args_of(name))),
    );
    text += &list(
        "Every function that is no op, with one `_` per argument.",
        "each_function",
        others.iter().map(|(name, count)| format!("{name}({})", vec!["_"; *count].join(", "))),
    );
    let plain = found.structs.iter().filter(|(name, _)| !name.ends_with("_args"));
    text += &list(
        "Every struct that is not the arguments of an op: its name and its type.",
        "each_struct",
        plain.map(|(name, _)| format!("{} {name}", bare(name))),
    );
    text.push_str("\n/// Enumerators in the order of their numbers, which begin at 0.\n");
    text.push_str("pub trait Enumeration: Copy + 'static {\n    /// All of them.\n");
    text.push_str("    const ALL: &'static [Self];\n}\n");
    for (name, all) in &found.enums {
        let all: String = all.iter().map(|one| format!("        {name}::{one},\n")).collect();
        let _ = write!(
            text,
            "\nimpl Enumeration for {name} {{\n    const ALL: &'static [Self] = &[\n{all}    ];\n}}\n"
        );
    }
    text.push_str("\n/// Fields of every struct: (struct, (field, struct that it is or points to, or \"\")).\n");
    text.push_str("pub(crate) static FIELDS: &[(&str, &[(&str, &str)])] = &[\n");
    for (name, fields) in &found.structs {
        let pair = |(field, kind): &(String, String)| {
            let kind = kind.rsplit(' ').next().unwrap_or("");
            let inner = found.structs.iter().find(|(s, _)| s == kind).map_or("", |(s, _)| bare(s));
            format!("(\"{field}\", \"{inner}\")")
        };
        let fields: Vec<String> = fields.iter().map(pair).collect();
        let _ = writeln!(text, "    (\"{}\", &[{}]),", bare(name), fields.join(", "));
    }
    text.push_str("];\n");
    Ok(text)
}
