//! Names, sizes and offsets of what the shared headers define, and a source that asks the CUDA
//! compiler whether it agrees.

use std::fmt::Write;

use crate::header::{Enum, Field, Header, Item, Struct, Type};

/// Every header of the tree, those that are included first.
pub struct Model {
    pub headers: Vec<Header>,
}

/// Bytes that a type takes, and what its address is a multiple of.
#[derive(Clone, Copy)]
pub struct Layout {
    pub size: i64,
    pub align: i64,
}

/// What a name means.
pub enum Meaning<'a> {
    /// C++ name, Rust name, bytes.
    Scalar(&'static str, i64),
    /// `Column<T>`: an address and a stride.
    Column,
    Enum(&'a Header, &'a Enum),
    Struct(&'a Header, &'a Struct),
    /// A type parameter.
    Parameter,
}

/// Scalars: C++ name, Rust name, bytes.
const SCALARS: [(&str, &str, i64); 9] = [
    ("float", "f32", 4),
    ("double", "f64", 8),
    ("i8", "i8", 1),
    ("u8", "u8", 1),
    ("u16", "u16", 2),
    ("i32", "i32", 4),
    ("u32", "u32", 4),
    ("i64", "i64", 8),
    ("u64", "u64", 8),
];

impl Model {
    /// The header of this name.
    pub fn header(&self, name: &str) -> Option<&Header> {
        self.headers.iter().find(|h| h.name == name)
    }

    /// The header itself and all that it includes, directly or not.
    fn seen<'a>(&'a self, header: &'a Header) -> Vec<&'a Header> {
        let mut all = vec![header];
        let mut at = 0;
        while at < all.len() {
            let includes = all[at].includes.iter().filter_map(|name| self.header(name));
            let new: Vec<&Header> =
                includes.filter(|h| !all.iter().any(|a| a.name == h.name)).collect();
            all.extend(new);
            at += 1;
        }
        all
    }

    /// What a type's name means in a struct of a header.
    pub fn meaning<'a>(
        &'a self,
        header: &'a Header,
        owner: &Struct,
        name: &str,
    ) -> Result<Meaning<'a>, String> {
        if owner.generics.iter().any(|g| g == name) {
            return Ok(Meaning::Parameter);
        }
        if let Some((_, rust, size)) = SCALARS.iter().find(|(c, _, _)| *c == name) {
            return Ok(Meaning::Scalar(rust, *size));
        }
        if name == "Column" {
            return Ok(Meaning::Column);
        }
        for seen in self.seen(header) {
            for item in &seen.items {
                match item {
                    Item::Enum(e) if e.name == name => return Ok(Meaning::Enum(seen, e)),
                    Item::Struct(s) if s.name == name => return Ok(Meaning::Struct(seen, s)),
                    Item::Enum(_) | Item::Struct(_) | Item::Constant(_) => {}
                }
            }
        }
        Err(format!("{}.h: `{name}` in `{}` is unknown", header.name, owner.name))
    }

    /// A type's layout, where the owner's type parameters have the layouts `given`.
    fn layout(
        &self,
        header: &Header,
        owner: &Struct,
        given: &[Layout],
        ty: &Type,
    ) -> Result<Layout, String> {
        if ty.pointer {
            return Ok(Layout { size: 8, align: 8 });
        }
        Ok(match self.meaning(header, owner, &ty.name)? {
            Meaning::Scalar(_, size) => Layout { size, align: size },
            Meaning::Column => Layout { size: 16, align: 8 },
            Meaning::Enum(_, e) => Layout { size: e.bits / 8, align: e.bits / 8 },
            Meaning::Parameter => {
                let place = owner.generics.iter().position(|g| *g == ty.name);
                let found = place.and_then(|i| given.get(i));
                *found.ok_or(format!("{}.h: `{}` lacks arguments", header.name, owner.name))?
            }
            Meaning::Struct(inner_header, s) => {
                let of = |a: &Type| self.layout(header, owner, given, a);
                let given: Vec<Layout> = ty.arguments.iter().map(of).collect::<Result<_, _>>()?;
                self.fields_with(inner_header, s, &given)?.0
            }
        })
    }

    /// A struct's layout and the offset of each field, with `double` for every type parameter.
    /// Padding is an error: a launch hands all bytes to the device.
    pub fn fields(&self, header: &Header, s: &Struct) -> Result<(Layout, Vec<i64>), String> {
        self.fields_with(header, s, &vec![Layout { size: 8, align: 8 }; s.generics.len()])
    }

    fn fields_with(
        &self,
        header: &Header,
        s: &Struct,
        given: &[Layout],
    ) -> Result<(Layout, Vec<i64>), String> {
        let (mut whole, mut offsets) = (Layout { size: 0, align: 1 }, Vec::new());
        for field in &s.fields {
            let one = self.layout(header, s, given, &field.ty)?;
            if whole.size % one.align != 0 {
                return Err(padding(header, s, &format!("before `{}`", field.name)));
            }
            offsets.push(whole.size);
            whole.size += one.size * field.count.unwrap_or(1);
            whole.align = whole.align.max(one.align);
        }
        if whole.size % whole.align != 0 {
            return Err(padding(header, s, "at the end"));
        }
        Ok((whole, offsets))
    }

    /// Whether every bit pattern of the struct is a value: no enum lies in it.
    pub fn plain(&self, header: &Header, s: &Struct) -> Result<bool, String> {
        for Field { ty, .. } in s.fields.iter().filter(|f| !f.ty.pointer) {
            let plain = match self.meaning(header, s, &ty.name)? {
                Meaning::Enum(..) => false,
                Meaning::Struct(header, inner) => self.plain(header, inner)?,
                Meaning::Scalar(..) | Meaning::Column | Meaning::Parameter => true,
            };
            if !plain {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether values of the type parameter lie in the struct itself, not only behind pointers.
    pub fn holds(&self, header: &Header, s: &Struct, parameter: &str) -> Result<bool, String> {
        for Field { ty, .. } in s.fields.iter().filter(|f| !f.ty.pointer) {
            let held = match self.meaning(header, s, &ty.name)? {
                Meaning::Parameter => ty.name == parameter,
                Meaning::Struct(inner_header, inner) => {
                    let given = inner.generics.iter().zip(&ty.arguments);
                    let mut same = given.filter(|(_, a)| !a.pointer && a.name == parameter);
                    same.try_fold(false, |held, (name, _)| {
                        self.holds(inner_header, inner, name).map(|h| held || h)
                    })?
                }
                Meaning::Scalar(..) | Meaning::Column | Meaning::Enum(..) => false,
            };
            if held {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A source that compiles only if the CUDA compiler has the same values, sizes and offsets.
    pub fn questions(&self, header: &Header) -> Result<String, String> {
        let mut out = format!("#include \"{}.h\"\n", header.name);
        let mut ask = |what: &str, value: i64| {
            let _ = writeln!(out, "static_assert({what} == {value}, \"kernelc reads {value}\");");
        };
        header.constants().for_each(|c| ask(&c.name, c.value));
        header.enums().flat_map(|e| &e.values).for_each(|(name, value)| ask(name, *value));
        for s in header.structs().filter(|s| !BUILT_IN.contains(&s.name.as_str())) {
            let arguments = vec!["double"; s.generics.len()].join(", ");
            let name = match s.generics.is_empty() {
                true => s.name.clone(),
                false => format!("{}<{arguments}>", s.name),
            };
            let (whole, offsets) = self.fields(header, s)?;
            ask(&format!("sizeof({name})"), whole.size);
            for (field, offset) in s.fields.iter().zip(offsets) {
                // What `offsetof` is made of in this compiler.
                ask(&format!("__INTADDR__(&(({name}*)0)->{})", field.name), offset);
            }
        }
        Ok(out)
    }
}

/// Structs of `types.h` that Rust has under the same names.
pub const BUILT_IN: [&str; 3] = ["Column", "bf16", "f16"];

fn padding(header: &Header, s: &Struct, place: &str) -> String {
    let (file, name) = (&header.name, &s.name);
    format!("{file}.h: `{name}` has padding {place}, expected a field that fills it")
}
