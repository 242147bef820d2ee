//! Statements to executable instructions. An opcode, a modifier or an operand that is not known
//! here is an error with its line, never a guess.

mod address;
mod atomic;
mod bulk;
mod control;
mod convert;
mod copy;
mod float;
mod half;
mod integer;
mod lanes;
mod matrix;
mod mbarrier;
mod memory;
mod moves;
mod place;
pub mod program;
pub(crate) mod shared;
mod warp;
mod wgmma;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::machine::counters::Work;
use crate::machine::{Execute, PARAM_OFFSET};
use crate::text::ast::*;
use crate::time::timeline::Timeline;
use program::{Instruction as Decoded, Program, Special};

/// Deepest nesting of calls.
const MAX_DEPTH: usize = 16;

/// What decoding one instruction yields.
pub(crate) type Decode = Result<(Work, Execute), String>;

/// Where a symbol's memory is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub space: Space,
    pub address: u64,
}

/// State of decoding one kernel.
pub(crate) struct Decoder<'a> {
    source: &'a Source,
    /// Module-scope symbols: buffers, constants, shared memory.
    globals: HashMap<String, Place>,
    counts: [u32; 3],
    constants: HashMap<(Class, u64), u32>,
    /// The same for addresses in the block's own shared memory, by their offsets.
    shared_addresses: HashMap<(Class, u64), u32>,
    specials: HashMap<Special, u32>,
    shared_bytes: u64,
    local_bytes: u64,
    out: Vec<Decoded>,
    timeline: Timeline,
}

/// One function body that is being decoded in place: the entry, or a call of a function.
struct Frame<'f> {
    function: &'f Function,
    base: [u32; 3],
    symbols: HashMap<String, Place>,
    labels: HashMap<String, usize>,
    /// Where `ret` goes; `None` for the entry, where it ends the thread.
    end: Option<usize>,
    depth: usize,
}

/// An instruction with access to its operands.
pub(crate) struct Ops<'i, 'd, 'a, 'f> {
    pub(crate) instruction: &'i Instruction,
    decoder: &'d mut Decoder<'a>,
    frame: &'i Frame<'f>,
}

/// Addresses of the module's `.global` variables, by name.
pub type GlobalAddresses = HashMap<String, u64>;

/// Decodes one entry of a module.
pub fn decode(
    source: &Source,
    text: &Arc<str>,
    entry: &Function,
    global: &GlobalAddresses,
) -> Result<Program, String> {
    let (globals, constants, shared_bytes) = module_scope(source, entry, global)?;
    let mut decoder = Decoder {
        source,
        globals,
        counts: [0; 3],
        constants: HashMap::new(),
        shared_addresses: HashMap::new(),
        specials: HashMap::new(),
        shared_bytes,
        local_bytes: 0,
        out: Vec::new(),
        timeline: Timeline::default(),
    };
    let (params, param_bytes) = layout(&entry.params, Space::Param, PARAM_OFFSET);
    decoder.function(entry, params, 0)?;
    Ok(decoder.finish(entry, text, constants, (param_bytes - PARAM_OFFSET) as usize))
}

type ModuleScope = (HashMap<String, Place>, Vec<u8>, u64);

/// Symbols that an entry mentions, itself or through the functions it calls.
fn mentioned<'s>(source: &'s Source, entry: &'s Function) -> HashSet<&'s str> {
    let (mut found, mut left) = (HashSet::new(), vec![entry]);
    while let Some(function) = left.pop() {
        for statement in &function.body {
            let Statement::Instruction(i) = statement else { continue };
            for name in i.operands.iter().flat_map(Operand::symbols) {
                if found.insert(name) {
                    left.extend(source.functions.iter().filter(|f| f.name == name));
                }
            }
        }
    }
    found
}

fn module_scope(
    source: &Source,
    entry: &Function,
    global: &GlobalAddresses,
) -> Result<ModuleScope, String> {
    let (mut places, mut constants, mut shared) = (HashMap::new(), Vec::new(), 0u64);
    let mentioned = mentioned(source, entry);
    let ordered = source
        .variables
        .iter()
        .filter(|v| !v.dynamic)
        .chain(source.variables.iter().filter(|v| v.dynamic));
    for v in ordered {
        let address = match v.space {
            Space::Global => {
                *global.get(&v.name).ok_or(format!("variable `{}` has no memory", v.name))?
            }
            Space::Const => {
                constants.resize(constants.len().next_multiple_of(v.align.max(1) as usize), 0);
                let at = constants.len() as u64;
                constants.extend_from_slice(&v.init);
                constants.resize((at + v.size) as usize, 0);
                at
            }
            Space::Shared if v.dynamic => continue,
            // A block has the memory that its kernel uses, as the driver would give it.
            Space::Shared if !mentioned.contains(v.name.as_str()) => continue,
            Space::Shared => place(&mut shared, v),
            _ => {
                return Err(format!(
                    "line {}: variable `{}` in an unsupported space",
                    v.line, v.name
                ));
            }
        };
        places.insert(v.name.clone(), Place { space: v.space, address });
    }
    Ok((places, constants, shared))
}

fn place(used: &mut u64, v: &Variable) -> u64 {
    let at = used.next_multiple_of(v.align.max(1));
    *used = at + v.size;
    at
}

fn layout(variables: &[Variable], space: Space, first: u64) -> (HashMap<String, Place>, u64) {
    let mut used = first;
    let places = variables
        .iter()
        .map(|v| (v.name.clone(), Place { space, address: place(&mut used, v) }))
        .collect();
    (places, used)
}

/// Instructions a function takes when its calls are expanded.
fn length(source: &Source, function: &Function, depth: usize) -> Result<usize, String> {
    if depth > MAX_DEPTH {
        return Err(format!("calls nest deeper than {MAX_DEPTH}: recursion is not supported"));
    }
    let mut total = 0;
    for statement in &function.body {
        let Statement::Instruction(i) = statement else { continue };
        total += match i.opcode[0].as_str() {
            "call" => length(source, callee(source, i)?, depth + 1)?,
            _ => 1,
        };
    }
    Ok(total)
}

fn callee<'s>(source: &'s Source, call: &Instruction) -> Result<&'s Function, String> {
    let name = call.operands.iter().find_map(|o| match o {
        Operand::Symbol(name) => Some(name),
        _ => None,
    });
    let name = name.ok_or(format!("line {}: indirect calls are not supported", call.line))?;
    let found = source.functions.iter().find(|f| &f.name == name);
    found.ok_or(format!("line {}: function `{name}` has no body", call.line))
}

impl Decoder<'_> {
    fn function(
        &mut self,
        function: &Function,
        mut symbols: HashMap<String, Place>,
        depth: usize,
    ) -> Result<(), String> {
        let base = self.counts;
        for (count, n) in self.counts.iter_mut().zip(function.registers) {
            *count += n;
        }
        for v in &function.variables {
            let address = match v.space {
                Space::Shared if v.dynamic => continue,
                Space::Shared => place(&mut self.shared_bytes, v),
                Space::Local | Space::Param => place(&mut self.local_bytes, v),
                _ => return Err(format!("line {}: variable in an unsupported space", v.line)),
            };
            let space = if v.space == Space::Param { Space::Local } else { v.space };
            symbols.insert(v.name.clone(), Place { space, address });
        }
        let labels = self.labels(function, depth)?;
        let end = match depth {
            0 => None,
            _ => Some(self.out.len() + length(self.source, function, depth)?),
        };
        let frame = Frame { function, base, symbols, labels, end, depth };
        for statement in &function.body {
            if let Statement::Instruction(instruction) = statement {
                self.statement(instruction, &frame)?;
            }
        }
        Ok(())
    }

    fn labels(&self, function: &Function, depth: usize) -> Result<HashMap<String, usize>, String> {
        let (mut labels, mut pc) = (HashMap::new(), self.out.len());
        for statement in &function.body {
            match statement {
                Statement::Label { name } => drop(labels.insert(name.clone(), pc)),
                Statement::Instruction(i) if i.opcode[0] == "call" => {
                    pc += length(self.source, callee(self.source, i)?, depth + 1)?;
                }
                Statement::Instruction(_) => pc += 1,
            }
        }
        Ok(labels)
    }

    fn statement(&mut self, instruction: &Instruction, frame: &Frame<'_>) -> Result<(), String> {
        if instruction.opcode[0] == "call" {
            return self.call(instruction, frame);
        }
        let mut ops = Ops { instruction, decoder: self, frame };
        let guard = instruction.guard.map(|(reg, negated)| (ops.index(reg) as u32, negated));
        let line = instruction.line;
        let (work, run) = ops.decode().map_err(|e| format!("line {line}: {e}"))?;
        self.out.push(Decoded { guard, run, line, work });
        let target = match (instruction.opcode[0].as_str(), instruction.operands.first()) {
            ("bra", Some(Operand::Label(name))) => frame.labels.get(name).copied(),
            _ => None,
        };
        self.timeline.push(instruction, frame.base, target);
        Ok(())
    }

    /// A call is expanded in place: the formal parameters are the actual ones' memory.
    fn call(&mut self, call: &Instruction, frame: &Frame<'_>) -> Result<(), String> {
        let line = call.line;
        if call.guard.is_some() {
            return Err(format!("line {line}: a predicated call is not supported"));
        }
        let function = callee(self.source, call)?;
        let lists: Vec<&Vec<Operand>> = call
            .operands
            .iter()
            .filter_map(|o| if let Operand::List(list) = o { Some(list) } else { None })
            .collect();
        let actual: Vec<&Operand> = lists.iter().flat_map(|list| list.iter()).collect();
        let formal: Vec<&Variable> = function.returns.iter().chain(&function.params).collect();
        if actual.len() != formal.len() {
            return Err(format!("line {line}: {} arguments for {}", actual.len(), formal.len()));
        }
        let mut symbols = HashMap::new();
        for (actual, formal) in actual.into_iter().zip(formal) {
            let Operand::Symbol(name) = actual else {
                return Err(format!("line {line}: argument {actual:?} is not supported"));
            };
            let place =
                frame.symbols.get(name).ok_or(format!("line {line}: unknown argument `{name}`"))?;
            symbols.insert(formal.name.clone(), *place);
        }
        self.function(function, symbols, frame.depth + 1)
    }

    fn constant(&mut self, class: Class, value: u64) -> usize {
        register_of(&mut self.constants, &mut self.counts, class, value)
    }

    fn shared_address(&mut self, class: Class, offset: u64) -> usize {
        register_of(&mut self.shared_addresses, &mut self.counts, class, offset)
    }

    fn finish(
        mut self,
        entry: &Function,
        text: &Arc<str>,
        constants: Vec<u8>,
        param_bytes: usize,
    ) -> Program {
        self.timeline.fold();
        self.timeline.make_conditional();
        let of = |class: Class| self.constants.iter().filter(move |((c, _), _)| *c == class);
        let shared = |class: Class| {
            let all = self.shared_addresses.iter().filter(move |((c, _), _)| *c == class);
            all.map(|((_, offset), index)| (*index as usize, *offset)).collect()
        };
        Program {
            name: entry.name.clone(),
            instructions: self.out,
            timeline: Arc::new(self.timeline),
            registers: self.counts.map(|n| n as usize),
            narrow_constants: of(Class::Narrow)
                .map(|((_, v), i)| (*i as usize, *v as u32))
                .collect(),
            wide_constants: of(Class::Wide).map(|((_, v), i)| (*i as usize, *v)).collect(),
            narrow_shared: shared(Class::Narrow),
            wide_shared: shared(Class::Wide),
            specials: self.specials.iter().map(|(s, i)| (*s, *i as usize)).collect(),
            constants,
            param_bytes,
            shared_bytes: self.shared_bytes.next_multiple_of(16) as u32,
            local_bytes: self.local_bytes as usize,
            max_threads: entry.max_threads.map(|t| t.iter().product()),
            required_threads: entry.required_threads,
            cluster: entry.cluster.map(|c| c.iter().product()),
            text: text.clone(),
        }
    }
}

/// The register that holds a value, a new one at its first use.
fn register_of(
    registers: &mut HashMap<(Class, u64), u32>,
    counts: &mut [u32; 3],
    class: Class,
    value: u64,
) -> usize {
    let index = registers.entry((class, value)).or_insert_with(|| {
        counts[class as usize] += 1;
        counts[class as usize] - 1
    });
    *index as usize
}

impl Ops<'_, '_, '_, '_> {
    /// Opcode without its modifiers.
    pub(crate) fn name(&self) -> &str {
        &self.instruction.opcode[0]
    }

    /// Modifiers in order.
    pub(crate) fn modifiers(&self) -> Vec<&str> {
        self.instruction.opcode[1..].iter().map(String::as_str).collect()
    }

    /// The last modifier: the type of most instructions.
    pub(crate) fn ty(&self) -> &str {
        self.instruction.opcode.last().map_or("", String::as_str)
    }

    /// Refuses modifiers that are not in the list, and the type.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), String> {
        let inner = &self.instruction.opcode[1..self.instruction.opcode.len().max(2) - 1];
        match inner.iter().find(|m| !known.contains(&m.as_str())) {
            Some(m) => Err(format!(
                "`{}`: modifier `.{m}` is not supported",
                self.instruction.opcode.join(".")
            )),
            None => Ok(()),
        }
    }

    pub(crate) fn has(&self, modifier: &str) -> bool {
        self.instruction.opcode[1..].iter().any(|m| m == modifier)
    }

    pub(crate) fn unknown<T>(&self) -> Result<T, String> {
        Err(format!("`{}` is not supported", self.instruction.opcode.join(".")))
    }

    /// Exactly `n` operands.
    pub(crate) fn count(&self, n: usize) -> Result<(), String> {
        let got = self.instruction.operands.len();
        if got == n {
            return Ok(());
        }
        Err(format!("`{}` with {got} operands, expected {n}", self.instruction.opcode.join(".")))
    }

    pub(crate) fn operand(&self, i: usize) -> Result<&Operand, String> {
        self.instruction.operands.get(i).ok_or(format!("operand {i} is missing"))
    }

    fn index(&self, reg: Reg) -> usize {
        (self.frame.base[reg.class as usize] + reg.index) as usize
    }

    /// A register that is written.
    pub(crate) fn dst(&self, i: usize, class: Class) -> Result<usize, String> {
        match self.operand(i)? {
            Operand::Reg(reg) => self.reg(*reg, class),
            other => Err(format!("operand {i} is {other:?}, expected a register")),
        }
    }

    pub(crate) fn reg(&self, reg: Reg, class: Class) -> Result<usize, String> {
        if reg.class != class {
            return Err(format!("a {:?} register where a {class:?} one belongs", reg.class));
        }
        Ok(self.index(reg))
    }

    /// Whether operand `i` is a 64-bit register; `None` if it is no register.
    pub(crate) fn in_wide(&self, i: usize) -> Option<bool> {
        match self.instruction.operands.get(i) {
            Some(Operand::Reg(reg)) => Some(reg.class == Class::Wide),
            _ => None,
        }
    }

    /// A source of at most 32 bits: a register, or a constant in a register of its own.
    pub(crate) fn narrow(&mut self, i: usize) -> Result<usize, String> {
        let operand = self.operand(i)?.clone();
        self.narrow_of(&operand)
    }

    pub(crate) fn narrow_of(&mut self, operand: &Operand) -> Result<usize, String> {
        match operand {
            Operand::Reg(reg) => self.reg(*reg, Class::Narrow),
            Operand::Int(n) => Ok(self.decoder.constant(Class::Narrow, *n & 0xffff_ffff)),
            Operand::F32(bits) => Ok(self.decoder.constant(Class::Narrow, *bits as u64)),
            Operand::F64(bits) => {
                let value = f64::from_bits(*bits) as f32;
                Ok(self.decoder.constant(Class::Narrow, value.to_bits() as u64))
            }
            Operand::Special(name) => self.special(name),
            Operand::Symbol(_) | Operand::Address(Base::Symbol(_), _) => {
                Ok(self.symbol_register(operand, Class::Narrow)?)
            }
            other => Err(format!("operand {other:?} where 32 bits belong")),
        }
    }

    /// A register that holds a symbol's address.
    fn symbol_register(&mut self, operand: &Operand, class: Class) -> Result<usize, String> {
        let (place, offset) = self.symbol(operand)?;
        let address = (place.address as i64 + offset) as u64;
        if place.space == Space::Shared {
            return Ok(self.decoder.shared_address(class, address));
        }
        let narrow = class == Class::Narrow;
        Ok(self.decoder.constant(class, if narrow { address & 0xffff_ffff } else { address }))
    }

    fn special(&mut self, name: &str) -> Result<usize, String> {
        if name == "WARP_SZ" {
            return Ok(self.decoder.constant(Class::Narrow, 32));
        }
        let special =
            Special::named(name).ok_or(format!("special register `{name}` is not supported"))?;
        let counts = &mut self.decoder.counts;
        let index = self.decoder.specials.entry(special).or_insert_with(|| {
            counts[Class::Narrow as usize] += 1;
            counts[Class::Narrow as usize] - 1
        });
        Ok(*index as usize)
    }

    /// A 64-bit source.
    pub(crate) fn wide(&mut self, i: usize) -> Result<usize, String> {
        let operand = self.operand(i)?.clone();
        self.wide_of(&operand)
    }

    pub(crate) fn wide_of(&mut self, operand: &Operand) -> Result<usize, String> {
        match operand {
            Operand::Reg(reg) => self.reg(*reg, Class::Wide),
            Operand::Int(n) => Ok(self.decoder.constant(Class::Wide, *n)),
            Operand::F64(bits) => Ok(self.decoder.constant(Class::Wide, *bits)),
            Operand::F32(bits) => {
                let value = f32::from_bits(*bits) as f64;
                Ok(self.decoder.constant(Class::Wide, value.to_bits()))
            }
            Operand::Symbol(_) | Operand::Address(Base::Symbol(_), _) => {
                Ok(self.symbol_register(operand, Class::Wide)?)
            }
            other => Err(format!("operand {other:?} where 64 bits belong")),
        }
    }

    /// A predicate source and whether it is negated. A constant is a predicate register that is
    /// never written: it would be undefined, so constants are refused here.
    pub(crate) fn predicate(&self, i: usize) -> Result<(usize, bool), String> {
        match self.operand(i)? {
            Operand::Reg(reg) => Ok((self.reg(*reg, Class::Predicate)?, false)),
            Operand::Not(reg) => Ok((self.reg(*reg, Class::Predicate)?, true)),
            other => Err(format!("operand {other:?} where a predicate belongs")),
        }
    }

    /// Memory of a symbol, and the offset that stands with it.
    pub(crate) fn symbol(&self, operand: &Operand) -> Result<(Place, i64), String> {
        let (name, offset) = match operand {
            Operand::Symbol(name) => (name, 0),
            Operand::Address(Base::Symbol(name), offset) => (name, *offset),
            other => return Err(format!("operand {other:?} where a symbol belongs")),
        };
        if let Some(place) = self.frame.symbols.get(name).or(self.decoder.globals.get(name)) {
            return Ok((*place, offset));
        }
        let dynamic = self.decoder.source.variables.iter().chain(&self.frame.function.variables);
        match dynamic.into_iter().find(|v| v.dynamic && &v.name == name) {
            // Dynamic shared memory begins where the static one ends, which is only known once
            // everything is decoded; functions with both are laid out by their declared sizes.
            Some(v) => Ok((Place { space: Space::Shared, address: self.dynamic_base(v) }, offset)),
            None => Err(format!("unknown symbol `{name}`")),
        }
    }

    fn dynamic_base(&self, v: &Variable) -> u64 {
        self.decoder.shared_bytes.next_multiple_of(v.align.max(16))
    }

    pub(crate) fn target(&self, i: usize) -> Result<usize, String> {
        match self.operand(i)? {
            Operand::Label(name) => {
                self.frame.labels.get(name).copied().ok_or(format!("unknown label `{name}`"))
            }
            other => Err(format!("branch to {other:?}")),
        }
    }

    fn decode(&mut self) -> Decode {
        let name = self.name().to_string();
        match name.as_str() {
            "bra" | "ret" | "exit" | "trap" | "bar" | "barrier" | "membar" | "fence"
            | "nanosleep" | "brkpt" | "griddepcontrol" | "setmaxnreg" | "discard"
            | "applypriority" | "prefetch" | "prefetchu" => control::decode(self),
            "ld" | "ldu" | "st" | "atom" | "red" | "cvta" | "mapa" | "isspacep" => {
                memory::decode(self)
            }
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => warp::decode(self),
            "cp" if self.has("bulk") => bulk::decode(self),
            "cp" => copy::decode(self),
            "mma" | "ldmatrix" | "stmatrix" => matrix::decode(self),
            "mbarrier" => mbarrier::decode(self),
            "wgmma" => wgmma::decode(self),
            "cvt" => convert::decode(self),
            "mov" | "selp" | "setp" | "set" | "slct" | "prmt" => moves::decode(self),
            _ => self.arithmetic(),
        }
    }

    fn arithmetic(&mut self) -> Decode {
        match self.ty() {
            "f32" | "f64" | "ftz" => float::decode(self),
            "f16" | "bf16" | "f16x2" | "bf16x2" => half::decode(self),
            _ => integer::decode(self),
        }
    }
}
