//! What operators of templates are called, how tightly they bind, and which operands cost nothing.

use minijinja::machinery::ast::{BinOpKind, CompareOpKind, Expr, UnaryOpKind};

/// Constants that compare with anything in no time, in bytes.
const SMALL: usize = 256;

/// How tightly an expression binds: a looser one inside a tighter one needs parentheses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Condition,
    Or,
    And,
    Not,
    Compare,
    Sum,
    Product,
    Filtered,
    Primary,
}

pub(super) fn level(expr: &Expr<'_>) -> Level {
    match expr {
        Expr::IfExpr(_) => Level::Condition,
        Expr::UnaryOp(unary) => match unary.op {
            UnaryOpKind::Not => Level::Not,
            UnaryOpKind::Neg => Level::Product,
        },
        Expr::BinOp(op) => operator(op.op).1,
        Expr::Compare(_) => Level::Compare,
        Expr::Filter(_) => Level::Filtered,
        Expr::Const(constant) if constant.value.as_str().is_none() => Level::Filtered,
        _ => Level::Primary,
    }
}

/// An operator's spelling and level.
pub(super) fn operator(kind: BinOpKind) -> (&'static str, Level) {
    match kind {
        BinOpKind::ScOr => ("or", Level::Or),
        BinOpKind::ScAnd => ("and", Level::And),
        BinOpKind::Eq => ("==", Level::Compare),
        BinOpKind::Ne => ("!=", Level::Compare),
        BinOpKind::Lt => ("<", Level::Compare),
        BinOpKind::Lte => ("<=", Level::Compare),
        BinOpKind::Gt => (">", Level::Compare),
        BinOpKind::Gte => (">=", Level::Compare),
        BinOpKind::In => ("in", Level::Compare),
        BinOpKind::Add => ("+", Level::Sum),
        BinOpKind::Sub => ("-", Level::Sum),
        BinOpKind::Mul => ("*", Level::Product),
        BinOpKind::Div => ("/", Level::Product),
        BinOpKind::FloorDiv => ("//", Level::Product),
        // Its operands are always in parentheses.
        BinOpKind::Pow => ("**", Level::Product),
        // Written as filters.
        BinOpKind::Rem => ("%", Level::Filtered),
        BinOpKind::Concat => ("~", Level::Filtered),
    }
}

pub(super) fn comparison(kind: CompareOpKind) -> &'static str {
    match kind {
        CompareOpKind::Eq => "==",
        CompareOpKind::Ne => "!=",
        CompareOpKind::Lt => "<",
        CompareOpKind::Lte => "<=",
        CompareOpKind::Gt => ">",
        CompareOpKind::Gte => ">=",
        CompareOpKind::In => "in",
        CompareOpKind::NotIn => "not in",
    }
}

/// Whether whatever is compared with `expr` is compared in no time.
pub(super) fn is_small(expr: &Expr<'_>) -> bool {
    match expr {
        Expr::Const(constant) => constant.value.as_str().is_none_or(|text| text.len() <= SMALL),
        Expr::List(list) => list.items.iter().all(is_small),
        Expr::Tuple(tuple) => tuple.items.iter().all(is_small),
        Expr::Map(map) => map.keys.iter().chain(&map.values).all(is_small),
        _ => false,
    }
}
