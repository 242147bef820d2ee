//! Calls of the ops whose C arguments have the names of the Rust ones: `ffi/src/ops/plain.rs`. The order of arguments
//! comes from the op in `src/ops`, defaults from the header's comments. An op with an `Op` in another file of
//! `ffi/src/ops` is left to that file.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::header::{self, Field, Kind, Struct};

/// The file that is written.
pub const FILE: &str = "ops/plain.rs";

/// A function of `src/ops` and its arguments.
struct RustOp {
    /// `float` or `real`: which dtypes it is compiled for.
    floats: &'static str,
    arguments: String,
    /// (name, type).
    fields: Vec<(String, String)>,
}

/// Every Rust file below a folder.
fn sources(folder: &Path) -> Result<Vec<(String, String)>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            found.push((path.display().to_string(), text));
        }
    }
    Ok(found)
}

/// `pub fn NAME<T: Float>(device: &Device, args: ARGUMENTS<'_, T>)` and `pub struct ARGUMENTS<'a, T>` of one file.
fn rust_op(name: &str, text: &str) -> Option<RustOp> {
    let (_, rest) = text.split_once(&format!("\npub fn {name}<"))?;
    let (head, _) = rest.split_once('{')?;
    let head: String = head.split_whitespace().collect();
    let (generic, rest) = head.split_once(">(device:&Device,args:")?;
    let (letter, bound) = generic.split_once(':')?;
    let floats = match bound {
        "Float" => "float",
        "Real" => "real",
        _ => return None,
    };
    let (arguments, rest) = rest.split_once("<'_,")?;
    let returned = rest.strip_prefix(letter)?.trim_start_matches('>').trim_start_matches(',');
    if returned != ")->Result<()>" {
        return None;
    }
    let (_, body) = text.split_once(&format!("\npub struct {arguments}<'a, {letter}> {{\n"))?;
    let (body, _) = body.split_once("\n}\n")?;
    let lines = body.lines().filter_map(|line| line.trim().strip_prefix("pub "));
    let field = |line: &str| {
        let (name, kind) = line.strip_suffix(',')?.split_once(": ")?;
        let kind = kind.replace(&format!(", {letter}>"), ", F>");
        Some((name.to_string(), kind))
    };
    let fields = lines.map(field).collect::<Option<_>>()?;
    Some(RustOp { floats, arguments: arguments.to_string(), fields })
}

/// What a number starts at, as Rust.
fn value(kind: &Kind, default: f64) -> String {
    match kind {
        Kind::F64 if default.is_infinite() && default > 0.0 => "f64::INFINITY".to_string(),
        Kind::F64 if default.is_infinite() => "f64::NEG_INFINITY".to_string(),
        Kind::F64 => format!("{default:?}"),
        _ => format!("{default}"),
    }
}

/// A field's default if it is not zero.
fn default(field: &Field, structs: &[Struct]) -> Result<Option<String>, String> {
    let all = match &field.kind {
        Kind::I32 | Kind::I64 | Kind::F64 if field.count == 1 => {
            let default = field.default();
            return Ok((default != 0.0).then(|| value(&field.kind, default)));
        }
        Kind::Size | Kind::Tensor | Kind::Given(_) => return Ok(None),
        Kind::Struct(name) => structs.iter().find(|s| s.name == *name).ok_or(name)?,
        _ => return Err(format!("`{}` is a list or the place of a result", field.name)),
    };
    let mut fields = Vec::new();
    for inner in &all.fields {
        if !matches!(inner.kind, Kind::I32 | Kind::I64 | Kind::F64) || inner.count != 1 {
            return Err(format!("`{}` has fields that are no numbers", field.name));
        }
        fields.push(format!("{}: {}", inner.name, value(&inner.kind, inner.default())));
    }
    Ok(Some(format!("gradus_{} {{ {} }}", all.name, fields.join(", "))))
}

/// The call of an op, or why it has to be written by hand.
fn call(op: &Struct, rust: &RustOp, structs: &[Struct]) -> Result<String, String> {
    let own = |field: &&Field| !matches!(field.name.as_str(), "struct_size" | "reserved");
    let fields: Vec<&Field> = op.fields.iter().filter(own).collect();
    if let Some((name, _)) = rust.fields.iter().find(|(n, _)| !fields.iter().any(|f| f.name == *n))
    {
        return Err(format!("`{name}` is no field of gradus_{}", op.name));
    }
    let mut defaults = Vec::new();
    for field in &fields {
        if !rust.fields.iter().any(|(name, _)| *name == field.name) {
            return Err(format!("`{}` is no field of {}", field.name, rust.arguments));
        }
        if let Some(value) = default(field, structs)? {
            defaults.push(format!("{}: {value}", field.name));
        }
    }
    let tensor =
        |(_, kind): &&(String, String)| matches!(&kind[..], "View<'a, F>" | "ViewMut<'a, F>");
    let (key, _) = rust.fields.iter().find(tensor).ok_or("no argument decides the dtype")?;
    let mut text = format!("\nimpl_op!(gradus_{} {{\n    {} {key},\n", op.name, rust.floats);
    if !defaults.is_empty() {
        let _ = writeln!(text, "    defaults {{ {} }},", defaults.join(", "));
    }
    let names: Vec<&str> = rust.fields.iter().map(|(name, _)| name.as_str()).collect();
    let (name, arguments) = (op.name.trim_end_matches("_args"), &rust.arguments);
    let _ = writeln!(text, "    |args, t| {name}({arguments} {{ {} }})\n}});", names.join(", "));
    Ok(text)
}

/// The file's text, for the ops of `root/src/ops` and the calls by hand in `root/ffi/src/ops`.
pub fn render(root: &Path) -> Result<String, String> {
    let (ops, by_hand) = (sources(&root.join("src/ops"))?, sources(&root.join("ffi/src/ops"))?);
    let is_by_hand = |args: &str| {
        let ways = [format!("impl Op for gradus_{args} {{"), format!("impl_op!(gradus_{args} {{")];
        let mut files = by_hand.iter().filter(|(file, _)| !file.ends_with(FILE));
        files.any(|(_, text)| ways.iter().any(|way| text.contains(way)))
    };
    let structs = header::structs();
    let mut text = String::from(
        "//! Calls of ops whose C arguments have the names of the Rust ones. See `ffi/bindings`.\n\n\
         use gradus::ops::*;\n\nuse crate::field::impl_op;\nuse crate::sys::*;\n",
    );
    for op in structs.iter().filter(|s| s.name.ends_with("_args") && !is_by_hand(&s.name)) {
        let name = op.name.trim_end_matches("_args");
        let rust = ops.iter().find_map(|(_, text)| rust_op(name, text));
        let rust = rust.ok_or("src/ops has no function of this name for Float or Real".to_string());
        text += &rust.and_then(|rust| call(op, &rust, &structs)).map_err(|reason| {
            format!("gradus_{name}: {reason}; write its Op by hand in ffi/src/ops")
        })?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LERP: &str = "
pub struct Lerp<'a, T> {
    /// The start.
    pub a: View<'a, T>,
    pub b: View<'a, T>,
    pub weight: f64,
    pub y: ViewMut<'a, T>,
}

pub fn lerp<T: Float>(device: &Device, args: Lerp<'_, T>) -> Result<()> {
";

    fn call_of_lerp(text: &str) -> Result<String, String> {
        let structs = header::structs();
        let op = structs.iter().find(|s| s.name == "lerp_args").unwrap();
        call(op, &rust_op("lerp", text).ok_or("not understood")?, &structs)
    }

    #[test]
    fn a_call_has_the_arguments_of_rust_and_the_defaults_of_the_header() {
        let want = "\nimpl_op!(gradus_lerp_args {\n    float a,\n    defaults { weight: 0.5 },\n    \
                    |args, t| lerp(Lerp { a, b, weight, y })\n});\n";
        assert_eq!(call_of_lerp(LERP).as_deref(), Ok(want));
        let broken = LERP.replace(
            "device: &Device, args: Lerp<'_, T>",
            "\n    device: &Device,\n    args: Lerp<'_, T>,\n",
        );
        assert_eq!(call_of_lerp(&broken).as_deref(), Ok(want));
    }

    #[test]
    fn arguments_that_differ_are_named() {
        let other = call_of_lerp(&LERP.replace("weight", "amount")).unwrap_err();
        assert_eq!(other, "`amount` is no field of gradus_lerp_args");
        let fewer = call_of_lerp(&LERP.replace("    pub weight: f64,\n", "")).unwrap_err();
        assert_eq!(fewer, "`weight` is no field of Lerp");
        let optional =
            LERP.replace("View<'a, T>", "Option<View<'a, T>>").replace("ViewMut", "Other");
        assert_eq!(call_of_lerp(&optional).unwrap_err(), "no argument decides the dtype");
        assert_eq!(call_of_lerp(&LERP.replace("Float", "Element")).unwrap_err(), "not understood");
    }

    #[test]
    fn the_committed_calls_are_those_of_the_header() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let committed = fs::read_to_string(root.join("ffi/src").join(FILE)).unwrap();
        let (_, calls) = committed.split_once('\n').unwrap();
        assert!(render(&root).as_deref() == Ok(calls), "run `cargo run -p gradus-bindings`");
        assert!(calls.matches("impl_op!").count() > 20);
    }
}
