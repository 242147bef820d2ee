//! Reads the headers that kernels share with their launches (`kernels/<family>/<op>.h`): constants,
//! enums and parameter structs, in the part of C++ that both sides can have.
//!
//! ```text
//! #include "columns.h"
//! static constexpr int THREADS = 256, TILE = 32 * THREADS;
//! enum Reduction : i32 { REDUCTION_SUM, REDUCTION_MEAN };
//! template <class T> struct LerpParams {
//!     const T *a, *b;
//!     Column<const u8> mask;
//!     double weight[4];
//!     Reduction reduction;
//! };
//! ```
//!
//! A comment before an item, or behind a field that has a line of its own, becomes its Rust
//! documentation. Member functions (from `__device__` or `template` on) are the kernels' alone.

use crate::token::{Token, Tokens};
use crate::tree::File;

/// What one header defines.
pub struct Header {
    /// The file's name without extension, the Rust module's name.
    pub name: String,
    /// The comment at its head.
    pub doc: Vec<String>,
    /// Headers that it includes, without extension.
    pub includes: Vec<String>,
    pub items: Vec<Item>,
}

pub enum Item {
    Constant(Constant),
    Enum(Enum),
    Struct(Struct),
}

pub struct Constant {
    pub doc: Vec<String>,
    pub name: String,
    pub value: i64,
}

/// An enum of 32 or 64 bits.
pub struct Enum {
    pub doc: Vec<String>,
    pub name: String,
    pub bits: i64,
    pub values: Vec<(String, i64)>,
}

pub struct Struct {
    pub doc: Vec<String>,
    pub name: String,
    /// Type parameters.
    pub generics: Vec<String>,
    pub fields: Vec<Field>,
}

pub struct Field {
    pub doc: Vec<String>,
    pub name: String,
    pub ty: Type,
    /// How many there are side by side, if it is an array.
    pub count: Option<i64>,
}

/// A C++ type: a name with arguments, perhaps `const`, perhaps behind a pointer.
#[derive(Clone)]
pub struct Type {
    pub name: String,
    pub arguments: Vec<Type>,
    pub constant: bool,
    pub pointer: bool,
}

impl Header {
    /// Parses a header; `known` are those before it, for the constants that it may use.
    pub fn parse(file: &File, known: &[Header]) -> Result<Header, String> {
        let name = file.name.trim_end_matches(".h").to_string();
        let mut reader = Reader {
            tokens: Tokens::of(&file.text).map_err(|e| format!("{}: {e}", file.place))?,
            header: Header { name, doc: Vec::new(), includes: Vec::new(), items: Vec::new() },
            known,
            enumerators: Vec::new(),
        };
        match reader.header() {
            Ok(()) => Ok(reader.header),
            Err(reason) => Err(format!("{}:{}: {reason}", file.place, reader.tokens.line())),
        }
    }

    pub fn constants(&self) -> impl Iterator<Item = &Constant> {
        self.items.iter().filter_map(|i| if let Item::Constant(c) = i { Some(c) } else { None })
    }

    pub fn enums(&self) -> impl Iterator<Item = &Enum> {
        self.items.iter().filter_map(|i| if let Item::Enum(e) = i { Some(e) } else { None })
    }

    pub fn structs(&self) -> impl Iterator<Item = &Struct> {
        self.items.iter().filter_map(|i| if let Item::Struct(s) = i { Some(s) } else { None })
    }
}

struct Reader<'a> {
    tokens: Tokens,
    header: Header,
    known: &'a [Header],
    enumerators: Vec<Constant>,
}

type Read<T> = Result<T, String>;

impl Reader<'_> {
    fn header(&mut self) -> Read<()> {
        self.header.doc = self.tokens.comment_above();
        while let Some(token) = self.tokens.peek() {
            match token {
                Token::Pragma => self.tokens.pass(),
                Token::Include(name) => {
                    self.tokens.pass();
                    self.header.includes.push(name.trim_end_matches(".h").to_string());
                }
                Token::Word(word) => match word.as_str() {
                    "static" => self.constants()?,
                    "enum" => self.enumeration()?,
                    "template" | "struct" => self.structure()?,
                    // Names of scalars, which the model knows by heart.
                    "typedef" => self.tokens.skip_statement(),
                    other => return Err(unexpected(other)),
                },
                Token::Number(text) => return Err(unexpected(&text)),
                Token::Sign(sign) => return Err(unexpected(&sign.to_string())),
            }
        }
        Ok(())
    }

    /// `static constexpr int A = 1, B = 2 * A;`
    fn constants(&mut self) -> Read<()> {
        let doc = self.tokens.comment_above();
        self.tokens.word("static")?;
        self.tokens.word("constexpr")?;
        let ty = self.tokens.name()?;
        if !["int", "i64", "i32", "u32", "u64"].contains(&ty.as_str()) {
            return Err(format!("a constant of type `{ty}`, expected an integer"));
        }
        loop {
            let name = self.tokens.name()?;
            self.tokens.sign('=')?;
            let value = self.sum()?;
            self.header.items.push(Item::Constant(Constant { doc: doc.clone(), name, value }));
            if !self.tokens.skip(',') {
                return self.tokens.sign(';');
            }
        }
    }

    fn sum(&mut self) -> Read<i64> {
        let mut value = self.product()?;
        loop {
            if self.tokens.skip('+') {
                value += self.product()?;
            } else if self.tokens.skip('-') {
                value -= self.product()?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Read<i64> {
        let mut value = self.factor()?;
        loop {
            if self.tokens.skip('*') {
                value *= self.factor()?;
            } else if self.tokens.skip('/') {
                let by = self.factor()?;
                value = value.checked_div(by).ok_or("a division by zero")?;
            } else {
                return Ok(value);
            }
        }
    }

    fn factor(&mut self) -> Read<i64> {
        if self.tokens.skip('-') {
            return Ok(-self.factor()?);
        }
        if self.tokens.skip('(') {
            let value = self.sum()?;
            self.tokens.sign(')')?;
            return Ok(value);
        }
        match self.tokens.next() {
            Some(Token::Number(text)) => {
                let digits = text.trim_end_matches(['l', 'u', 'L', 'U']);
                let parsed = match digits.strip_prefix("0x") {
                    Some(hex) => i64::from_str_radix(hex, 16),
                    None => digits.parse(),
                };
                parsed.map_err(|_| format!("`{text}` is no integer"))
            }
            Some(Token::Word(name)) => self.constant(&name),
            other => Err(format!("{other:?}, expected a number or a constant")),
        }
    }

    fn constant(&self, name: &str) -> Read<i64> {
        let mut included: Vec<&Header> = Vec::new();
        let mut names: Vec<&String> = self.header.includes.iter().collect();
        while let Some(next) = names.pop() {
            let found = self.known.iter().find(|h| h.name == *next);
            let header = found.ok_or(format!("`{next}.h` is no shared header"))?;
            included.push(header);
            names.extend(&header.includes);
        }
        let own = self.enumerators.iter().chain(self.header.constants());
        let mut all = own.chain(included.into_iter().flat_map(Header::constants));
        let found = all.find(|c| c.name == name);
        found.map(|c| c.value).ok_or(format!("`{name}` is no constant of this header"))
    }

    /// `enum Name : i32 { A, B = 4, C };`
    fn enumeration(&mut self) -> Read<()> {
        let doc = self.tokens.comment_above();
        self.tokens.word("enum")?;
        let name = self.tokens.name()?;
        self.tokens.sign(':')?;
        let bits = match self.tokens.name()?.as_str() {
            "i32" => 32,
            "i64" => 64,
            other => return Err(format!("an enum of `{other}`, expected i32 or i64")),
        };
        self.tokens.sign('{')?;
        let (mut values, mut next) = (Vec::new(), 0);
        while !self.tokens.skip('}') {
            let value = self.tokens.name()?;
            if self.tokens.skip('=') {
                next = self.sum()?;
            }
            // Later values may name it.
            let constant = Constant { doc: Vec::new(), name: value.clone(), value: next };
            self.enumerators.push(constant);
            values.push((value, next));
            next += 1;
            if !self.tokens.skip(',') {
                self.tokens.sign('}')?;
                break;
            }
        }
        self.tokens.sign(';')?;
        self.header.items.push(Item::Enum(Enum { doc, name, bits, values }));
        Ok(())
    }

    fn structure(&mut self) -> Read<()> {
        let doc = self.tokens.comment_above();
        let mut generics = Vec::new();
        if self.tokens.skip_word("template") {
            self.tokens.sign('<')?;
            loop {
                self.tokens.word("class")?;
                generics.push(self.tokens.name()?);
                if !self.tokens.skip(',') {
                    break;
                }
            }
            self.tokens.sign('>')?;
        }
        self.tokens.word("struct")?;
        let name = self.tokens.name()?;
        self.tokens.sign('{')?;
        let mut fields = Vec::new();
        while !self.tokens.skip('}') {
            if self.tokens.at_word("__device__") || self.tokens.at_word("template") {
                self.tokens.skip_function()?;
            } else {
                self.fields(&mut fields)?;
            }
        }
        self.tokens.sign(';')?;
        self.header.items.push(Item::Struct(Struct { doc, name, generics, fields }));
        Ok(())
    }

    /// `const T *a, *b;`, `double x[4];`
    fn fields(&mut self, fields: &mut Vec<Field>) -> Read<()> {
        let above = self.tokens.comment_above();
        let base = self.ty()?;
        let first = fields.len();
        loop {
            let pointer = self.tokens.skip('*');
            let ty = Type { pointer, ..base.clone() };
            let name = self.tokens.name()?;
            let mut count = None;
            if self.tokens.skip('[') {
                count = Some(self.sum()?);
                self.tokens.sign(']')?;
            }
            if base.constant && !pointer {
                return Err(format!("`{name}` is a constant, expected a field"));
            }
            fields.push(Field { doc: above.clone(), name, ty, count });
            if !self.tokens.skip(',') {
                break;
            }
        }
        self.tokens.sign(';')?;
        let behind = self.tokens.comment_behind();
        if let [field] = &mut fields[first..]
            && !behind.is_empty()
        {
            field.doc = behind;
        }
        Ok(())
    }

    /// A type without the `*`, which belongs to each name.
    fn ty(&mut self) -> Read<Type> {
        let constant = self.tokens.skip_word("const");
        let name = self.tokens.name()?;
        let mut arguments = Vec::new();
        if self.tokens.skip('<') {
            loop {
                arguments.push(self.ty()?);
                if !self.tokens.skip(',') {
                    break;
                }
            }
            self.tokens.sign('>')?;
        }
        Ok(Type { name, arguments, constant, pointer: false })
    }
}

fn unexpected(text: &str) -> String {
    format!("`{text}`, expected a constant, an enum, a struct or an include")
}
