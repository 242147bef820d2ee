//! What the parser makes of a PTX file.

/// A parsed file.
#[derive(Debug, Default)]
pub struct Source {
    /// `.version`.
    pub version: (u32, u32),
    /// `.target`, for example `sm_80`.
    pub target: String,
    /// Module-scope variables.
    pub variables: Vec<Variable>,
    /// Entries and functions with a body.
    pub functions: Vec<Function>,
}

/// State space of a variable or an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

/// A variable of any space.
#[derive(Clone, Debug)]
pub struct Variable {
    pub name: String,
    pub space: Space,
    pub align: u64,
    pub size: u64,
    /// True for `extern .shared x[]`.
    pub dynamic: bool,
    pub init: Vec<u8>,
    pub line: u32,
}

/// An entry or a function.
#[derive(Debug, Default)]
pub struct Function {
    pub name: String,
    pub entry: bool,
    pub params: Vec<Variable>,
    pub returns: Vec<Variable>,
    /// Variables declared in the body, of any block, with their block-unique names.
    pub variables: Vec<Variable>,
    /// `.maxntid`, threads.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`, threads.
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`, blocks.
    pub cluster: Option<[u32; 3]>,
    pub body: Vec<Statement>,
    /// Registers by class.
    pub registers: [u32; 3],
}

/// Where a register's value is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// 8 to 32 bits.
    Narrow = 0,
    /// 64 bits.
    Wide = 1,
    /// One bit.
    Predicate = 2,
}

/// A register of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reg {
    pub class: Class,
    pub index: u32,
    /// Declared size.
    pub bits: u8,
}

/// A label or an instruction.
#[derive(Clone, Debug)]
pub enum Statement {
    Label { name: String },
    Instruction(Instruction),
}

/// An instruction as it stands in the text.
#[derive(Clone, Debug)]
pub struct Instruction {
    pub line: u32,
    /// Predicate and whether it is negated.
    pub guard: Option<(Reg, bool)>,
    /// Opcode and modifiers, split at dots: `ld`, `global`, `v4`, `u32`.
    pub opcode: Vec<String>,
    pub operands: Vec<Operand>,
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    Reg(Reg),
    /// `!%p`.
    Not(Reg),
    /// `%d|%p`, either of which may be the sink `_`.
    Pair(Option<Reg>, Option<Reg>),
    Int(u64),
    /// Bits of `0f…`.
    F32(u32),
    /// Bits of `0d…`.
    F64(u64),
    /// `%tid.x` and its like.
    Special(String),
    /// A variable or a function; `_` is the sink.
    Symbol(String),
    /// `[base + offset]`.
    Address(Base, i64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
    /// `[map, {x, y}]` of a tensor copy.
    Tensor(Box<Operand>, Vec<Operand>),
    /// A branch target with its block-unique name.
    Label(String),
}

impl Operand {
    /// Variables and functions that the operand names.
    pub fn symbols(&self) -> Vec<&str> {
        match self {
            Operand::Symbol(name) | Operand::Address(Base::Symbol(name), _) => vec![name],
            Operand::Vector(list) | Operand::List(list) => {
                list.iter().flat_map(Operand::symbols).collect()
            }
            Operand::Tensor(map, list) => {
                map.symbols().into_iter().chain(list.iter().flat_map(Operand::symbols)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// What an address starts from.
#[derive(Clone, Debug, PartialEq)]
pub enum Base {
    Reg(Reg),
    Symbol(String),
    Absolute,
}

/// Bits and signedness of an integer type name; bit types are unsigned.
pub fn type_of(name: &str) -> Option<(u32, bool)> {
    Some(match name {
        "b8" | "u8" => (8, false),
        "s8" => (8, true),
        "b16" | "u16" => (16, false),
        "s16" => (16, true),
        "b32" | "u32" => (32, false),
        "s32" => (32, true),
        "b64" | "u64" => (64, false),
        "s64" => (64, true),
        _ => return None,
    })
}

/// Size of a type in bits; 1 for predicates.
pub fn type_bits(name: &str) -> Option<u8> {
    Some(match name {
        "pred" => 1,
        "b8" | "u8" | "s8" => 8,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 16,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 32,
        "b64" | "u64" | "s64" | "f64" => 64,
        _ => return None,
    })
}
