//! Tokens to statements. Registers are resolved here: inline assembly opens blocks with registers
//! and labels of their own, so a name means what its innermost block says.

use std::collections::{HashMap, HashSet};

use super::ast::*;
use super::token::{Placed, Token, tokens};

/// Parses a PTX file. Errors name the line.
pub fn parse(text: &str) -> Result<Source, String> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let mut source = Source::default();
    while parser.at < parser.tokens.len() {
        parser.top_level(&mut source)?;
    }
    Ok(source)
}

struct Parser {
    tokens: Vec<Placed>,
    at: usize,
}

/// One `{…}` block: registers, renamed variables and labels.
#[derive(Default)]
struct Block {
    id: usize,
    registers: HashMap<String, Reg>,
    /// `%r<40>`: prefix, class, first index, count, bits.
    families: Vec<(String, Class, u32, u32, u8)>,
    names: HashMap<String, String>,
}

/// The function being parsed.
#[derive(Default)]
struct Body {
    function: Function,
    blocks: Vec<Block>,
    opened: usize,
    /// Labels: (block id, name).
    labels: HashSet<(usize, String)>,
    /// Branches: place in the body and ids of the blocks around it, outermost first.
    branches: Vec<(usize, Vec<usize>)>,
}

impl Parser {
    fn line(&self) -> u32 {
        self.tokens.get(self.at.min(self.tokens.len().saturating_sub(1))).map_or(0, |t| t.1)
    }

    fn fail<T>(&self, message: impl std::fmt::Display) -> Result<T, String> {
        Err(format!("line {}: {message}", self.line()))
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|t| &t.0)
    }

    fn next(&mut self) -> Result<Token, String> {
        let token = self.tokens.get(self.at).map(|t| t.0.clone());
        self.at += 1;
        token.ok_or_else(|| "unexpected end of file".to_string())
    }

    fn word(&mut self) -> Result<String, String> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            other => {
                self.at -= 1;
                self.fail(format!("expected a word, found {other:?}"))
            }
        }
    }

    fn int(&mut self) -> Result<u64, String> {
        let negative = self.accept('-');
        match self.next()? {
            Token::Int(n) => Ok(if negative { n.wrapping_neg() } else { n }),
            other => {
                self.at -= 1;
                self.fail(format!("expected a number, found {other:?}"))
            }
        }
    }

    fn is(&self, sign: char) -> bool {
        self.peek() == Some(&Token::Sign(sign))
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(w)) if w == word)
    }

    fn accept(&mut self, sign: char) -> bool {
        let found = self.is(sign);
        self.at += found as usize;
        found
    }

    fn expect(&mut self, sign: char) -> Result<(), String> {
        if self.accept(sign) {
            Ok(())
        } else {
            self.fail(format!("expected `{sign}`, found {:?}", self.peek()))
        }
    }

    fn skip_past(&mut self, sign: char) -> Result<(), String> {
        while self.next()? != Token::Sign(sign) {}
        Ok(())
    }

    fn top_level(&mut self, source: &mut Source) -> Result<(), String> {
        let word = self.word()?;
        match word.as_str() {
            ".version" => source.version = self.version()?,
            ".target" => {
                source.target = self.word()?;
                while self.accept(',') {
                    self.word()?;
                }
            }
            ".address_size" => {
                if self.int()? != 64 {
                    return self.fail("only 64-bit addresses are supported");
                }
            }
            ".visible" | ".weak" | ".extern" | ".common" => {
                if self.is_word(".func") || self.is_word(".entry") {
                    return self.top_level(source);
                }
                let mut variable = self.variable(None)?;
                variable.dynamic |= word == ".extern" && variable.size == 0;
                source.variables.push(variable);
            }
            ".entry" | ".func" => {
                if let Some(function) = self.function(word == ".entry")? {
                    source.functions.push(function);
                }
            }
            ".file" | ".section" => {
                let line = self.line();
                while self.peek().is_some() && self.line() == line {
                    self.at += 1;
                }
            }
            ".pragma" => self.skip_past(';')?,
            _ => {
                let variable = self.variable(Some(word))?;
                source.variables.push(variable);
            }
        }
        Ok(())
    }

    /// `8.4` is one number token away from being two; the lexer splits it at the dot.
    fn version(&mut self) -> Result<(u32, u32), String> {
        let major = self.int()? as u32;
        let minor = self.word()?;
        match minor.strip_prefix('.').and_then(|m| m.parse().ok()) {
            Some(minor) => Ok((major, minor)),
            None => self.fail(format!("bad version {major}{minor}")),
        }
    }

    /// `.shared .align 4 .b8 name[16] = {…}`, up to and with the semicolon or before `,` / `)`.
    fn variable(&mut self, first: Option<String>) -> Result<Variable, String> {
        let mut v = Variable {
            name: String::new(),
            space: Space::Generic,
            align: 0,
            size: 0,
            dynamic: false,
            init: Vec::new(),
            line: self.line(),
        };
        let (mut word, mut bits, mut lanes) = (first, 0, 1);
        loop {
            let w = match word.take() {
                Some(w) => w,
                None => self.word()?,
            };
            match w.as_str() {
                ".global" => v.space = Space::Global,
                ".shared" | ".shared::cta" => v.space = Space::Shared,
                ".local" => v.space = Space::Local,
                ".const" => v.space = Space::Const,
                ".param" => v.space = Space::Param,
                ".align" => v.align = self.int()?,
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                ".ptr" | ".noalias" | ".space" => {}
                _ if w.starts_with('.') => match type_bits(&w[1..]) {
                    Some(b) => bits = b as u64,
                    None => return self.fail(format!("unknown directive `{w}`")),
                },
                _ => {
                    v.name = w;
                    break;
                }
            }
        }
        let element = bits / 8 * lanes;
        v.align = if v.align == 0 { element } else { v.align };
        v.size = element * self.extents()?;
        v.dynamic = v.size == 0;
        if self.accept('=') {
            self.initializer(&mut v, (bits / 8) as usize)?;
        }
        self.accept(';');
        Ok(v)
    }

    /// Product of `[n]…`; 0 for `[]`, 1 if there is none.
    fn extents(&mut self) -> Result<u64, String> {
        let mut product = 1;
        while self.accept('[') {
            product *= if self.is(']') { 0 } else { self.int()? };
            self.expect(']')?;
        }
        Ok(product)
    }

    fn initializer(&mut self, v: &mut Variable, element: usize) -> Result<(), String> {
        let mut depth = 0;
        loop {
            match self.next()? {
                Token::Sign('{') => depth += 1,
                Token::Sign('}') => depth -= 1,
                Token::Sign(',') => {}
                Token::Sign('-') => {
                    let n = self.int()?.wrapping_neg();
                    v.init.extend_from_slice(&n.to_le_bytes()[..element]);
                }
                Token::Int(n) => v.init.extend_from_slice(&n.to_le_bytes()[..element]),
                Token::F32(n) => v.init.extend_from_slice(&n.to_le_bytes()),
                Token::F64(n) => v.init.extend_from_slice(&n.to_le_bytes()),
                other => return self.fail(format!("initializer with {other:?}")),
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// `None` for a declaration without a body.
    fn function(&mut self, entry: bool) -> Result<Option<Function>, String> {
        let mut body = Body::default();
        body.function.entry = entry;
        if self.is('(') {
            body.function.returns = self.parameters()?;
        }
        body.function.name = self.word()?;
        if self.is('(') {
            body.function.params = self.parameters()?;
        }
        loop {
            match self.next()? {
                Token::Sign('{') => break,
                Token::Sign(';') => return Ok(None),
                Token::Word(w) => match w.as_str() {
                    ".maxntid" => body.function.max_threads = Some(self.three()?),
                    ".reqntid" => body.function.required_threads = Some(self.three()?),
                    ".reqnctapercluster" => body.function.cluster = Some(self.three()?),
                    ".minnctapersm" | ".maxnreg" => drop(self.int()?),
                    ".explicitcluster" | ".noreturn" => {}
                    _ => return self.fail(format!("unknown directive `{w}`")),
                },
                other => return self.fail(format!("expected a body, found {other:?}")),
            }
        }
        body.open();
        while !body.blocks.is_empty() {
            self.statement(&mut body)?;
        }
        body.resolve_labels()?;
        Ok(Some(body.function))
    }

    fn three(&mut self) -> Result<[u32; 3], String> {
        let mut n = [self.int()? as u32, 1, 1];
        for axis in 1..3 {
            if self.accept(',') {
                n[axis] = self.int()? as u32;
            }
        }
        Ok(n)
    }

    fn parameters(&mut self) -> Result<Vec<Variable>, String> {
        self.expect('(')?;
        let mut list = Vec::new();
        while !self.accept(')') {
            list.push(self.variable(None)?);
            self.accept(',');
        }
        Ok(list)
    }

    fn statement(&mut self, body: &mut Body) -> Result<(), String> {
        if self.accept('{') {
            body.open();
            return Ok(());
        }
        if self.accept('}') {
            body.blocks.pop();
            return Ok(());
        }
        if self.accept(';') {
            return Ok(());
        }
        let line = self.line();
        let guard = if self.accept('@') {
            let negated = self.accept('!');
            let name = self.word()?;
            Some((self.register(body, &name)?, negated))
        } else {
            None
        };
        let word = self.word()?;
        if self.accept(':') {
            let id = body.blocks[body.blocks.len() - 1].id;
            body.labels.insert((id, word.clone()));
            let name = format!("{word}#{id}");
            body.function.body.push(Statement::Label { name });
            return Ok(());
        }
        match word.as_str() {
            ".reg" => self.registers(body),
            ".pragma" | ".loc" => self.skip_past(';'),
            ".shared" | ".local" | ".param" | ".const" | ".global" => {
                self.local_variable(body, word)
            }
            _ if word.starts_with('.') => self.fail(format!("unknown directive `{word}`")),
            _ => {
                let opcode: Vec<String> = word.split('.').map(str::to_string).collect();
                if opcode[0] == "bra" {
                    let path = body.blocks.iter().map(|block| block.id).collect();
                    body.branches.push((body.function.body.len(), path));
                }
                let operands = self.operands(body)?;
                let instruction = Instruction { line, guard, opcode, operands };
                body.function.body.push(Statement::Instruction(instruction));
                Ok(())
            }
        }
    }

    fn local_variable(&mut self, body: &mut Body, word: String) -> Result<(), String> {
        let mut v = self.variable(Some(word))?;
        let block = body.blocks.last_mut().ok_or("variable outside a function")?;
        let unique = format!("{}#{}", v.name, block.id);
        block.names.insert(std::mem::replace(&mut v.name, unique.clone()), unique);
        body.function.variables.push(v);
        Ok(())
    }

    /// `.reg .b32 %r<40>;` or `.reg .pred p, q;`
    fn registers(&mut self, body: &mut Body) -> Result<(), String> {
        let ty = self.word()?;
        let Some(bits) = type_bits(&ty[1..]) else {
            return self.fail(format!("unsupported register type `{ty}`"));
        };
        let class = match bits {
            1 => Class::Predicate,
            64 => Class::Wide,
            _ => Class::Narrow,
        };
        loop {
            let name = self.word()?;
            let count = if self.accept('<') {
                let n = self.int()? as u32;
                self.expect('>')?;
                Some(n)
            } else {
                None
            };
            let first = body.function.registers[class as usize];
            body.function.registers[class as usize] += count.unwrap_or(1);
            let block = body.blocks.last_mut().ok_or("registers outside a function")?;
            match count {
                Some(n) => block.families.push((name, class, first, n, bits)),
                None => drop(block.registers.insert(name, Reg { class, index: first, bits })),
            }
            if !self.accept(',') {
                break;
            }
        }
        self.expect(';')
    }

    fn register(&self, body: &Body, name: &str) -> Result<Reg, String> {
        match body.find(name) {
            Some(reg) => Ok(reg),
            None => self.fail(format!("unknown register `{name}`")),
        }
    }

    fn operands(&mut self, body: &Body) -> Result<Vec<Operand>, String> {
        let mut list = Vec::new();
        while !self.accept(';') {
            list.push(self.operand(body)?);
            if !self.accept(',') {
                self.expect(';')?;
                break;
            }
        }
        Ok(list)
    }

    fn operand(&mut self, body: &Body) -> Result<Operand, String> {
        match self.next()? {
            Token::Int(n) => Ok(Operand::Int(n)),
            Token::F32(bits) => Ok(Operand::F32(bits)),
            Token::F64(bits) => Ok(Operand::F64(bits)),
            Token::Sign('-') => Ok(Operand::Int(self.int()?.wrapping_neg())),
            Token::Sign('!') => {
                let name = self.word()?;
                Ok(Operand::Not(self.register(body, &name)?))
            }
            Token::Sign('{') => Ok(Operand::Vector(self.list(body, '}')?)),
            Token::Sign('(') => Ok(Operand::List(self.list(body, ')')?)),
            Token::Sign('[') => self.address(body),
            Token::Word(word) => self.named(body, word),
            other => self.fail(format!("unexpected operand {other:?}")),
        }
    }

    fn list(&mut self, body: &Body, close: char) -> Result<Vec<Operand>, String> {
        let mut list = Vec::new();
        while !self.accept(close) {
            list.push(self.operand(body)?);
            self.accept(',');
        }
        Ok(list)
    }

    fn named(&mut self, body: &Body, word: String) -> Result<Operand, String> {
        let first = body.find(&word);
        if self.is('|') && (first.is_some() || word == "_") {
            self.at += 1;
            let other = self.word()?;
            let second = if other == "_" { None } else { Some(self.register(body, &other)?) };
            return Ok(Operand::Pair(first, second));
        }
        if let Some(reg) = first {
            return Ok(Operand::Reg(reg));
        }
        if let Some(name) = body.variable_name(&word) {
            return self.symbol_offset(name);
        }
        if word.starts_with('%') {
            return Ok(Operand::Special(word));
        }
        self.symbol_offset(word)
    }

    /// `mov.u64 %rd1, name+16`.
    fn symbol_offset(&mut self, name: String) -> Result<Operand, String> {
        if self.is('+') || self.is('-') {
            let offset = self.offset()?;
            return Ok(Operand::Address(Base::Symbol(name), offset));
        }
        Ok(Operand::Symbol(name))
    }

    fn offset(&mut self) -> Result<i64, String> {
        if self.accept('+') {
            return Ok(self.int()? as i64);
        }
        if self.is('-') {
            return Ok(self.int()? as i64);
        }
        Ok(0)
    }

    fn address(&mut self, body: &Body) -> Result<Operand, String> {
        let base = match self.next()? {
            Token::Int(n) => {
                self.expect(']')?;
                return Ok(Operand::Address(Base::Absolute, n as i64));
            }
            Token::Word(word) => match body.find(&word) {
                Some(reg) => Base::Reg(reg),
                None => Base::Symbol(body.variable_name(&word).unwrap_or(word)),
            },
            other => return self.fail(format!("unexpected address {other:?}")),
        };
        let offset = self.offset()?;
        if self.accept(',') {
            self.expect('{')?;
            let coordinates = self.list(body, '}')?;
            self.expect(']')?;
            return Ok(Operand::Tensor(Box::new(Operand::Address(base, offset)), coordinates));
        }
        self.expect(']')?;
        Ok(Operand::Address(base, offset))
    }
}

impl Body {
    fn open(&mut self) {
        self.blocks.push(Block { id: self.opened, ..Block::default() });
        self.opened += 1;
    }

    fn find(&self, name: &str) -> Option<Reg> {
        self.blocks.iter().rev().find_map(|block| {
            block.registers.get(name).copied().or_else(|| {
                block.families.iter().find_map(|(prefix, class, first, count, bits)| {
                    let n: u32 = name.strip_prefix(prefix.as_str())?.parse().ok()?;
                    (n < *count).then_some(Reg { class: *class, index: first + n, bits: *bits })
                })
            })
        })
    }

    fn variable_name(&self, name: &str) -> Option<String> {
        self.blocks.iter().rev().find_map(|block| block.names.get(name).cloned())
    }

    /// A branch means the label of the innermost block around it that has one of that name.
    fn resolve_labels(&mut self) -> Result<(), String> {
        for (at, path) in &self.branches {
            let Statement::Instruction(branch) = &mut self.function.body[*at] else { continue };
            for operand in &mut branch.operands {
                let Operand::Symbol(name) = operand else { continue };
                let id = path.iter().rev().find(|id| self.labels.contains(&(**id, name.clone())));
                let Some(id) = id else {
                    return Err(format!("line {}: unknown label `{name}`", branch.line));
                };
                *operand = Operand::Label(format!("{name}#{id}"));
            }
        }
        Ok(())
    }
}
