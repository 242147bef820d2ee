//! Contexts by number. A number names a slot and how often the slot was taken, so that a context that
//! was destroyed, or never was, is an error instead of a use after free.

use std::sync::{Arc, PoisonError, RwLock};

use crate::context::Context;
use crate::memory::add_room;
use crate::status::Failure;

struct Slot {
    generation: u32,
    context: Option<Arc<Context>>,
}

static SLOTS: RwLock<Vec<Slot>> = RwLock::new(Vec::new());

fn handle(index: usize, generation: u32) -> u64 {
    (generation as u64) << 32 | (index as u64 + 1)
}

/// A number for a context.
pub(crate) fn insert(context: Context) -> gradus::Result<u64> {
    let mut slots = SLOTS.write().unwrap_or_else(PoisonError::into_inner);
    // A slot whose count is used up is never taken again.
    let free = slots.iter().position(|s| s.context.is_none() && s.generation < u32::MAX);
    let index = match free {
        Some(index) => index,
        None => {
            add_room("gradus_create", &mut slots, 1)?;
            slots.push(Slot { generation: 0, context: None });
            slots.len() - 1
        }
    };
    let slot = &mut slots[index];
    slot.generation += 1;
    slot.context = Some(Arc::new(context));
    Ok(handle(index, slot.generation))
}

/// The context of a number; it lives on while a call uses it.
pub(crate) fn get(number: u64) -> Result<Arc<Context>, Failure> {
    let slots = SLOTS.read().unwrap_or_else(PoisonError::into_inner);
    let slot = (number as u32 as usize).checked_sub(1).and_then(|index| slots.get(index));
    slot.filter(|slot| slot.generation as u64 == number >> 32)
        .and_then(|slot| slot.context.clone())
        .ok_or(Failure::BadHandle(number))
}

/// Takes a context out. It falls when the last call that uses it returns.
pub(crate) fn remove(number: u64) -> Result<Arc<Context>, Failure> {
    get(number)?;
    let mut slots = SLOTS.write().unwrap_or_else(PoisonError::into_inner);
    let slot = &mut slots[number as u32 as usize - 1];
    if slot.generation as u64 != number >> 32 {
        return Err(Failure::BadHandle(number));
    }
    slot.context.take().ok_or(Failure::BadHandle(number))
}
