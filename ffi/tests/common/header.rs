//! The header as data: every argument struct with its fields, their offsets and what their comments say.
//! Tests call all ops from it, so an op that is added is tested without another line; `ffi/bindings` writes calls of
//! ops from it.

use std::collections::HashMap;

/// A field of a struct.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: String,
    pub kind: Kind,
    pub offset: usize,
    /// Elements of an array, 1 otherwise.
    pub count: usize,
    /// Position in its line, of several that one comment is about.
    pub place: usize,
    /// The comment behind it.
    pub note: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Size,
    I32,
    I64,
    F64,
    Tensor,
    /// A struct of the header, in place.
    Struct(String),
    /// A pointer to what the op reads.
    Given(String),
    /// A pointer to what the op writes.
    Result(String),
}

#[derive(Clone, Debug)]
pub struct Struct {
    pub name: String,
    pub fields: Vec<Field>,
    pub size: usize,
}

/// The header itself, and its parts by name.
const HEADER: &str = include_str!("../../include/gradus.h");
macro_rules! parts {
    ($($name:literal),*) => {
        [$(($name, include_str!(concat!("../../include/gradus/", $name, ".h")))),*]
    };
}
const PARTS: [(&str, &str); 6] =
    parts!["vocabulary", "policy", "products", "quantize", "decoder", "optim"];

/// The texts in the order in which the header includes them.
fn texts() -> Vec<&'static str> {
    let names =
        HEADER.split("#include \"gradus/").skip(1).map(|rest| rest.split_once(".h").unwrap().0);
    let of = |name| PARTS.iter().find(|(part, _)| *part == name).expect("a part of the header").1;
    std::iter::once(HEADER).chain(names.map(of)).collect()
}

/// The number of an enumerator.
pub fn number(enumerator: &str) -> i64 {
    let start = format!("{enumerator} = ");
    let text = texts().into_iter().find_map(|text| text.split_once(&start));
    let (_, rest) = text.unwrap_or_else(|| panic!("no enumerator {enumerator}"));
    rest.split([',', ' ', '\n']).next().unwrap().parse().expect("a number")
}

/// All structs, in the order of the header.
pub fn structs() -> Vec<Struct> {
    let mut all = Vec::new();
    let mut sizes = HashMap::new();
    for text in texts() {
        for body in text.split("typedef struct gradus_").skip(1) {
            let (name, rest) = body.split_once(" {\n").expect("a struct has a body");
            let (body, _) = rest.split_once("\n} gradus_").expect("a struct ends");
            let found = layout(name, body, &sizes);
            sizes.insert(name.to_string(), found.size);
            all.push(found);
        }
    }
    all
}

/// Names of the ops: those whose argument struct is passed to a function.
pub fn ops() -> Vec<Struct> {
    structs().into_iter().filter(|s| s.name.ends_with("_args")).collect()
}

fn layout(name: &str, body: &str, sizes: &HashMap<String, usize>) -> Struct {
    let (mut fields, mut end, mut most) = (Vec::new(), 0usize, 1);
    for line in body.lines() {
        let (code, note) = line.split_once("/*").unwrap_or((line, ""));
        let note = note.trim_end().trim_end_matches("*/").trim();
        let code = code.trim().trim_end_matches(';');
        if code.is_empty() {
            continue;
        }
        let (code, constant) = match code.strip_prefix("const ") {
            Some(code) => (code, true),
            None => (code, false),
        };
        let (ty, names) = code.split_once(' ').expect("a type and names");
        for (place, item) in names.split(',').enumerate() {
            let item = item.trim();
            let (item, count) = match item.split_once('[') {
                Some((item, count)) => (item, count.trim_end_matches(']').parse().unwrap()),
                None => (item, 1),
            };
            let kind = kind(ty, item.starts_with('*').then_some(constant));
            let (size, align) = extent(&kind, sizes);
            let offset = end.next_multiple_of(align);
            (end, most) = (offset + size * count, most.max(align));
            let name = item.trim_start_matches('*').to_string();
            fields.push(Field { name, kind, offset, count, place, note: note.to_string() });
        }
    }
    Struct { name: name.to_string(), fields, size: end.next_multiple_of(most) }
}

/// Of a type, or of a pointer to it that is constant or not.
fn kind(ty: &str, pointer: Option<bool>) -> Kind {
    let named = ty.trim_start_matches("gradus_");
    match (ty, pointer) {
        (_, Some(true)) => Kind::Given(named.to_string()),
        (_, Some(false)) => Kind::Result(named.to_string()),
        ("size_t", _) => Kind::Size,
        ("int32_t", _) => Kind::I32,
        ("int64_t", _) => Kind::I64,
        ("double", _) => Kind::F64,
        ("gradus_tensor", _) => Kind::Tensor,
        ("void", _) => unreachable!("void is only pointed to"),
        _ => Kind::Struct(named.to_string()),
    }
}

/// Bytes and alignment, as a C compiler has them on 64-bit machines.
fn extent(kind: &Kind, sizes: &HashMap<String, usize>) -> (usize, usize) {
    match kind {
        Kind::I32 => (4, 4),
        Kind::Size | Kind::I64 | Kind::F64 | Kind::Given(_) | Kind::Result(_) => (8, 8),
        Kind::Tensor => (88, 8),
        Kind::Struct(name) => (sizes[name], 8),
    }
}

/// What a tensor's comment says: its direction, dtype letter, and extents.
#[derive(Clone, Debug, Default)]
pub struct Note {
    pub written: bool,
    pub dtype: String,
    pub extents: Vec<String>,
    pub optional: bool,
}

impl Field {
    /// What the comment says of a number's default, or 0.
    pub fn default(&self) -> f64 {
        let Some((_, text)) = self.note.split_once("default ") else { return 0.0 };
        let text = text.split([';', ':']).next().unwrap();
        let values: Vec<&str> = text.split(", ").flat_map(|text| text.split(" and ")).collect();
        match values[self.place.min(values.len() - 1)] {
            "infinity" => f64::INFINITY,
            "-infinity" => f64::NEG_INFINITY,
            name if name.starts_with("GRADUS_") => number(name) as f64,
            number => number.parse().unwrap_or_else(|_| panic!("{}: `{number}`", self.name)),
        }
    }

    /// Of `in F [T, V_alloc], optional: ...`.
    pub fn note(&self) -> Note {
        let text = self.note.trim_start_matches("or ");
        let mut words = text.split_whitespace();
        let mut direction = words.next().unwrap_or("").trim_end_matches(',');
        // Structs that are only read say no direction.
        let dtype = match direction {
            "in" | "out" | "inout" => words.next().unwrap_or(""),
            dtype => std::mem::replace(&mut direction, dtype),
        };
        let dtype = dtype.trim_end_matches([',', ':']).to_string();
        let extents = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        Note {
            written: matches!(direction, "out" | "inout"),
            dtype,
            extents: extents
                .map(|(list, _)| list.split(',').map(|e| e.trim().to_string()).collect())
                .unwrap_or_else(|| vec!["any".to_string()]),
            optional: text.contains("optional"),
        }
    }
}
