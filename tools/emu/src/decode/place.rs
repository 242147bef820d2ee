//! Address operands of instructions that reach shared memory and nothing else.

use super::Ops;
use super::memory::{Address, specific};
use super::shared::shared_place;
use crate::machine::Context;
use crate::machine::fault::{Fault, Kind, Step};
use crate::machine::registers::lanes;
use crate::text::ast::{Operand, Space};

/// Rank of a block in its cluster, and an offset in its shared memory.
pub(super) type Place = (usize, usize);

/// An operand that has to be an address in shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedAddress {
    address: Address,
    generic: bool,
    /// Other blocks of the cluster may be named.
    any_block: bool,
}

impl SharedAddress {
    /// Operand `i`; a generic address unless the instruction names the space.
    pub(super) fn new(ops: &Ops<'_, '_, '_, '_>, i: usize) -> Result<SharedAddress, String> {
        let generic = !ops
            .modifiers()
            .iter()
            .any(|m| matches!(*m, "shared" | "shared::cta" | "shared::cluster"));
        let (address, space) = ops.address(i)?;
        let any_block = generic || ops.has("shared::cluster");
        SharedAddress::checked(address, space, generic, any_block)
    }

    /// An operand at hand, of a space that the instruction fixes.
    pub(super) fn of(
        ops: &Ops<'_, '_, '_, '_>,
        operand: &Operand,
    ) -> Result<SharedAddress, String> {
        let (address, space) = ops.address_of(operand)?;
        SharedAddress::checked(address, space, false, true)
    }

    fn checked(
        address: Address,
        space: Option<Space>,
        generic: bool,
        any_block: bool,
    ) -> Result<SharedAddress, String> {
        if space.is_some_and(|space| space != Space::Shared) {
            return Err(format!("a symbol of {space:?} where shared memory belongs"));
        }
        // A symbol is an offset in its own space.
        Ok(SharedAddress { address, generic: generic && space.is_none(), any_block })
    }

    /// The places that the lanes of the mask name.
    pub(super) fn places(&self, c: &Context<'_>, mask: u32) -> Step<[Place; 32]> {
        let addresses = self.address.resolve(c, mask)?;
        let mut places = [(0, 0); 32];
        for lane in lanes(mask) {
            let address = match (self.generic, specific(addresses[lane])) {
                (false, _) => addresses[lane],
                (true, (Space::Shared, address)) => address,
                (true, _) => {
                    let message = format!("address {:#x} is no shared memory", addresses[lane]);
                    return Err(Fault::new(Kind::OutOfBounds, message));
                }
            };
            places[lane] = shared_place(c, address, self.any_block)?;
        }
        Ok(places)
    }
}
