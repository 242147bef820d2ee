//! A template's source, written again with its work made countable.
//!
//! The engine counts instructions, and bytes that are made. What it does not count is how much one
//! instruction looks at: comparing, hashing or printing a list whose items are that list's
//! predecessor twice, thirty times over, visits a billion values. Nor does it print as Python does.
//! So the source is parsed, and written again with filters around what operators work on:
//!
//! | in the template | written |
//! |---|---|
//! | `a == b`, `a < b`, `a in b`, `a[b]`, `{a: …}` | operands through `__count`, which charges for all that is in them |
//! | `a + b`, `a[b]`, `for x in a` | `a` through `__flat`, which charges for texts and copies chains of lists |
//! | `a ~ b ~ c` | `a|__concat(b, c)` |
//! | `a % b` | `a|__percent(b)` |
//!
//! Filters of the environment cannot be replaced by a template's variables. Lines stay where they
//! are, so that errors name them.

use std::fmt::Write;

use minijinja::machinery::ast::{
    BinOpKind, Call, CallArg, Expr, Filter, ForLoop, Macro, Spanned, Stmt, UnaryOpKind,
};
use minijinja::machinery::{Span, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind, Value};

use super::operators::{Level, comparison, is_small, level, operator};
use super::python;

/// Most expressions or statements in one another. Deeper ones are folded again on every level.
const DEPTH_LIMIT: usize = 400;

/// `source`, written again; `name` is for messages.
pub(super) fn rewritten(source: &str, name: &str) -> Result<String, Error> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    let tree = parse(source, name, syntax)?;
    let mut writer = Writer { out: String::new(), line: 1, depth: 0 };
    writer.statement(&tree)?;
    Ok(writer.out)
}

struct Writer {
    out: String,
    /// The line that `out` is on.
    line: usize,
    depth: usize,
}

type Written = Result<(), Error>;

impl Writer {
    fn push(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// Goes down to the line where a node began.
    fn align(&mut self, span: Span) {
        let line = span.start_line as usize;
        while self.line < line {
            self.out.push('\n');
            self.line += 1;
        }
    }

    fn deeper(&mut self, write: impl FnOnce(&mut Writer) -> Written) -> Written {
        self.depth += 1;
        if self.depth > DEPTH_LIMIT {
            let reason = format!("nested deeper than {DEPTH_LIMIT} expressions and statements");
            return Err(Error::new(ErrorKind::SyntaxError, reason));
        }
        write(self)?;
        self.depth -= 1;
        Ok(())
    }

    fn statements(&mut self, all: &[Stmt<'_>]) -> Written {
        all.iter().try_for_each(|one| self.deeper(|w| w.statement(one)))
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> Written {
        match statement {
            Stmt::Template(template) => self.statements(&template.children),
            Stmt::EmitExpr(emit) => {
                self.push("{{ ");
                self.align(emit.span());
                self.expression(&emit.expr)?;
                self.push(" }}");
                Ok(())
            }
            Stmt::EmitRaw(raw) => {
                self.raw(raw.raw);
                Ok(())
            }
            Stmt::ForLoop(each) => self.for_loop(each),
            Stmt::IfCond(_) => self.condition(statement, "if"),
            Stmt::WithBlock(with) => {
                self.tag("with", with.span());
                for (i, (target, value)) in with.assignments.iter().enumerate() {
                    self.push(if i > 0 { ", " } else { "" });
                    self.assignment(target, value)?;
                }
                self.push(" %}");
                self.statements(&with.body)?;
                self.push("{% endwith %}");
                Ok(())
            }
            Stmt::Set(set) => {
                self.tag("set", set.span());
                self.assignment(&set.target, &set.expr)?;
                self.push(" %}");
                Ok(())
            }
            Stmt::SetBlock(set) => {
                self.tag("set", set.span());
                self.target(&set.target)?;
                if let Some(filter) = &set.filter {
                    self.push(" | ");
                    self.expression(filter)?;
                }
                self.push(" %}");
                self.statements(&set.body)?;
                self.push("{% endset %}");
                Ok(())
            }
            other => self.block(other),
        }
    }

    fn for_loop(&mut self, each: &Spanned<ForLoop<'_>>) -> Written {
        self.tag("for", each.span());
        self.target(&each.target)?;
        self.push(" in ");
        self.flat(&each.iter, Level::Or)?;
        if let Some(filter) = &each.filter_expr {
            self.push(" if ");
            self.operand(filter, Level::Or)?;
        }
        self.push(if each.recursive { " recursive %}" } else { " %}" });
        self.statements(&each.body)?;
        if !each.else_body.is_empty() {
            self.push("{% else %}");
            self.statements(&each.else_body)?;
        }
        self.push("{% endfor %}");
        Ok(())
    }

    fn block(&mut self, statement: &Stmt<'_>) -> Written {
        match statement {
            Stmt::FilterBlock(filter) => {
                self.tag("filter", filter.span());
                self.expression(&filter.filter)?;
                self.push(" %}");
                self.statements(&filter.body)?;
                self.push("{% endfilter %}");
            }
            Stmt::Macro(one) => {
                self.tag("macro", one.span());
                self.push(one.name);
                self.parameters(one)?;
                self.push(" %}");
                self.statements(&one.body)?;
                self.push("{% endmacro %}");
            }
            Stmt::CallBlock(block) => {
                self.tag("call", block.span());
                if !block.macro_decl.args.is_empty() {
                    self.parameters(&block.macro_decl)?;
                    self.push(" ");
                }
                self.call(&block.call)?;
                self.push(" %}");
                self.statements(&block.macro_decl.body)?;
                self.push("{% endcall %}");
            }
            Stmt::Continue(one) => {
                self.tag("continue", one.span());
                self.push("%}");
            }
            Stmt::Break(one) => {
                self.tag("break", one.span());
                self.push("%}");
            }
            Stmt::Do(one) => {
                self.tag("do", one.span());
                self.call(&one.call)?;
                self.push(" %}");
            }
            _ => {
                let reason = "a statement that chat templates have no use for";
                return Err(Error::new(ErrorKind::SyntaxError, reason));
            }
        }
        Ok(())
    }

    fn tag(&mut self, name: &str, span: Span) {
        self.push("{% ");
        self.align(span);
        self.push(name);
        self.push(" ");
    }

    /// Text as it is; as a constant where the reader would take it for a tag.
    fn raw(&mut self, text: &str) {
        if text.contains('{') {
            self.push("{{ ");
            self.string(text);
            self.push(" }}");
        } else {
            self.push(text);
            self.line += text.matches('\n').count();
        }
    }

    fn condition(&mut self, statement: &Stmt<'_>, word: &str) -> Written {
        let Stmt::IfCond(condition) = statement else { return Ok(()) };
        self.tag(word, condition.span());
        self.expression(&condition.expr)?;
        self.push(" %}");
        self.statements(&condition.true_body)?;
        match condition.false_body.as_slice() {
            [] => {}
            [other @ Stmt::IfCond(_)] => {
                return self.deeper(|w| w.condition(other, "elif"));
            }
            other => {
                self.push("{% else %}");
                self.statements(other)?;
            }
        }
        self.push("{% endif %}");
        Ok(())
    }

    fn assignment(&mut self, target: &Expr<'_>, value: &Expr<'_>) -> Written {
        self.target(target)?;
        self.push(" = ");
        self.expression(value)
    }

    /// Names that are assigned to.
    fn target(&mut self, target: &Expr<'_>) -> Written {
        let items = match target {
            Expr::List(list) => &list.items,
            Expr::Tuple(tuple) => &tuple.items,
            other => return self.expression(other),
        };
        self.push("(");
        for item in items {
            self.deeper(|w| w.target(item))?;
            self.push(", ");
        }
        self.push(")");
        Ok(())
    }

    fn parameters(&mut self, one: &Macro<'_>) -> Written {
        self.push("(");
        let plain = one.args.len() - one.defaults.len();
        for (i, arg) in one.args.iter().enumerate() {
            self.push(if i > 0 { ", " } else { "" });
            self.target(arg)?;
            if let Some(value) = i.checked_sub(plain).and_then(|i| one.defaults.get(i)) {
                self.push("=");
                self.expression(value)?;
            }
        }
        self.push(")");
        Ok(())
    }

    /// An expression that binds at least as tightly as `least`, if need be by parentheses.
    fn operand(&mut self, expr: &Expr<'_>, least: Level) -> Written {
        if level(expr) >= least {
            return self.expression(expr);
        }
        self.push("(");
        self.expression(expr)?;
        self.push(")");
        Ok(())
    }

    /// What a filter is put behind.
    fn filtered(&mut self, expr: &Expr<'_>) -> Written {
        self.operand(expr, Level::Filtered)
    }

    /// An operand whose parts are charged for.
    fn counted(&mut self, expr: &Expr<'_>) -> Written {
        if matches!(expr, Expr::Const(_)) {
            return self.operand(expr, Level::Sum);
        }
        self.filtered(expr)?;
        self.push("|__count");
        Ok(())
    }

    /// An operand that is looked through from its start: a text or a chain of lists.
    fn flat(&mut self, expr: &Expr<'_>, least: Level) -> Written {
        let whole = match expr {
            Expr::BinOp(op) => matches!(op.op, BinOpKind::Add),
            other => matches!(other, Expr::Const(_) | Expr::List(_) | Expr::Map(_)),
        };
        // The sum of a chain is flat once more when it is added to.
        if whole && least > Level::Condition {
            return self.operand(expr, least);
        }
        self.filtered(expr)?;
        self.push("|__flat");
        Ok(())
    }

    fn expression(&mut self, expr: &Expr<'_>) -> Written {
        self.deeper(|w| {
            w.align(expr.span());
            w.inner(expr)
        })
    }

    fn inner(&mut self, expr: &Expr<'_>) -> Written {
        match expr {
            Expr::Var(var) => self.push(var.id),
            Expr::Const(constant) => self.constant(&constant.value)?,
            Expr::UnaryOp(unary) => match unary.op {
                UnaryOpKind::Not => {
                    self.push("not ");
                    self.operand(&unary.expr, Level::Not)?;
                }
                UnaryOpKind::Neg => {
                    self.push("-");
                    self.operand(&unary.expr, Level::Primary)?;
                }
            },
            Expr::BinOp(op) => self.binary(op.op, &op.left, &op.right)?,
            Expr::Compare(compare) => {
                self.counted(&compare.expr)?;
                for op in &compare.ops {
                    write!(self.out, " {} ", comparison(op.op))?;
                    self.counted(&op.expr)?;
                }
            }
            Expr::IfExpr(one) => {
                self.operand(&one.true_expr, Level::Or)?;
                self.push(" if ");
                self.operand(&one.test_expr, Level::Or)?;
                if let Some(other) = &one.false_expr {
                    self.push(" else ");
                    self.expression(other)?;
                }
            }
            Expr::Filter(filter) => self.filter(filter)?,
            Expr::Test(test) => {
                self.push("(");
                self.filtered(&test.expr)?;
                self.push(" is ");
                self.push(test.name);
                self.arguments(&test.args, false)?;
                self.push(")");
            }
            other => self.part(other)?,
        }
        Ok(())
    }

    /// Parts of values, calls and literals.
    fn part(&mut self, expr: &Expr<'_>) -> Written {
        match expr {
            Expr::GetAttr(get) => {
                self.operand(&get.expr, Level::Primary)?;
                self.push(".");
                self.push(get.name);
            }
            Expr::GetItem(get) => {
                self.push("(");
                self.flat(&get.expr, Level::Condition)?;
                self.push(")");
                self.push("[");
                self.counted(&get.subscript_expr)?;
                self.push("]");
            }
            Expr::Slice(slice) => {
                self.operand(&slice.expr, Level::Primary)?;
                self.push("[");
                for (i, bound) in [&slice.start, &slice.stop, &slice.step].into_iter().enumerate() {
                    self.push(if i > 0 { ":" } else { "" });
                    bound.as_ref().map_or(Ok(()), |bound| self.operand(bound, Level::Or))?;
                }
                self.push("]");
            }
            Expr::Call(call) => self.call(call)?,
            Expr::List(list) => self.items("[", &list.items, "]")?,
            Expr::Tuple(tuple) => self.items("(", &tuple.items, ")")?,
            Expr::Map(map) => {
                self.push("{");
                for (key, value) in map.keys.iter().zip(&map.values) {
                    self.counted(key)?;
                    self.push(": ");
                    self.expression(value)?;
                    self.push(", ");
                }
                self.push("}");
            }
            other => {
                let reason = format!("a {} that cannot be written again", other.description());
                return Err(Error::new(ErrorKind::SyntaxError, reason));
            }
        }
        Ok(())
    }

    fn items(&mut self, open: &str, items: &[Expr<'_>], close: &str) -> Written {
        self.push(open);
        for item in items {
            self.expression(item)?;
            self.push(", ");
        }
        self.push(close);
        Ok(())
    }

    fn binary(&mut self, kind: BinOpKind, left: &Expr<'_>, right: &Expr<'_>) -> Written {
        let (sign, level) = operator(kind);
        match kind {
            BinOpKind::Concat => return self.concat(left, right),
            BinOpKind::Rem => {
                self.filtered(left)?;
                self.push("|__percent(");
                self.expression(right)?;
                self.push(")");
                return Ok(());
            }
            BinOpKind::Pow => {
                self.operand(left, Level::Primary)?;
                self.push(" ** ");
                return self.operand(right, Level::Primary);
            }
            _ => {}
        }
        let counts = level == Level::Compare && !is_small(left) && !is_small(right);
        let side = |w: &mut Writer, expr: &Expr<'_>, least: Level| match kind {
            BinOpKind::Add => w.flat(expr, least),
            _ if counts => w.counted(expr),
            _ => w.operand(expr, least),
        };
        // Of one level the left one comes first; comparisons do not chain here.
        let right_least = match level {
            Level::Or => Level::And,
            Level::And => Level::Not,
            Level::Compare | Level::Sum => Level::Product,
            _ => Level::Filtered,
        };
        let left_least = if level == Level::Compare { Level::Sum } else { level };
        let right_least = if level == Level::Compare { Level::Sum } else { right_least };
        side(self, left, left_least)?;
        write!(self.out, " {sign} ")?;
        side(self, right, right_least)
    }

    /// A chain of `~`: all of its texts at once.
    fn concat(&mut self, left: &Expr<'_>, right: &Expr<'_>) -> Written {
        let (mut first, mut rest) = (left, vec![right]);
        while let Expr::BinOp(op) = first
            && matches!(op.op, BinOpKind::Concat)
        {
            first = &op.left;
            rest.push(&op.right);
        }
        if rest.len() > DEPTH_LIMIT {
            let reason = format!("a chain of more than {DEPTH_LIMIT} `~`");
            return Err(Error::new(ErrorKind::SyntaxError, reason));
        }
        self.filtered(first)?;
        self.push("|__concat(");
        for (i, one) in rest.into_iter().rev().enumerate() {
            self.push(if i > 0 { ", " } else { "" });
            self.expression(one)?;
        }
        self.push(")");
        Ok(())
    }

    fn filter(&mut self, filter: &Filter<'_>) -> Written {
        if let Some(input) = &filter.expr {
            self.filtered(input)?;
            self.push("|");
        }
        self.push(filter.name);
        self.arguments(&filter.args, false)
    }

    fn call(&mut self, call: &Call<'_>) -> Written {
        self.operand(&call.expr, Level::Primary)?;
        // `loop.changed` compares what it is given.
        let compares = matches!(&call.expr, Expr::GetAttr(get) if get.name == "changed");
        if call.args.is_empty() {
            self.push("()");
            return Ok(());
        }
        self.arguments(&call.args, compares)
    }

    fn arguments(&mut self, args: &[CallArg<'_>], counted: bool) -> Written {
        if args.is_empty() {
            return Ok(());
        }
        self.push("(");
        for (i, arg) in args.iter().enumerate() {
            self.push(if i > 0 { ", " } else { "" });
            let value = match arg {
                CallArg::Pos(value) => value,
                CallArg::Kwarg(name, value) => {
                    self.push(name);
                    self.push("=");
                    value
                }
                CallArg::PosSplat(value) => {
                    self.push("*");
                    value
                }
                CallArg::KwargSplat(value) => {
                    self.push("**");
                    value
                }
            };
            if counted { self.counted(value)? } else { self.expression(value)? }
        }
        self.push(")");
        Ok(())
    }

    fn constant(&mut self, value: &Value) -> Written {
        match value.as_str() {
            Some(text) => self.string(text),
            None if value.is_number() && !value.is_integer() => {
                let x = f64::try_from(value.clone())?;
                // Digits beyond the range of floats are infinite, and there is no word for it.
                let text = if x.is_infinite() { "1e999".into() } else { python::float(x) };
                self.push(&text);
            }
            None => write!(self.out, "{value}")?,
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.push("\"");
        for c in text.chars() {
            match c {
                '"' => self.push("\\\""),
                '\\' => self.push("\\\\"),
                '\n' => self.push("\\n"),
                '\r' => self.push("\\r"),
                c => self.out.push(c),
            }
        }
        self.push("\"");
    }
}
