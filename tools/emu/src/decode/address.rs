//! Conversions of addresses between spaces and between the blocks of a cluster.

use super::{Execute, Ops};
use crate::machine::{CONST_WINDOW, LOCAL_WINDOW, SHARED_WINDOW};
use crate::text::ast::Space;

/// `cvta.global.u64`, `cvta.to.shared.u64`, …: between generic addresses and a space's own.
pub(super) fn convert(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let window = match ops.space() {
        Space::Global => 0,
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Const | Space::Param => CONST_WINDOW,
        Space::Generic => return ops.unknown(),
    };
    if ops.ty() != "u64" {
        return ops.unknown();
    }
    if ops.has("to") {
        super::lanes::w_w(ops, move |a| a.wrapping_sub(window))
    } else {
        super::lanes::w_w(ops, move |a| a.wrapping_add(window))
    }
}

/// `mapa`: the address of the same place in another block of the cluster.
pub(super) fn mapa(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    fn place(address: u64, rank: u32) -> u64 {
        (address & 0xff_ffff) | (rank as u64) << 24
    }
    match (ops.ty(), ops.space()) {
        ("u32", Space::Shared) => super::lanes::nn_n(ops, |a, rank| place(a as u64, rank) as u32),
        ("u64", Space::Shared) => super::lanes::wn_w(ops, place),
        ("u64", _) => super::lanes::wn_w(ops, |a, rank| {
            SHARED_WINDOW + place(a.wrapping_sub(SHARED_WINDOW), rank)
        }),
        _ => ops.unknown(),
    }
}
